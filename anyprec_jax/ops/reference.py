"""The any-precision matrix product in plain JAX: runs everywhere, and is the oracle of every other implementation.

Only the first `precision` planes and the one codebook of that precision are ever touched.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8, UInt32

from anyprec_jax import bitplanes
from anyprec_jax.array import AnyPrecArray, check_precision

# Up to here a tree of selects is faster on CPU than a gather, whose cost does not depend on the precision: 6x at 4 bits and 2x at
# 6 bits on matrices that fit the cache, even at 6 bits on larger ones.
MAX_SELECT_PRECISION = 6


def codes(array: AnyPrecArray, *, precision: int) -> UInt8[Array, "n k"]:
    """The code of every weight at `precision`: `code_parent >> (parent - precision)`.

    Raises:
      ValueError: if `array` is a stack, or cannot be read at `precision`.
    """
    _check_matrix(array, precision)
    return _codes(array, precision=precision)


def dequantize(array: AnyPrecArray, *, precision: int, dtype: DTypeLike = jnp.float32) -> Float[Array, "n k"]:
    """The weights as `precision` bits represent them: `codebooks[precision][row, code]`.

    For a stack: `jax.vmap(lambda matrix: dequantize(matrix, precision=precision))(stack)`.

    Args:
      array: one matrix.
      precision: bits per weight, seed <= precision <= parent.
      dtype: of the result; float32 holds the float16 of the codebooks exactly, bfloat16 rounds it.

    Raises:
      ValueError: if `array` is a stack, or cannot be read at `precision`.
    """
    _check_matrix(array, precision)
    return _dequantize(array, precision=precision, dtype=jnp.dtype(dtype))


def matmul_xla(x: Float[Array, "*batch k"], array: AnyPrecArray, *, precision: int) -> Float[Array, "*batch n"]:
    """`x @ dequantize(array, precision=precision).T`, products and sums in float32, result in the dtype of `x`.

    Differentiable in `x`.

    Raises:
      ValueError: if `x` is not floating point or its last axis is not `k`, if `array` is a stack or cannot be read at `precision`.
    """
    check_operands(x, array, precision=precision)
    return _matmul(x, array, precision=precision)


def check_operands(x: Array, array: AnyPrecArray, *, precision: int) -> None:
    """The contract of every implementation of the product. Raises ValueError, see `matmul_xla`."""
    _check_matrix(array, precision)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != array.k:
        raise ValueError(f"x must be [*batch, {array.k}] for a matrix with k = {array.k}, got {x.shape}")


def _check_matrix(array: AnyPrecArray, precision: int) -> None:
    if array.bitplanes.ndim != 3:
        raise ValueError(f"expected one matrix, got a stack of shape {array.shape}: take one layer, or use jax.vmap")
    check_precision(array, precision)


@functools.partial(jax.jit, static_argnames="precision")
def _codes(array: AnyPrecArray, *, precision: int) -> UInt8[Array, "n k"]:
    return bitplanes.unpack(array.bitplanes[:precision], k=array.k)


@functools.partial(jax.jit, static_argnames=("precision", "dtype"))
def _dequantize(array: AnyPrecArray, *, precision: int, dtype: jnp.dtype) -> Float[Array, "n k"]:
    codebook = array.codebooks[precision].astype(dtype)
    if precision <= MAX_SELECT_PRECISION:
        return _select(codebook, array.bitplanes[:precision], k=array.k)
    index = _codes(array, precision=precision).astype(jnp.int32)
    return jnp.take_along_axis(codebook, index, axis=1, mode="promise_in_bounds")


@functools.partial(jax.jit, static_argnames="precision")
def _matmul(x: Float[Array, "*batch k"], array: AnyPrecArray, *, precision: int) -> Float[Array, "*batch n"]:
    weights = _dequantize(array, precision=precision, dtype=jnp.dtype(jnp.float32))
    product = jnp.matmul(x.astype(jnp.float32), weights.T, precision=jax.lax.Precision.HIGHEST)
    return product.astype(x.dtype)


def _select(
    codebook: Float[Array, "n entries"], planes: UInt32[Array, "precision n words"], *, k: int
) -> Float[Array, "n {k}"]:
    """Looks codes up by halving the codebook with each plane, the least significant first."""
    _, n, words = planes.shape
    column = jnp.arange(bitplanes.WORD_BITS, dtype=jnp.uint32).reshape(1, 1, bitplanes.WORD_BITS)
    values = [codebook[:, entry, None, None] for entry in range(codebook.shape[1])]
    for plane in planes[::-1]:
        bit = ((plane[:, :, None] >> column) & jnp.uint32(1)).astype(bool)
        values = [jnp.where(bit, odd, even) for even, odd in zip(values[0::2], values[1::2], strict=True)]
    return values[0].reshape(n, words * bitplanes.WORD_BITS)[:, :k]
