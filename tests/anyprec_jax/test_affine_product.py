"""`ops.affine` against float64 NumPy: plain XLA to the rounding of float32, the native product to what it promises."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.affine import AffineArray, quantize_affine
from anyprec_jax.ops import affine, cpu, matmul_affine

SHAPES = [(1, 1), (1, 31), (33, 1), (260, 48), (97, 576), (1000, 33)]


def matrix(n: int, k: int, seed: int = 0) -> AffineArray:
    return quantize_affine(np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32))


def inputs(*shape: int) -> jax.Array:
    """With a column in 20 twelve times as large, as in the hidden states of a language model."""
    x = np.random.default_rng(1).standard_normal(shape)
    x[..., ::20] *= 12
    return jnp.asarray(x, jnp.float32)


def expected(x: jax.Array, array: AffineArray) -> np.ndarray:
    weights = np.asarray(array.scale, np.float64)[:, None] * np.asarray(array.codes, np.float64)
    return np.asarray(x, np.float64) @ (weights + np.asarray(array.offset, np.float64)[:, None]).T


def assert_exact(got: jax.Array, x: jax.Array, array: AffineArray) -> None:
    """Within the rounding of k products, their sums, and the sum of x with what cancels: of the terms, not of the result."""
    scale, offset = np.asarray(array.scale, np.float64), np.asarray(array.offset, np.float64)
    terms = np.abs(np.asarray(x, np.float64)) @ (np.full((array.k, array.n), 128.0) * scale)
    terms += np.abs(np.asarray(x, np.float64)).sum(axis=-1, keepdims=True) * np.abs(offset + 128 * scale)
    bound = 2.0**-24 * (4 * np.sqrt(array.k) + 8) * terms
    assert got.dtype == jnp.float32
    assert np.all(np.abs(np.asarray(got, np.float64) - expected(x, array)) <= bound)


def assert_close(got: jax.Array, x: jax.Array, array: AffineArray) -> None:
    """Within 5e-4 of what all products could add up to."""
    wanted = expected(x, array)
    weights = expected(jnp.eye(array.k), array).T
    norms = np.linalg.norm(np.asarray(x, np.float64), axis=-1)[..., None] * np.linalg.norm(weights, axis=-1)
    assert got.dtype == jnp.float32
    assert np.all(np.abs(np.asarray(got, np.float64) - wanted) <= 5e-4 * norms)


def xla(x: jax.Array, array: AffineArray) -> jax.Array:
    return matmul_affine(x, array, implementation="xla")


@pytest.mark.parametrize("rows", [1, 5, 17])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_equals_numpy(n: int, k: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affine, "_WEIGHTS_AT_ONCE", 64 * k)  # several blocks, the last one overlapping
    x, array = inputs(rows, k), matrix(n, k)
    assert_exact(xla(x, array), x, array)
    assert_exact(jax.jit(xla)(x, array), x, array)
    assert_close(matmul_affine(x, array), x, array)
    assert_close(jax.jit(matmul_affine)(x, array), x, array)


def test_relative_error_is_that_of_float32() -> None:
    x, array = inputs(4, 2048), matrix(500, 2048)
    error = np.asarray(xla(x, array), np.float64) - expected(x, array)
    assert np.linalg.norm(error) <= 2e-6 * np.linalg.norm(expected(x, array))


def test_batches() -> None:
    x, array = inputs(2, 3, 48), matrix(60, 48)
    for product in (xla, matmul_affine):
        assert product(x, array).shape == (2, 3, 60)
        assert product(x[0, 0], array).shape == (60,)
        assert_close(product(x, array), x, array)
        assert_close(jax.vmap(product, in_axes=(0, None))(x, array), x, array)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), array)
    assert_close(jax.vmap(matmul_affine)(x, stacked), x, array)


def test_bfloat16_inputs() -> None:
    x, array = inputs(3, 48).astype(jnp.bfloat16), matrix(60, 48)
    assert_exact(xla(x, array), x.astype(jnp.float32), array)
    assert_close(matmul_affine(x, array), x.astype(jnp.float32), array)


def test_gradient() -> None:
    x, array = inputs(2, 48), matrix(60, 48)
    cotangent = inputs(2, 60)
    weights = expected(jnp.eye(48), array)  # [k, n]
    for product in (xla, matmul_affine):
        _, pullback = jax.vjp(lambda x: product(x, array), x)  # noqa: B023
        np.testing.assert_allclose(pullback(cotangent)[0], np.asarray(cotangent) @ weights.T, atol=2e-4)


def test_the_matrix_never_exists_in_float32() -> None:
    n, k = 8192, 512
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype), matrix(2, k))
    memory = jax.jit(xla).lower(jax.ShapeDtypeStruct((1, k), jnp.float32), shapes).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < n * k


class TestArguments:
    def test_bad_inputs(self) -> None:
        array = matrix(5, 8)
        with pytest.raises(ValueError, match=r"\[\*batch, 8\] for a matrix with k = 8, got \(2, 7\)"):
            matmul_affine(inputs(2, 7), array)
        with pytest.raises(ValueError, match="floating point, got int32"):
            matmul_affine(jnp.ones((2, 8), jnp.int32), array)
        with pytest.raises(ValueError, match="implementation must be .* got 'fast'"):
            inspect.unwrap(affine._select)("fast")  # past the run-time check of types

    def test_a_name_means_this_or_raise(self) -> None:
        x, array = inputs(2, 8), matrix(5, 8)
        if cpu.why_unavailable() is None:
            native = matmul_affine(x, array, implementation="cpu")
            np.testing.assert_array_equal(native, matmul_affine(x, array))

    def test_without_the_library(self, monkeypatch, tmp_path) -> None:
        monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "absent.so")
        x, array = inputs(2, 8), matrix(5, 8)
        np.testing.assert_array_equal(xla(x, array), matmul_affine(x, array))
        with pytest.raises(RuntimeError, match=r"'cpu' is not available: .*absent\.so does not exist"):
            matmul_affine(x, array, implementation="cpu")
