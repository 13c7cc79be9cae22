"""Weights read from a model in memory, and dequantized without JAX."""

import dataclasses

import jax
import numpy as np
import pytest

from anyprec_jax.affine import dequantize_affine, quantize_affine
from anyprec_jax.array import AnyPrecArray
from anyprec_jax.checkpoint import source as sources
from anyprec_jax.checkpoint.source import dequantized_matrix, dequantized_rows, model_source, plain_source
from anyprec_jax.layout import prepare
from anyprec_jax.models.fusion import fused
from tests.anyprec_jax.oracles_matmul import example
from tests.anyprec_jax.tiny import quantized_tiny_model

FLOAT32 = np.dtype(np.float32)


@pytest.mark.parametrize("layers", [None, 3])
@pytest.mark.parametrize("weights_at_once", [1, 100, 1 << 22])
def test_dequantized_matrices(layers: int | None, weights_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_WEIGHTS_AT_ONCE", weights_at_once)
    array, weights = example(np.random.default_rng(0), 7, 45, layers=layers, seed=2, parent=6)
    on_host = jax.tree.map(np.asarray, array)
    for w in range(2, 7):
        np.testing.assert_array_equal(dequantized_matrix(on_host, precision=w, dtype=FLOAT32), weights[w])
        half = dequantized_matrix(on_host, precision=w, dtype=np.dtype(np.float16))
        np.testing.assert_array_equal(half, weights[w])  # centroids are float16


@pytest.mark.parametrize("weights_at_once", [1, 1 << 22])
def test_dequantized_rows(weights_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_WEIGHTS_AT_ONCE", weights_at_once)
    rows = quantize_affine(np.random.default_rng(1).normal(size=(9, 33)).astype(np.float32))
    got = dequantized_rows(rows, dtype=FLOAT32)
    codes, scale, offset = (np.asarray(leaf, np.float64) for leaf in (rows.codes, rows.scale, rows.offset))
    products = codes * scale[:, None]
    exact = products + offset[:, None]
    bound = 2.0**-23 * (np.abs(products) + np.abs(exact))  # two roundings of a float32, or one where XLA fuses them
    assert np.all(np.abs(got - exact) <= bound)
    assert np.all(np.abs(np.asarray(dequantize_affine(rows)) - exact) <= bound)


def test_a_model_is_read_as_it_was_before_it_was_fused_and_prepared() -> None:
    model = quantized_tiny_model()
    layers = {
        name: prepare(leaf) if isinstance(leaf, AnyPrecArray) else leaf
        for name, leaf in fused(model.params["layers"]).items()
    }
    source = model_source(dataclasses.replace(model, params=model.params | {"layers": layers}))
    assert source.precisions == (2, 3, 4) and source.is_quantized
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        stack: AnyPrecArray = model.params["layers"][name]
        for layer in range(3):
            matrix = source.read(f"layers/{name}", layer)
            assert isinstance(matrix, AnyPrecArray) and matrix.shape == stack.shape[1:]
            np.testing.assert_array_equal(matrix.bitplanes, np.asarray(stack.bitplanes)[layer])
            for w, book in stack.codebooks.items():
                np.testing.assert_array_equal(matrix.codebooks[w], np.asarray(book)[layer])
    np.testing.assert_array_equal(source.read("layers/input_norm", 1), model.params["layers"]["input_norm"][1])


def test_a_plain_source() -> None:
    model = quantized_tiny_model()
    source = plain_source(model_source(model), precision=3, dtype=None)
    assert not source.is_quantized and source.read_at == 3
    leaf = source.read("layers/up_proj", 2)
    assert isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 and leaf.shape == (72, 48)
    for precision in (None, 5):
        with pytest.raises(ValueError, match="the model, which holds 2, 3, 4"):
            plain_source(model_source(model), precision=precision, dtype=None)
