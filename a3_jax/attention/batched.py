"""A3's attention in the layout of `jax.nn.dot_product_attention`: batches, heads, grouped heads, queries in chunks."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from a3_jax.attention.approximate import Fallback, Info, approx_attention
from a3_jax.candidates.selection import Implementation
from a3_jax.post_scoring import Percent
from a3_jax.sorted_keys import sort_keys

# Products of a chunk of queries, in the form that takes all of them: 64 MiB in float32, and a few arrays of that size are held.
_CHUNK_PRODUCTS = 2**24


def approx_dot_product_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K D"],
    *,
    num_iterations: Any = None,
    threshold_percent: Percent | None = None,
    scale: int | float | Float[Array, ""] | None = None,
    mask: Bool[Array, "MB MN MT MS"] | None = None,
    is_causal: bool = False,
    fallback: Fallback = "largest_product",
    skip_heuristic: bool = True,
    max_iterations: int | None = None,
    implementation: Implementation = "dense",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T N D"], Info]:
    """`approx_attention` for every query of every head; every key head is sorted once, for all queries of its group.

    Args:
      query, key, value: as for `jax.nn.dot_product_attention`: batch B, T queries, S keys, N heads, and K key heads, which divide N;
        heads `n * N / K` to `(n + 1) * N / K - 1` read key head n. Values may have another size than keys.
      num_iterations, threshold_percent, fallback, skip_heuristic, max_iterations, implementation: as for `approx_attention`, the same for
        all queries. A float `num_iterations` counts the rows that a query may see.
      scale: None for 1 / sqrt(H).
      mask: pairs that take part; an axis of 1 holds for all of B, N, T or S.
      is_causal: whether query t sees keys 0 to t only.
      chunk_size: queries that are searched at the same time; None for as many as keeps their products below 64 MiB.

    Returns:
      The output, and `Info` with the axes of the query before its own: `candidates` and `kept` are `[B, T, N, S]`, one byte a pair. Under
      `jax.jit` what is not used of it is not kept.

    Raises:
      ValueError: as `approx_attention`; if shapes do not fit.
    """
    _check_shapes(query, key, value, mask)
    (num_batches, num_queries, num_heads, dim), (_, num_keys, num_key_heads, _) = query.shape, key.shape
    group = num_heads // num_key_heads
    factor = dim**-0.5 if scale is None else scale
    chunk = max(1, _CHUNK_PRODUCTS // (2 * dim * num_keys)) if chunk_size is None else chunk_size
    if chunk < 1:
        raise ValueError(f"chunk_size: wanted at least 1 query, got {chunk_size}")
    keys_seen = jnp.arange(num_keys, dtype=jnp.int32)

    def seen_by(batch: Int32[Array, ""], head: Int32[Array, ""], time: Int32[Array, ""]) -> Bool[Array, " S"] | None:
        if mask is None and not is_causal:
            return None
        seen = keys_seen <= time if is_causal else jnp.ones(num_keys, bool)
        if mask is None:
            return seen
        # Of an axis of 1 the only element is taken.
        place = (jnp.minimum(index, size - 1) for index, size in zip((batch, head, time), mask.shape, strict=False))
        return seen & jnp.broadcast_to(mask[tuple(place)], seen.shape)

    def attend_head(head: tuple[Array, ...]) -> tuple[Array, Info]:
        number, queries, head_key, head_value = head
        sorted_keys = None if num_iterations is None else sort_keys(head_key)
        batch, key_head = number // num_key_heads, number % num_key_heads

        def attend_query(item: tuple[Array, Array]) -> tuple[Array, Info]:
            place, one_query = item
            return approx_attention(
                one_query,
                head_key,
                head_value,
                sorted_keys,
                num_iterations=num_iterations,
                threshold_percent=threshold_percent,
                scale=factor,
                mask=seen_by(batch, key_head * group + place % group, place // group),
                fallback=fallback,
                skip_heuristic=skip_heuristic,
                max_iterations=max_iterations,
                implementation=implementation,
            )

        places = jnp.arange(num_queries * group, dtype=jnp.int32)
        return jax.lax.map(attend_query, (places, queries), batch_size=min(chunk, num_queries * group))

    heads = num_batches * num_key_heads
    grouped = query.reshape(num_batches, num_queries, num_key_heads, group, dim).transpose(0, 2, 1, 3, 4)
    stacked = (
        jnp.arange(heads, dtype=jnp.int32),
        grouped.reshape(heads, num_queries * group, dim),
        *(array.transpose(0, 2, 1, 3).reshape(heads, num_keys, array.shape[-1]) for array in (key, value)),
    )

    def ungroup(array: Array) -> Array:
        array = array.reshape(num_batches, num_key_heads, num_queries, group, *array.shape[2:])
        array = jnp.moveaxis(array, 1, 2)
        return array.reshape(num_batches, num_queries, num_heads, *array.shape[4:])

    return jax.tree.map(ungroup, jax.lax.map(attend_head, stacked))


def _check_shapes(query: Array, key: Array, value: Array, mask: Array | None) -> None:
    wanted = (
        "query [B, T, N, H], key [B, S, K, H] and value [B, S, K, D] with K a divisor of N, and S, K, H and D not 0"
    )
    shapes = f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
    if any(array.ndim != 4 for array in (query, key, value)):
        raise ValueError(f"wanted {wanted}, got {shapes}")
    (batches, queries, heads, dim), (_, keys, key_heads, _) = query.shape, key.shape
    fits = key.shape == (batches, keys, key_heads, dim) and value.shape[:3] == key.shape[:3]
    if not fits or 0 in (keys, key_heads, dim, value.shape[3]) or heads % key_heads:
        raise ValueError(f"wanted {wanted}, got {shapes}")
    full = (batches, heads, queries, keys)
    if mask is not None and not (
        mask.ndim == 4 and all(size in (1, whole) for size, whole in zip(mask.shape, full, strict=True))
    ):
        raise ValueError(f"mask: wanted {list(full)} with 1 for any of them, got {list(mask.shape)}")
