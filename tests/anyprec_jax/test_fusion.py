import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import sensitivity
from anyprec_jax.array import AnyPrecArray
from anyprec_jax.generation import readable_precisions
from anyprec_jax.models.decoder import forward, init_cache
from anyprec_jax.models.fusion import LINEARS, fused, linears, part_rows, unfused
from anyprec_jax.models.model import Model, dequantized, with_affine_head
from anyprec_jax.ops import cpu
from tests.anyprec_jax.tiny import quantized_tiny_model, tiny_model

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 260, (2, 19)), jnp.int32)


@functools.cache
def separate() -> Model:
    model = quantized_tiny_model(attention_bias=True, mlp_bias=True)
    assert set(LINEARS) <= set(model.params["layers"])
    return model


@functools.cache
def joined() -> Model:
    model = separate()
    return dataclasses.replace(model, params=model.params | {"layers": fused(model.params["layers"])})


class TestFused:
    def test_names(self) -> None:
        names = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
        biases = {f"{name}_bias" for name in names}
        assert set(joined().params["layers"]) == names | biases | {"input_norm", "post_attention_norm"}
        assert set(linears(joined().params["layers"])) == names

    def test_rows_are_those_of_the_parts(self) -> None:
        whole, parts = joined().params["layers"], separate().params["layers"]
        assert whole["qkv_proj"].shape == (3, 48 + 16 + 16, 48)
        np.testing.assert_array_equal(whole["qkv_proj"].bitplanes[:, :, 48:64], parts["k_proj"].bitplanes)
        np.testing.assert_array_equal(whole["gate_up_proj"].codebooks[3][:, 72:], parts["up_proj"].codebooks[3])
        np.testing.assert_array_equal(whole["qkv_proj_bias"][:, 64:], parts["v_proj_bias"])

    def test_unfused_is_the_inverse(self) -> None:
        for leaves in (joined().params["layers"], jax.tree.map(np.asarray, joined().params["layers"])):
            again = unfused(leaves)
            assert jax.tree.structure(again) == jax.tree.structure(separate().params["layers"])
            for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(separate().params["layers"]), strict=True):
                np.testing.assert_array_equal(a, b)

    def test_is_idempotent(self) -> None:
        layers = joined().params["layers"]
        assert fused(layers).keys() == layers.keys()

    def test_unlike_parts_stay_apart(self) -> None:
        layers = dict(separate().params["layers"])
        layers["v_proj"] = dequantized(separate(), precision=4).params["layers"]["v_proj"]
        up: AnyPrecArray = layers["up_proj"]
        layers["up_proj"] = dataclasses.replace(up, codebooks={w: up.codebooks[w] for w in (2, 4)})
        assert fused(layers).keys() == layers.keys()

    def test_grouped_queries_of_any_proportion(self) -> None:
        shapes: dict[str, Any] = {"qkv_proj": jnp.zeros((1, 10 + 2 + 2, 6)), "o_proj": jnp.zeros((1, 6, 10))}
        assert part_rows(shapes, "qkv_proj") == [(0, 10), (10, 12), (12, 14)]


class TestEitherForm:
    @pytest.mark.skipif(
        cpu.why_unavailable() is not None, reason="of several rows XLA's sums depend on the matrix's size"
    )
    @pytest.mark.parametrize("precision", [2, 4])
    def test_logits_are_the_same_to_the_bit(self, precision: int) -> None:
        few = TOKENS[:, :7]  # so that the native product takes them
        results = [forward(m.params, few, m.config, precision=precision) for m in (separate(), joined())]
        np.testing.assert_array_equal(*results)

    def test_logits_of_a_decode_step_are_the_same_to_the_bit(self) -> None:
        config = separate().config
        cache = init_cache(config, batch=1, length=32)
        _, cache = forward(separate().params, TOKENS[:1], config, precision=3, cache=cache)
        step = TOKENS[:1, :1]
        results = [forward(m.params, step, config, precision=3, cache=cache) for m in (separate(), joined())]
        for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_many_rows_are_the_same_to_rounding(self) -> None:
        results = [np.asarray(forward(m.params, TOKENS, m.config, precision=4)) for m in (separate(), joined())]
        assert np.abs(results[0] - results[1]).max() <= 2e-5 * np.abs(results[0]).max()

    def test_dequantized(self) -> None:
        dense = [dequantized(with_affine_head(model), precision=3).params for model in (separate(), joined())]
        assert set(dense[1]["layers"]) == set(separate().params["layers"])
        for a, b in zip(jax.tree.leaves(dense[0]), jax.tree.leaves(dense[1]), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_errors_name_the_matrix(self) -> None:
        assert readable_precisions(joined()) == (2, 3, 4)
        with pytest.raises(ValueError, match="o_proj: .* got 5"):
            forward(joined().params, TOKENS, joined().config, precision=5)
        with pytest.raises(ValueError, match="the model is quantized: give a precision from 2 to 4"):
            forward(joined().params, TOKENS, joined().config, precision=None)

    def test_sensitivity(self) -> None:
        for model in (separate(), joined()):
            assert {name: total.shape for name, total in sensitivity.zeros(model.params).items()} == {
                name: tiny_model().params["layers"][name].shape for name in LINEARS
            }
            with pytest.raises(ValueError, match="q_proj is quantized already"):
                sensitivity.sequence_accumulator(model.params, model.config)
