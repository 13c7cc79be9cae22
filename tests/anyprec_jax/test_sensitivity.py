"""Oracles: a loop of whole-model gradients of single sequences, and finite differences of the loss."""

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
