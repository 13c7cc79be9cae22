"""Oracles: a loop of whole-model gradients of single sequences, finite differences of the loss, and a decoder spelt out with taps."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import sensitivity
from anyprec_jax.models.decoder import LINEARS, forward
from tests.anyprec_jax.tiny import tiny_model


def loss_by_hand(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Mean negative log-likelihood of every token but the first, in float64."""
    scored = logits[:-1].astype(np.float64)
    log_normalizer = np.log(np.sum(np.exp(scored - scored.max(-1, keepdims=True)), -1)) + scored.max(-1)
    return float(np.mean(log_normalizer - scored[np.arange(len(scored)), tokens[1:]]))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest):
    return tiny_model(seed=3, tie_embeddings=request.param, attention_bias=True, mlp_bias=True)


def test_sum_of_squared_single_sequence_gradients(model) -> None:
    sequences = np.random.default_rng(0).integers(0, 260, (3, 17)).astype(np.int32)
    linears = {name: model.params["layers"][name] for name in LINEARS}

    def loss(linears, tokens):
        params = model.params | {"layers": model.params["layers"] | linears}
        logits = forward(params, tokens[None], model.config, precision=None)[0]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), tokens[1:, None], axis=1)
        return -jnp.mean(chosen)

    gradients = [jax.grad(loss)(linears, jnp.asarray(tokens)) for tokens in sequences]
    expected = {name: sum(np.square(np.asarray(g[name], np.float64)) for g in gradients) for name in LINEARS}

    total = sensitivity.zeros(model.params)
    accumulate = sensitivity.sequence_accumulator(model.params, model.config)
    for tokens in sequences:
        accumulate(jnp.asarray(tokens), total)

    for name in LINEARS:
        assert total[name].dtype == np.float32
        # Float32 gradients of two different programs: relative to the layer's largest, rounding is a few hundred ulp.
        np.testing.assert_allclose(total[name], expected[name], rtol=2e-3, atol=1e-4 * expected[name].max())

    # The gradient of the mean over the batch would have cross terms: it must not pass for the sum of squares.
    batch = {name: np.square(np.mean([np.asarray(g[name]) for g in gradients], 0)) * 3 for name in LINEARS}
    assert not np.allclose(total["down_proj"], batch["down_proj"], rtol=0.1)


def test_finite_differences(model) -> None:
    tokens = np.random.default_rng(1).integers(0, 260, 13).astype(np.int32)
    total = sensitivity.zeros(model.params)
    sensitivity.sequence_accumulator(model.params, model.config)(jnp.asarray(tokens), total)

    step = 1e-2
    for name in LINEARS:
        index = np.unravel_index(np.argmax(total[name]), total[name].shape)
        losses = []
        for sign in (1, -1):
            moved = model.params["layers"][name].at[index].add(sign * step)
            params = model.params | {"layers": model.params["layers"] | {name: moved}}
            logits = np.asarray(forward(params, jnp.asarray(tokens)[None], model.config, precision=None)[0])
            losses.append(loss_by_hand(logits, tokens))
        slope = (losses[0] - losses[1]) / (2 * step)
        # Central differences: an error of order step**2, and float32 logits.
        assert slope**2 == pytest.approx(total[name][index], rel=0.05)


def test_mean_nll_is_the_loss(model) -> None:
    logits = np.random.default_rng(2).normal(size=(9, 50)).astype(np.float32)
    tokens = np.random.default_rng(3).integers(0, 50, 9).astype(np.int32)
    loss = sensitivity.mean_nll(jnp.asarray(logits), jnp.asarray(tokens))
    assert float(loss) == pytest.approx(loss_by_hand(logits, tokens), rel=1e-6)


def test_the_order_of_accumulation_is_the_same_every_time(model) -> None:
    sequences = np.random.default_rng(4).integers(0, 260, (2, 11)).astype(np.int32)
    totals = []
    for _ in range(2):
        total = sensitivity.zeros(model.params)
        accumulate = sensitivity.sequence_accumulator(model.params, model.config)
        for tokens in sequences:
            accumulate(jnp.asarray(tokens), total)
        totals.append(total)
    for name in LINEARS:
        np.testing.assert_array_equal(totals[0][name], totals[1][name])


def spelt_out(params, config, tokens, taps):
    """Logits, and the inputs of every linear by (name, layer). `taps` [tokens, n] are added to the linears' outputs."""
    inputs, layers = {}, params["layers"]

    def linear(name, layer, x):
        inputs[name, layer] = x
        return x @ layers[name][layer].T + layers[f"{name}_bias"][layer] + taps[name, layer]

    def norm(x, weight):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * weight

    def rotate(x):
        half = config.head_dim // 2
        angles = np.arange(len(tokens))[:, None] * config.rope_theta ** (-np.arange(half) / half)
        cos, sin = np.float32(np.cos(angles))[:, None], np.float32(np.sin(angles))[:, None]
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    future = jnp.asarray(np.triu(np.full((len(tokens), len(tokens)), -1e30, np.float32), 1))
    hidden = params["embedding"][tokens]
    for layer in range(config.num_layers):
        x = norm(hidden, layers["input_norm"][layer])
        q, k, v = (linear(f"{name}_proj", layer, x).reshape(len(tokens), -1, config.head_dim) for name in "qkv")
        q, k, v = rotate(q), *(jnp.repeat(y, config.num_heads // config.num_kv_heads, axis=1) for y in (rotate(k), v))
        scores = jnp.einsum("qhd,khd->hqk", q, k) / np.float32(np.sqrt(config.head_dim)) + future[None]
        mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v).reshape(len(tokens), -1)
        hidden = hidden + linear("o_proj", layer, mixed)
        x = norm(hidden, layers["post_attention_norm"][layer])
        gated = jax.nn.silu(linear("gate_proj", layer, x)) * linear("up_proj", layer, x)
        hidden = hidden + linear("down_proj", layer, gated)
    head = params["embedding" if config.tie_embeddings else "head"]
    return norm(hidden, params["final_norm"]) @ head.T, inputs


def test_moments_are_sums_over_tokens(model) -> None:
    """s_t is the mean over outputs of the squared gradient there: the gradient of the loss with respect to what is added to them."""
    sequences = np.random.default_rng(5).integers(0, 260, (2, 19)).astype(np.int32)
    shapes = {(name, i): model.params["layers"][name].shape[1] for name in LINEARS for i in range(3)}
    none = {key: jnp.zeros((19, n)) for key, n in shapes.items()}

    @jax.jit
    def gradients_and_inputs(tokens):
        def loss(taps):
            logits, inputs = spelt_out(model.params, model.config, tokens, taps)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), tokens[1:, None], axis=1)
            return -jnp.mean(chosen), inputs

        return jax.grad(loss, has_aux=True)(none)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # of the oracle
        logits, _ = spelt_out(model.params, model.config, sequences[0], none)
        slow_runs = [gradients_and_inputs(jnp.asarray(tokens)) for tokens in sequences]
    np.testing.assert_allclose(
        logits, forward(model.params, sequences[:1], model.config, precision=None)[0], rtol=1e-3, atol=1e-3
    )
    expected = dict.fromkeys(shapes, 0.0)
    for gradients, inputs in slow_runs:
        for key in shapes:
            dz, x = np.asarray(gradients[key], np.float64), np.asarray(inputs[key], np.float64)
            expected[key] = expected[key] + sum(np.mean(dz[t] ** 2) * np.outer(x[t], x[t]) for t in range(19))

    totals = [sensitivity.zeros(model.params, kind) for kind in ("moment", "fisher")]
    accumulate = sensitivity.sequence_accumulator(model.params, model.config, ("moment", "fisher"))
    diagonals = sensitivity.zeros(model.params, "diagonal")
    accumulate_diagonals = sensitivity.sequence_accumulator(model.params, model.config, ("diagonal",))
    fisher = sensitivity.zeros(model.params)
    accumulate_fisher = sensitivity.sequence_accumulator(model.params, model.config)
    for tokens in sequences:
        accumulate(jnp.asarray(tokens), *totals)
        accumulate_diagonals(jnp.asarray(tokens), diagonals)
        accumulate_fisher(jnp.asarray(tokens), fisher)
    for name, layer in shapes:
        moment, slow = totals[0][name][layer], expected[name, layer]
        assert moment.dtype == np.float32
        np.testing.assert_allclose(moment, slow, rtol=2e-3, atol=1e-4 * np.max(slow))
        np.testing.assert_allclose(diagonals[name][layer], np.diag(moment), rtol=1e-4)
    for name in LINEARS:  # whatever is measured beside it
        np.testing.assert_allclose(totals[1][name], fisher[name], rtol=1e-3, atol=1e-6 * fisher[name].max())


def test_bytes_are_those_of_the_sums(model) -> None:
    for kind in ("fisher", "moment", "diagonal"):
        assert sensitivity.nbytes(model.params, kind) == sum(
            a.nbytes for a in sensitivity.zeros(model.params, kind).values()
        )


@pytest.mark.parametrize("kinds", [(), ("fisher", "fisher"), ("hessian",), ("moment", "diagonal")])
def test_kinds_that_cannot_be_measured(model, kinds: tuple[str, ...]) -> None:
    accumulator = inspect.unwrap(sensitivity.sequence_accumulator)
    with pytest.raises(ValueError, match="each once|measure one"):
        accumulator(model.params, model.config, kinds)
