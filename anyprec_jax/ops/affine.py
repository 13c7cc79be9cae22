"""The product with an `AffineArray`: the output head, read once for every token."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Shaped, UInt8

from anyprec_jax.affine import AffineArray
from anyprec_jax.ops import cpu
from anyprec_jax.ops.dispatch import Implementation
from anyprec_jax.ops.operations import MAX_DECODE_ROWS

_CENTER = 128  # codes minus this are small on average, and so is what cancels in the sum
_WEIGHTS_AT_ONCE = 1 << 16  # as float32 they stay in the second-level cache of a core

# What the implementations look like: (x float32 [m, k], codes [n, k], scale [n], offset [n]) -> float32 [m, n].
Operation = Callable[[Array, Array, Array, Array], Array]


def matmul_affine(
    x: Shaped[Array, "*batch k"], array: AffineArray, *, implementation: Implementation | None = None
) -> Float32[Array, "*batch n"]:
    """`x @ dequantize_affine(array).T`, products and sums in float32, as is the result.

    Computed as `(x @ codes.T) * scale + sum(x) * offset`, which reads a byte a weight: the matrix never exists in float32. The native
    product rounds activations to 16 bits (relative L2 error at most 5e-4), for up to 16 rows of x; more go through XLA.
    Works under `jax.jit`, `jax.vmap` and `jax.grad` (with respect to `x`, `scale` and `offset`).

    Args:
      x: floating point.
      array: the matrix.
      implementation: "xla" runs everywhere; "cpu" is the native one; None picks the best that works, and never fails.

    Raises:
      ValueError: if `x` is not floating point or its last axis is not `k`.
      RuntimeError: if `implementation` is "cpu" and that is not available; the message says why.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != array.k:
        raise ValueError(f"x must be [*batch, {array.k}] for a matrix with k = {array.k}, got {x.shape}")
    operation = _select(implementation)
    *batch, k = x.shape
    leaves = (jnp.asarray(leaf) for leaf in (array.codes, array.scale, array.offset))
    product = operation(x.astype(jnp.float32).reshape(math.prod(batch), k), *leaves)
    return product.reshape(*batch, array.n)


def _select(implementation: Implementation | None) -> Operation:
    """The one place that knows which implementations there are."""
    if implementation not in (None, "xla", "cpu"):
        raise ValueError(f"implementation must be 'xla', 'cpu' or None, got {implementation!r}")
    reason = cpu.why_unavailable()
    if implementation == "cpu":
        if reason is not None:
            raise RuntimeError(f"implementation 'cpu' is not available: {reason}")
        return _native
    return _xla if implementation == "xla" or reason is not None else _best


def _best(x: Array, codes: Array, scale: Array, offset: Array) -> Array:
    return jax.lax.platform_dependent(x, codes, scale, offset, cpu=_native, default=_xla)


@jax.custom_batching.custom_vmap
def _native_rows(x: Array, codes: Array, scale: Array, offset: Array) -> Array:
    if x.shape[0] > MAX_DECODE_ROWS:  # asked here because vmap adds rows
        return _xla(x, codes, scale, offset)
    return cpu.affine_matmul(x, codes, scale, offset)


@_native_rows.def_vmap
def _more_rows(axis_size, in_batched, x, codes, scale, offset):
    _, *matrix_batched = in_batched
    if any(matrix_batched):
        axes = [0 if batched else None for batched in in_batched]
        return jax.vmap(_xla, in_axes=axes)(x, codes, scale, offset), True
    product = _native_rows(jax.lax.collapse(x, 0, 2), codes, scale, offset)
    return product.reshape(*x.shape[:2], codes.shape[0]), True


@jax.custom_vjp
def _native(x: Array, codes: Array, scale: Array, offset: Array) -> Array:
    """The native product, with the derivatives of the one in XLA."""
    return _native_rows(x, codes, scale, offset)


def _native_backward(operands: tuple[Array, Array, Array, Array], cotangent: Array):
    x, codes, scale, offset = map(jnp.asarray, operands)
    _, pullback = jax.vjp(lambda x, scale, offset: _xla(x, codes, scale, offset), x, scale, offset)
    x_cotangent, scale_cotangent, offset_cotangent = pullback(cotangent)
    return x_cotangent, None, scale_cotangent, offset_cotangent


_native.defvjp(lambda *operands: (_native(*operands), operands), _native_backward)


@jax.jit
def _xla(
    x: Float[Array, "m k"], codes: UInt8[Array, "n k"], scale: Float[Array, " n"], offset: Float[Array, " n"]
) -> Float[Array, "m n"]:
    """Block by block: converting the whole matrix first takes 25 times as long on CPU."""
    n, k = codes.shape
    size = min(n, max(1, _WEIGHTS_AT_ONCE // k))

    def step(i: Array, product: Array) -> Array:
        start = jnp.minimum(i * size, n - size)  # the last block overlaps the one before it
        block = jax.lax.dynamic_slice_in_dim(codes, start, size).astype(jnp.float32) - _CENTER
        part = jnp.einsum("mk,nk->mn", x, block, precision="highest", preferred_element_type=jnp.float32)
        return jax.lax.dynamic_update_slice_in_dim(product, part, start, axis=1)

    product = jax.lax.fori_loop(0, -(-n // size), step, jnp.zeros((x.shape[0], n), jnp.float32))
    return product * scale[None, :] + jnp.sum(x, axis=1, keepdims=True) * (offset + _CENTER * scale)[None, :]
