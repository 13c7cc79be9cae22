"""Attention of new positions to what a cache holds: native where that is exact and built, in XLA otherwise."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from anyprec_jax.models.attention import Attention, dot_product_attention, visible
from anyprec_jax.ops import cpu

_MIN_PREFIX = 128  # positions of the cache: fewer are read as fast


def cached_attention(
    query: Array,
    keys: Array,
    values: Array,
    index: Array,
    positions: Array,
    window: Array | int | None,
    attention: Attention,
) -> Array:
    """`attention` of new positions [batch, seq, heads, head_dim] to what one layer's cache holds, themselves included.

    One position at a time, exact attention on CPU is a native call that reads the cache in place. It has no caps and no windows: with
    either, or another `attention`, XLA computes it.
    """
    plain = functools.partial(_prefix_attention, attention=attention)
    operands = (query, keys, values, index, positions)
    is_step = query.shape[1] == 1 and attention is dot_product_attention and window is None
    if not is_step or query.dtype != jnp.float32 or keys.dtype != jnp.float32 or cpu.why_unavailable() is not None:
        return plain(*operands, window)

    def native(query: Array, keys: Array, values: Array, index: Array, positions: Array) -> Array:
        # A row that does not fit into its cache becomes NaN elsewhere.
        lengths = jnp.clip(positions[:, 0] + 1, 1, values.shape[3])
        return cpu.attention(query[:, 0], keys, values, index, lengths)[:, None]

    return jax.lax.platform_dependent(*operands, cpu=native, default=functools.partial(plain, window=None))


def _prefix_attention(
    query: Array,
    keys: Array,
    values: Array,
    index: Array,
    positions: Array,
    window: Array | int | None,
    *,
    attention: Attention,
) -> Array:
    """The same in XLA, whatever `attention` is.

    One position at a time, only as much of the cache is read as is filled, up to the next power of two. That costs a compiled
    branch for every power: longer pieces read all of it.
    """
    room = values.shape[3]
    mask = visible(positions, jnp.arange(room, dtype=jnp.int32), window)

    def attend(size: int) -> Array:
        def prefix(cache: Array, axis: int) -> Array:
            """[batch, size, kv_heads, head_dim], as `attention` takes it, of a cache with positions along `axis`."""
            layer = jax.lax.dynamic_index_in_dim(cache, index, keepdims=False)
            layer = jax.lax.slice_in_dim(layer, 0, size, axis=axis)
            return jnp.moveaxis(layer, axis, 1).astype(query.dtype)

        return jax.vmap(attention)(query, prefix(keys, 3), prefix(values, 2), mask[:, :, :size])

    sizes = [room]
    while query.shape[1] == 1 and sizes[0] > _MIN_PREFIX:
        sizes.insert(0, -(-sizes[0] // 2))
    if len(sizes) == 1:
        return attend(room)
    filled = jnp.minimum(jnp.max(positions) + 1, room)
    branch = jnp.searchsorted(jnp.asarray(sizes[:-1], jnp.int32), filled)
    return jax.lax.switch(branch, [functools.partial(attend, size) for size in sizes])
