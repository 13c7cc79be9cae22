import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.ops.reference import check_operands, codes, dequantize, matmul_xla
from tests.anyprec_jax import oracles

SEED, PARENT = 1, 8
PRECISIONS = range(SEED, PARENT + 1)


def random_array(n: int, k: int, *, seed: int = 0) -> tuple[AnyPrecArray, np.ndarray]:
    """An array and its parent codes."""
    rng = np.random.default_rng(seed)
    parent_codes = rng.integers(0, 2**PARENT, (n, k), dtype=np.uint8)
    codebooks = {w: jnp.asarray(np.sort(rng.standard_normal((n, 2**w)), axis=1), jnp.float16) for w in PRECISIONS}
    return AnyPrecArray(jnp.asarray(oracles.pack(parent_codes, PARENT)), codebooks, SEED, PARENT, k), parent_codes


def expected_weights(array: AnyPrecArray, parent_codes: np.ndarray, precision: int) -> np.ndarray:
    return oracles.dequantize(parent_codes, np.asarray(array.codebooks[precision]), precision, PARENT)


def poisoned(array: AnyPrecArray, precision: int) -> AnyPrecArray:
    """Random bits in every plane and NaN in every codebook that a read at `precision` must not touch."""
    noise = np.random.default_rng(1).integers(0, 2**32, array.bitplanes[precision:].shape, dtype=np.uint32)
    codebooks = {w: book if w == precision else jnp.full_like(book, jnp.nan) for w, book in array.codebooks.items()}
    return dataclasses.replace(
        array, bitplanes=array.bitplanes.at[precision:].set(jnp.asarray(noise)), codebooks=codebooks
    )


@pytest.mark.parametrize(("k", "precision"), [*((45, w) for w in PRECISIONS), *((k, 3) for k in (1, 32, 576)), (1, 8)])
def test_codes_and_weights(k: int, precision: int) -> None:
    array, parent_codes = random_array(3, k)
    found = codes(array, precision=precision)
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, parent_codes >> (PARENT - precision))
    weights = dequantize(array, precision=precision)
    assert weights.dtype == jnp.float32
    np.testing.assert_array_equal(weights, expected_weights(array, parent_codes, precision))


@pytest.mark.parametrize("precision", [3, 8])
def test_weights_in_another_dtype(precision: int) -> None:
    array, parent_codes = random_array(3, 45)
    expected = expected_weights(array, parent_codes, precision)
    np.testing.assert_array_equal(dequantize(array, precision=precision, dtype=jnp.float16), expected)
    rounded = dequantize(array, precision=precision, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(rounded, jnp.asarray(expected).astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("batch", "precision"), [*(((5,), w) for w in PRECISIONS), *((batch, 3) for batch in [(), (1,), (2, 3), (0,)])]
)
def test_matmul(batch: tuple[int, ...], precision: int) -> None:
    array, parent_codes = random_array(7, 45)
    x = np.random.default_rng(2).standard_normal((*batch, 45)).astype(np.float32)
    weights = expected_weights(array, parent_codes, precision).astype(np.float64)
    product = matmul_xla(jnp.asarray(x), array, precision=precision)
    assert product.shape == (*batch, 7)
    tolerance = np.sqrt(45) * np.finfo(np.float32).eps * np.max(np.abs(x) @ np.abs(weights.T), initial=0)
    np.testing.assert_allclose(product, x @ weights.T, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", [3, 8])
def test_bfloat16_rounds_the_result_only(precision: int) -> None:
    array, _ = random_array(7, 300)
    x = jax.random.normal(jax.random.key(0), (4, 300)).astype(jnp.bfloat16)
    product = matmul_xla(x, array, precision=precision)
    assert product.dtype == jnp.bfloat16
    exact = matmul_xla(x.astype(jnp.float32), array, precision=precision)
    np.testing.assert_array_equal(product, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_planes_and_codebooks_of_other_precisions_are_not_touched(precision: int) -> None:
    array, _ = random_array(4, 45)
    x = jnp.ones((2, 45))
    reads: list[Callable[[AnyPrecArray], jax.Array]] = [
        lambda a: codes(a, precision=precision),
        lambda a: dequantize(a, precision=precision),
        lambda a: matmul_xla(x, a, precision=precision),
    ]
    for read in reads:
        np.testing.assert_array_equal(read(poisoned(array, precision)), read(array))


@pytest.mark.parametrize("precision", [4, 7])
def test_jit_changes_nothing(precision: int) -> None:
    array, _ = random_array(4, 45)
    x = jax.random.normal(jax.random.key(0), (2, 45))
    with jax.disable_jit():
        slow = dequantize(array, precision=precision)
    fast = jax.jit(lambda a: dequantize(a, precision=precision))(array)
    np.testing.assert_array_equal(fast, slow)
    tolerance = 45 * np.finfo(np.float32).eps * float(jnp.max(jnp.abs(x) @ jnp.abs(slow).T))
    jitted = jax.jit(lambda x, a: matmul_xla(x, a, precision=precision))(x, array)
    np.testing.assert_allclose(jitted, x @ slow.T, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", [4, 7])
def test_gradient_with_respect_to_x(precision: int) -> None:
    array, _ = random_array(4, 45)
    x = jax.random.normal(jax.random.key(0), (3, 45))
    cotangent = jax.random.normal(jax.random.key(1), (3, 4))
    gradient = jax.grad(lambda x: jnp.vdot(cotangent, matmul_xla(x, array, precision=precision)))(x)
    expected = cotangent @ dequantize(array, precision=precision)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)


def test_stacks_go_through_vmap_and_scan() -> None:
    arrays = [random_array(4, 45, seed=seed)[0] for seed in range(3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)
    expected = jnp.stack([dequantize(array, precision=5) for array in arrays])
    np.testing.assert_array_equal(jax.vmap(lambda a: dequantize(a, precision=5))(stack), expected)
    _, scanned = jax.lax.scan(lambda carry, a: (carry, dequantize(a, precision=5)), None, stack)
    np.testing.assert_array_equal(scanned, expected)
    with pytest.raises(ValueError, match="one matrix, got a stack of shape \\(3, 4, 45\\)"):
        dequantize(stack, precision=5)


def test_sums_over_slices_of_rows_and_columns_add_up() -> None:
    """What sharding relies on: rows are independent, words of columns add."""
    array, _ = random_array(6, 96)
    x = jax.random.normal(jax.random.key(0), (2, 96))
    whole = matmul_xla(x, array, precision=4)
    top = AnyPrecArray(array.bitplanes[:, :2], {4: array.codebooks[4][:2]}, 4, 8, 96)
    np.testing.assert_allclose(matmul_xla(x, top, precision=4), whole[:, :2], rtol=0, atol=1e-5)
    left = dataclasses.replace(array, bitplanes=array.bitplanes[:, :, :1], k=32)
    right = dataclasses.replace(array, bitplanes=array.bitplanes[:, :, 1:], k=64)
    parts = matmul_xla(x[:, :32], left, precision=4) + matmul_xla(x[:, 32:], right, precision=4)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", [0, 9, True])
def test_precision_that_was_not_quantized(precision: int) -> None:
    array, _ = random_array(4, 45)
    for read in (codes, dequantize):
        with pytest.raises(ValueError, match="precision must be one of 1, 2, 3, 4, 5, 6, 7, 8"):
            read(array, precision=precision)
    with pytest.raises(ValueError, match="precision must be one of"):
        matmul_xla(jnp.zeros((2, 45)), array, precision=precision)


@pytest.mark.parametrize("x", [jnp.zeros((2, 44)), jnp.zeros((45, 2)), jnp.zeros(())])
def test_x_of_the_wrong_width(x: jax.Array) -> None:
    array, _ = random_array(4, 45)
    with pytest.raises(ValueError, match="x must be \\[\\*batch, 45\\]"):
        check_operands(x, array, precision=3)


def test_x_that_is_no_float() -> None:
    array, _ = random_array(4, 45)
    with pytest.raises(ValueError, match="floating point, got int32"):
        check_operands(jnp.zeros((2, 45), jnp.int32), array, precision=3)
