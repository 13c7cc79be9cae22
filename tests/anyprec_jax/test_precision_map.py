"""Models read at a precision of its own for each matrix, against plain models of the same weights."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.evaluate import evaluate, perplexity, read_bits_per_weight
from anyprec_jax.generation import check_precision, generate
from anyprec_jax.models.decoder import forward, init_cache
from anyprec_jax.models.fusion import LINEARS, fused
from anyprec_jax.models.model import Model, dequantized
from anyprec_jax.models.precision_map import PrecisionMap, mean_precision, precisions_in
from anyprec_jax.ops import cpu, dequantize, dequantize_layer, matmul
from tests.anyprec_jax.test_families_quantized import largest_difference, small_model
from tests.anyprec_jax.tiny import quantized_tiny_model

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 260, (2, 7)), jnp.int32)
MIXED = PrecisionMap({
    "q_proj": (2, 4, 3), "k_proj": (2, 4, 3), "v_proj": (2, 4, 3), "o_proj": (3, 3, 3),
    "gate_proj": (4, 2, 2), "up_proj": (4, 2, 2), "down_proj": (2, 3, 4),
})  # fmt: skip


@functools.cache
def separate() -> Model:
    return quantized_tiny_model()


@functools.cache
def joined() -> Model:
    return dataclasses.replace(separate(), params=separate().params | {"layers": fused(separate().params["layers"])})


@functools.cache
def plain() -> Model:
    """What `MIXED` stands for, a matrix at a time."""
    layers = dict(separate().params["layers"])
    for name in LINEARS:
        matrices = [jax.tree.map(lambda leaf, i=i: leaf[i], layers[name]) for i in range(3)]
        layers[name] = jnp.stack([dequantize(m, precision=w) for m, w in zip(matrices, MIXED.of(name), strict=True)])
    return dataclasses.replace(separate(), params=separate().params | {"layers": layers})


class TestMap:
    def test_equal_maps_are_one_key(self) -> None:
        again = PrecisionMap({name: list(layers) for name, layers in reversed(MIXED.linears.items())})
        assert again == MIXED and hash(again) == hash(MIXED)
        assert again != PrecisionMap(dict(MIXED.linears) | {"o_proj": (3, 3, 4)})
        assert precisions_in(MIXED) == (2, 3, 4) and precisions_in(4) == (4,) and precisions_in(None) == ()

    def test_fused_linears_by_either_name(self) -> None:
        assert MIXED.of("qkv_proj") == (2, 4, 3)
        assert PrecisionMap({"qkv_proj": (2, 4)}).of("qkv_proj") == (2, 4)
        differing = PrecisionMap(dict(MIXED.linears) | {"up_proj": (4, 2, 3)})
        with pytest.raises(ValueError, match="gate_proj, up_proj are one matrix in memory, gate_up_proj"):
            differing.of("gate_up_proj")
        with pytest.raises(ValueError, match="has no q_proj; it has o_proj"):
            PrecisionMap({"o_proj": (3,)}).of("qkv_proj")

    @pytest.mark.parametrize("linears", [{}, {"o_proj": ()}, {"o_proj": (9,)}, {"o_proj": (True,)}])
    def test_what_is_no_map(self, linears: dict) -> None:
        with pytest.raises(ValueError, match="precision"):
            PrecisionMap(linears)

    def test_layers_that_differ_in_number(self) -> None:
        with pytest.raises(ValueError, match=r"numbers of layers \[1, 2\]"):
            PrecisionMap({"o_proj": (3,), "q_proj": (3, 3)})


class TestStack:
    """`matmul` and `dequantize_layer` with one precision for each matrix of a stack."""

    def test_only_the_planes_and_codebook_of_the_matrix_count(self) -> None:
        stack, precisions = separate().params["layers"]["o_proj"], (3, 2, 4)
        x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 48)), jnp.float32)
        by_layer = jax.jit(lambda layer: matmul(x, stack, precision=precisions, layer=layer))
        for layer, w in enumerate(precisions):
            alone = matmul(x, stack, precision=w, layer=jnp.int32(layer))
            np.testing.assert_array_equal(by_layer(jnp.int32(layer)), alone)
            np.testing.assert_array_equal(matmul(x, stack, precision=precisions, layer=layer), alone)
            read = jax.jit(lambda layer: dequantize_layer(stack, layer, precision=precisions))(jnp.int32(layer))
            one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stack)
            np.testing.assert_array_equal(read, dequantize(one, precision=w))

    def test_errors(self) -> None:
        stack, x = separate().params["layers"]["o_proj"], jnp.ones((1, 48))
        with pytest.raises(ValueError, match="a stack of 3 layers needs as many precisions or one int, got 2"):
            matmul(x, stack, precision=(3, 3), layer=0)
        with pytest.raises(ValueError, match="precision must be one of 2, 3, 4"):
            matmul(x, stack, precision=(3, 5, 3), layer=0)
        with pytest.raises(ValueError, match="for a stack"):
            matmul(x, jax.tree.map(lambda leaf: leaf[0], stack), precision=(3,))


class TestForward:
    @pytest.mark.parametrize("model", [separate, joined])
    def test_logits_are_those_of_the_plain_weights(self, model) -> None:
        expected = forward(plain().params, TOKENS, plain().config, precision=None)
        # Up to 16 rows go through the native product; these rows of 48 and 72 are exact there.
        assert largest_difference(forward(model().params, TOKENS, model().config, precision=MIXED), expected) < 1e-5

    def test_a_map_of_one_precision_is_that_precision_to_the_bit(self) -> None:
        uniform = PrecisionMap(dict.fromkeys(LINEARS, (3, 3, 3)))
        results = [forward(joined().params, TOKENS, joined().config, precision=w) for w in (3, uniform)]
        np.testing.assert_array_equal(*results)

    @pytest.mark.skipif(cpu.why_unavailable() is not None, reason="XLA's own product slices the matrix out")
    def test_no_plane_is_copied_and_one_branch_runs(self) -> None:
        cache = init_cache(joined().config, batch=2, length=8)
        step = jax.jit(
            lambda params, cache: forward(params, TOKENS[:, :1], joined().config, precision=MIXED, cache=cache)
        )
        program = step.lower(joined().params, cache).compile().as_text()
        assert program is not None
        lines = [line.split(" metadata=")[0] for line in program.splitlines()]
        assert sum(" conditional(" in line for line in lines) == 3  # o_proj has the same precision in every layer
        assert not any("= u32[" in line and (" copy(" in line or " dynamic-slice(" in line) for line in lines)

    def test_experts_share_the_precision_of_their_layer(self) -> None:
        model = quantized_mixture()
        precisions = PrecisionMap(
            {name: (2, 4) if name in ("o_proj", "up_proj", "gate_proj") else (4, 3) for name in LINEARS}
        )
        dense = dequantized(model, precision=precisions)
        for rows in (TOKENS[:1, :1], TOKENS):  # expert by expert, and by choice
            expected = forward(dense.params, rows, model.config, precision=None)
            assert largest_difference(forward(model.params, rows, model.config, precision=precisions), expected) < 1e-5

    def test_maps_that_do_not_fit(self) -> None:
        run = functools.partial(forward, joined().params, TOKENS, joined().config)
        for precisions, complaint in (
            (PrecisionMap(dict.fromkeys(LINEARS, (3, 3))), "o_proj has 3 layers, and the precision map has 2"),
            (
                PrecisionMap(dict(MIXED.linears) | {"o_proj": (3, 5, 3)}),
                "o_proj of layer 1: precision must be one of 2, 3, 4",
            ),
            (PrecisionMap({"o_proj": (3, 3, 3)}), "the precision map has no"),
        ):
            with pytest.raises(ValueError, match=complaint):
                run(precision=precisions)
            with pytest.raises(ValueError, match=complaint):
                check_precision(joined(), precisions)
        with pytest.raises(ValueError, match="not quantized"):
            forward(plain().params, TOKENS, plain().config, precision=MIXED)


def quantized_mixture() -> Model:
    """Random codes and codebooks of 2 to 4 bits for the linears of a mixture of experts."""
    model, rng = small_model("mixtral"), np.random.default_rng(0)
    layers = dict(model.params["layers"])
    template = separate().params["layers"]["o_proj"]
    for name in LINEARS:
        *stack, n, k = layers[name].shape
        planes = rng.integers(0, 2**32, (*stack, 4, n, -(-k // 32)), np.uint32)
        planes[..., -1] &= np.uint32(2 ** (k % 32 or 32) - 1)
        books = {w: jnp.asarray(rng.normal(scale=0.15, size=(*stack, n, 2**w)), jnp.float16) for w in (2, 3, 4)}
        layers[name] = dataclasses.replace(template, bitplanes=jnp.asarray(planes), codebooks=books, k=k)
    return dataclasses.replace(model, params=model.params | {"layers": layers})


class TestUsers:
    def test_evaluate(self) -> None:
        tokens = np.asarray(TOKENS).ravel()
        mixed, three = evaluate(joined(), tokens, precisions=[MIXED, 3], sequence_length=7)
        assert mixed.precision == MIXED
        assert mixed.perplexity == pytest.approx(
            perplexity(plain(), tokens, precision=None, sequence_length=7), rel=1e-6
        )
        sizes = {name: math.prod(separate().params["layers"][name].shape[1:]) for name in LINEARS}
        bits = sum(size * sum(MIXED.of(name)) for name, size in sizes.items())
        assert mixed.mean_precision == pytest.approx(bits / (3 * sum(sizes.values())), rel=1e-12)
        assert three.mean_precision == mean_precision(joined().params["layers"], 3) == 3.0

    def test_bits_per_weight(self) -> None:
        """Planes of ceil(k / 32) words a row and one codebook of 2**w halves, matrix by matrix."""
        layers = separate().params["layers"]
        bits = sum(
            layers[name].n * (w * 32 * math.ceil(layers[name].k / 32) + 16 * 2**w)
            for name in LINEARS
            for w in MIXED.of(name)
        )
        weights = sum(math.prod(layers[name].shape) for name in LINEARS)
        assert read_bits_per_weight(joined().params, precision=MIXED) == pytest.approx(bits / weights, rel=1e-12)

    def test_generate(self) -> None:
        prompt = [int(token) for token in TOKENS[0]]
        ours = generate(joined(), prompt, precision=MIXED, max_new_tokens=4)
        theirs = generate(plain(), prompt, precision=None, max_new_tokens=4)
        assert ours.tokens == theirs.tokens

    def test_dequantized(self) -> None:
        dense = dequantized(joined(), precision=MIXED).params["layers"]
        for name in LINEARS:
            np.testing.assert_array_equal(dense[name], plain().params["layers"][name])
