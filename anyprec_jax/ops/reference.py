"""The any-precision matrix product in plain JAX: runs everywhere, and is the oracle of every other implementation.

Only the first `precision` planes and the one codebook of that precision are ever touched.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from anyprec_jax import bitplanes
from anyprec_jax.array import AnyPrecArray, check_precision

# A tree of selects over a codebook of 2**w entries costs 2**w operations a weight and vectorises everywhere; a gather costs the same
# at every precision. On x86 the tree wins up to here.
MAX_SELECT_PRECISION = 4


def codes(array: AnyPrecArray, *, precision: int) -> UInt8[Array, "n k"]:
    """The code of every weight at `precision`: `code_parent >> (parent - precision)`.

    Raises:
      ValueError: if `array` is a stack or was not quantized to `precision`.
    """
    _check_one_matrix(array)
    check_precision(array, precision)
    return bitplanes.unpack(array.bitplanes[:precision], k=array.k)


def dequantize(array: AnyPrecArray, *, precision: int, dtype: DTypeLike = jnp.float32) -> Float[Array, "n k"]:
    """The weights as `precision` bits represent them: `codebooks[precision][row, code]`.

    For a stack: `jax.vmap(lambda matrix: dequantize(matrix, precision=precision))(stack)`.

    Args:
      array: one matrix.
      precision: bits per weight, seed <= precision <= parent.
      dtype: of the result; float32 and float64 hold the codebooks' float16 exactly, bfloat16 rounds them.

    Raises:
      ValueError: if `array` is a stack or was not quantized to `precision`.
    """
    _check_one_matrix(array)
    check_precision(array, precision)
    codebook = array.codebooks[precision].astype(dtype)
    planes = array.bitplanes[:precision]
    if precision <= MAX_SELECT_PRECISION:
        return _select(codebook, planes, k=array.k)
    index = bitplanes.unpack(planes, k=array.k).astype(jnp.int32)
    return jnp.take_along_axis(codebook, index, axis=1, mode="promise_in_bounds")


def matmul_xla(x: Float[Array, "*batch k"], array: AnyPrecArray, *, precision: int) -> Float[Array, "*batch n"]:
    """`x @ dequantize(array, precision=precision).T`, products and sums in float32, result in the dtype of `x`.

    Differentiable in `x`.

    Raises:
      ValueError: if `x` is not floating point or its last axis is not `k`, if `array` is a stack or was not quantized to
        `precision`.
    """
    check_operands(x, array, precision=precision)
    weights = dequantize(array, precision=precision)
    product = jnp.matmul(x.astype(jnp.float32), weights.T, precision=jax.lax.Precision.HIGHEST)
    return product.astype(x.dtype)


def check_operands(x: Array, array: AnyPrecArray, *, precision: int) -> None:
    """The contract of every implementation of the product. Raises ValueError, see `matmul_xla`."""
    _check_one_matrix(array)
    check_precision(array, precision)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != array.k:
        raise ValueError(f"x must be [*batch, {array.k}] for a matrix with k = {array.k}, got {x.shape}")


def _check_one_matrix(array: AnyPrecArray) -> None:
    if array.bitplanes.ndim != 3:
        raise ValueError(f"expected one matrix, got a stack of shape {array.shape}: take one layer, or use jax.vmap")


def _select(codebook: Float[Array, "n entries"], planes: Array, *, k: int) -> Float[Array, "n k"]:
    """Looks codes up by halving the codebook once per plane, the least significant first."""
    _, n, words = planes.shape
    column = jnp.arange(bitplanes.WORD_BITS, dtype=jnp.uint32).reshape(1, 1, bitplanes.WORD_BITS)
    values = [codebook[:, entry, None, None] for entry in range(codebook.shape[1])]
    for plane in planes[::-1]:
        bit = ((plane[:, :, None] >> column) & jnp.uint32(1)).astype(bool)
        values = [jnp.where(bit, odd, even) for even, odd in zip(values[0::2], values[1::2], strict=True)]
    return values[0].reshape(n, words * bitplanes.WORD_BITS)[:, :k]
