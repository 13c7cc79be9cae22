"""Attention of one sequence: exact, and the contract that anything in its place keeps."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MIN_BLOCK = 128  # queries; shorter blocks are dominated by overhead
MAX_BLOCKS = 8  # each is compiled; eight save 7/16 of the work, and more could save 1/16 at most

# (query [seq, heads, head_dim], key [kv, kv_heads, head_dim], value like key, mask [seq, kv]) -> [seq, heads, head_dim].
# The query is scaled already: what is wanted is softmax(query . key) value where the mask is true.
Attention: TypeAlias = Callable[[Array, Array, Array, Array], Array]


def dot_product_attention(
    query: Float[Array, "seq heads head_dim"],
    key: Float[Array, "kv kv_heads head_dim"],
    value: Float[Array, "kv kv_heads head_dim"],
    mask: Bool[Array, "seq kv"],
    *,
    cap: float | None = None,
) -> Float[Array, "seq heads head_dim"]:
    """softmax(query . key) value over the positions where `mask` is true, exactly; softmax in float32.

    Query head h reads key head `h // (heads / kv_heads)`. The query is scaled already. With a `cap`, scores become
    `cap * tanh(score / cap)` (Gemma 2).
    """
    seq, heads, head_dim = query.shape
    kv, kv_heads, _ = key.shape
    # One matrix per key head, seq * (heads / kv_heads) rows, in an order that never transposes the scores: a third faster on CPU.
    rows = query.reshape(seq, kv_heads, -1, head_dim).swapaxes(0, 1).reshape(kv_heads, -1, head_dim)
    scores = jnp.einsum("gtd,sgd->gts", rows, key, precision="highest", preferred_element_type=jnp.float32).reshape(
        kv_heads, seq, -1, kv
    )
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    weights = jax.nn.softmax(jnp.where(mask[None, :, None, :], scores, -jnp.inf), axis=-1).reshape(kv_heads, -1, kv)
    mixed = jnp.einsum(
        "gts,sgd->gtd", weights.astype(value.dtype), value, precision="highest", preferred_element_type=jnp.float32
    )
    return mixed.astype(query.dtype).reshape(kv_heads, seq, -1, head_dim).swapaxes(0, 1).reshape(seq, heads, head_dim)


@functools.cache
def capped_attention(cap: float | None) -> Attention:
    """Exact attention with that cap: the same object for the same cap, as programs are compiled for each."""
    return dot_product_attention if cap is None else functools.partial(dot_product_attention, cap=cap)


def visible(
    queries: Int[Array, "*batch seq"], keys: Int[Array, " kv"], window: Int[Array, ""] | int | None
) -> Bool[Array, "*batch seq kv"]:
    """Which keys the queries see, by their positions: themselves and those before them, `window` in all."""
    queries, keys = queries[..., None], keys.reshape((1,) * queries.ndim + (-1,))
    return keys <= queries if window is None else (keys <= queries) & (keys > queries - window)


def causal_attention(
    query: Float[Array, "seq heads head_dim"],
    key: Float[Array, "seq kv_heads head_dim"],
    value: Float[Array, "seq kv_heads head_dim"],
    *,
    attention: Attention,
    window: Int[Array, ""] | int | None = None,
) -> Float[Array, "seq heads head_dim"]:
    """`attention` of every position to itself and those before it, `window` in all.

    Queries go in blocks, each with the keys up to its end: what is masked for a whole block is neither computed nor stored. What lies
    before the window of a whole block is not either, where the window is no tracer.
    """
    seq = query.shape[0]
    positions = jnp.arange(seq)
    size = max(MIN_BLOCK, -(-seq // MAX_BLOCKS))
    attended = []
    for start in range(0, seq, size):
        stop = min(start + size, seq)
        first = max(0, start - window + 1) if isinstance(window, int) else 0
        mask = visible(positions[start:stop], positions[first:stop], window)
        attended.append(attention(query[start:stop], key[first:stop], value[first:stop], mask))
    return jnp.concatenate(attended)
