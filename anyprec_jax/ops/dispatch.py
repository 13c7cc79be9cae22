"""`matmul`: the any-precision product, whichever implementation computes it."""

import functools
import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.ops import cpu
from anyprec_jax.ops.reference import check_operands, matmul_xla

Implementation = Literal["xla", "cpu"]

# Above this many rows of x most of the work is in the product: decode the matrix once and use XLA's dense one.
MAX_DECODE_ROWS = 16


def matmul(
    x: Shaped[Array, "*batch k"],
    array: AnyPrecArray,
    *,
    precision: int,
    layer: Int[Array, ""] | int | None = None,
    implementation: Implementation | None = None,
) -> Float[Array, "*batch n"]:
    """`x @ dequantize(array, precision=precision).T`, products and sums in float32, result in the dtype of `x`.

    Reads the first `precision` planes and the codebook of that precision, nothing else. Works under `jax.jit`,
    `jax.vmap` (over `x`, `array` and `layer`) and `jax.grad` (with respect to `x` and the codebooks).

    Args:
      x: floating point.
      array: one matrix, or with `layer` a stack of them.
      precision: bits per weight, seed <= precision <= parent.
      layer: which matrix of the stack, 0 <= layer < number of matrices; may be traced, as in a `jax.lax.scan`.
      implementation: "xla" runs everywhere; "cpu" is the native one, for float32 and bfloat16; None picks the best
        that works on the platform and for this number of rows, and never fails.

    Raises:
      ValueError: if `x` is not floating point or its last axis is not `k`, if `array` has no such `precision`, if
        `layer` is missing for a stack or given for one matrix, or if "cpu" cannot take the dtype of `x`.
      RuntimeError: if `implementation` is "cpu" and that is not installed; the message says why.
    """
    _check(x, array, precision, layer)
    operation = _select(implementation, rows=math.prod(x.shape[:-1]), dtype=x.dtype)
    if isinstance(layer, int):
        layer = jnp.int32(layer)
    return _multiply(x, array.bitplanes, array.codebooks[precision], layer, operation=operation)


def _check(x: Array, array: AnyPrecArray, precision: int, layer: Array | int | None) -> None:
    matrix = array
    if layer is not None:
        if array.bitplanes.ndim != 4:
            raise ValueError(f"layer is for a stack [layers, n, k] of matrices, got an array of shape {array.shape}")
        if isinstance(layer, int) and not 0 <= layer < array.shape[0]:
            raise ValueError(f"layer must be in [0, {array.shape[0]}), got {layer}")
        matrix = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), array)
    elif array.bitplanes.ndim == 4:
        raise ValueError(f"an array of shape {array.shape} is a stack: say which matrix with layer=")
    check_operands(x, matrix, precision=precision)


# What the implementations look like from here on: (x [m, k], bitplanes [layers, parent, n, words], codebook of the
# precision [layers, n, entries], layer []) -> [m, n]. The number of entries tells the precision, x tells k.
Operation = Callable[[Array, Array, Array, Array], Array]


@functools.partial(jax.jit, static_argnames="operation")  # a call outside `jit` then copies no planes
def _multiply(x: Array, bitplanes: Array, codebook: Array, layer: Array | None, *, operation: Operation) -> Array:
    index = jnp.asarray(0 if layer is None else layer, jnp.int32)
    if layer is None:  # a stack of one
        bitplanes, codebook = bitplanes[None], codebook[None]
    *batch, k = x.shape
    product = operation(x.reshape(math.prod(batch), k), bitplanes, codebook, index)
    return product.reshape(*batch, bitplanes.shape[-2])


def _select(implementation: Implementation | None, *, rows: int, dtype: jnp.dtype) -> Operation:
    if implementation not in (None, *get_args(Implementation)):
        raise ValueError(f"implementation must be one of {get_args(Implementation)} or None, got {implementation!r}")
    if implementation == "xla":
        return _xla
    reason = cpu.why_unavailable()
    if implementation == "cpu":
        if reason is not None:
            raise RuntimeError(f"implementation 'cpu' is not available: {reason}")
        if dtype not in cpu.DTYPES:
            raise ValueError(f"implementation 'cpu' takes x of {' or '.join(map(str, cpu.DTYPES))}, got {dtype}")
        return _transformable_cpu
    return _transformable_best if reason is None and dtype in cpu.DTYPES and rows <= MAX_DECODE_ROWS else _xla


def _xla(x: Array, bitplanes: Array, codebook: Array, layer: Array) -> Array:
    precision = _precision(codebook)
    _, _, n, words = bitplanes.shape
    planes = jax.lax.dynamic_slice(bitplanes, (layer, 0, 0, 0), (1, precision, n, words))[0]
    codebooks = {precision: jax.lax.dynamic_index_in_dim(codebook, layer, keepdims=False)}
    matrix = AnyPrecArray(planes, codebooks, seed_precision=precision, parent_precision=precision, k=x.shape[-1])
    return matmul_xla(x, matrix, precision=precision)


def _cpu(x: Array, bitplanes: Array, codebook: Array, layer: Array) -> Array:
    return cpu.matmul(x, bitplanes, codebook, layer, precision=_precision(codebook))


def _best(x: Array, bitplanes: Array, codebook: Array, layer: Array) -> Array:
    if x.shape[0] > MAX_DECODE_ROWS:  # asked again here: vmap adds rows
        return _xla(x, bitplanes, codebook, layer)
    return jax.lax.platform_dependent(x, bitplanes, codebook, layer, cpu=_cpu, default=_xla)


def _precision(codebook: Array) -> int:
    return codebook.shape[-1].bit_length() - 1


def _with_vmap(forward: Operation) -> Operation:
    """Adds the batching that a custom call lacks: more rows of x, or a loop over a longer stack of matrices."""

    @jax.custom_batching.custom_vmap
    def operation(x: Array, bitplanes: Array, codebook: Array, layer: Array) -> Array:
        return forward(x, bitplanes, codebook, layer)

    @operation.def_vmap
    def rule(axis_size, in_batched, x, bitplanes, codebook, layer):
        def batch(operand: Array, is_batched: bool) -> Array:
            return operand if is_batched else jnp.broadcast_to(operand, (axis_size, *operand.shape))

        x_batched, bitplanes_batched, codebook_batched, layer_batched = in_batched
        if not (bitplanes_batched or codebook_batched or layer_batched):
            product = operation(jax.lax.collapse(x, 0, 2), bitplanes, codebook, layer)
            return product.reshape(*x.shape[:2], bitplanes.shape[2]), True
        layers = batch(layer, layer_batched)
        if bitplanes_batched or codebook_batched:  # a batch of stacks is one longer stack, and not copied
            bitplanes, codebook = batch(bitplanes, bitplanes_batched), batch(codebook, codebook_batched)
            layers = layers + bitplanes.shape[1] * jnp.arange(axis_size, dtype=layers.dtype)
            bitplanes, codebook = jax.lax.collapse(bitplanes, 0, 2), jax.lax.collapse(codebook, 0, 2)

        def one(x_and_layer: tuple[Array, Array]) -> Array:
            x, layer = x_and_layer
            return operation(x, bitplanes, codebook, layer)

        return jax.lax.map(one, (batch(x, x_batched), layers)), True

    return operation


def _with_gradient(forward: Operation) -> Operation:
    """Adds reverse-mode derivatives with respect to x and the codebook: those of the XLA implementation."""

    @jax.custom_vjp
    def operation(x: Array, bitplanes: Array, codebook: Array, layer: Array) -> Array:
        return forward(x, bitplanes, codebook, layer)

    def backward(operands, cotangent):
        x, bitplanes, codebook, layer = map(jnp.asarray, operands)  # a constant layer comes back as a NumPy scalar
        _, pullback = jax.vjp(lambda x, codebook: _xla(x, bitplanes, codebook, layer), x, codebook)
        x_cotangent, codebook_cotangent = pullback(cotangent)
        return x_cotangent, None, codebook_cotangent, None

    operation.defvjp(lambda *operands: (forward(*operands), operands), backward)
    return operation


_transformable_cpu = _with_gradient(_with_vmap(_cpu))
_transformable_best = _with_gradient(_with_vmap(_best))
