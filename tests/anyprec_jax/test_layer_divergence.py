"""The divergence of a layer against whole models of which that layer was replaced."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import layer_divergence
from anyprec_jax.layer_divergence import divergence_of_layers
from anyprec_jax.models.decoder import forward
from anyprec_jax.models.fusion import LINEARS
from anyprec_jax.models.model import Model
from anyprec_jax.ops import dequantize
from tests.anyprec_jax.tiny import quantized_tiny_model, tiny_model

WINDOWS = np.random.default_rng(0).integers(0, 260, (2, 12)).astype(np.int32)


def log_probabilities(model: Model) -> np.ndarray:
    logits = forward(model.params, jnp.asarray(WINDOWS), model.config, precision=None)
    assert isinstance(logits, jax.Array)
    wide = np.asarray(logits, np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def test_it_is_that_of_a_model_with_one_layer_at_its_fewest_bits() -> None:
    model, stacks = tiny_model(), quantized_tiny_model().params["layers"]
    measure = divergence_of_layers(model.params, model.config, WINDOWS)
    p = log_probabilities(model)
    for layer in (0, 2):
        matrices = {name: jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacks[name]) for name in LINEARS}
        coarse = {
            name: model.params["layers"][name].at[layer].set(dequantize(matrix, precision=2))
            for name, matrix in matrices.items()
        }
        q = log_probabilities(
            dataclasses.replace(model, params=model.params | {"layers": model.params["layers"] | coarse})
        )
        assert measure(layer, matrices) == pytest.approx(float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1))), rel=1e-4)


@pytest.mark.parametrize(("summed", "measured"), [(-1e-15, 0.0), (np.nan, np.nan), (0.25, 0.25)])
def test_rounding_leaves_nothing_below_zero_and_hides_no_nan(
    summed: float, measured: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_divergence, "_divergence", lambda *_, **__: jnp.float32(summed))
    model = tiny_model()
    np.testing.assert_equal(divergence_of_layers(model.params, model.config, WINDOWS)(0, {}), measured)
