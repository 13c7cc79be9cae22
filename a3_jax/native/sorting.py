"""Keys sorted by column in C++: all of them, or new ones put in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from a3_jax.native.library import call_native
from a3_jax.sorted_keys import SortedKeys

KEY_TYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def native_sort_keys(key: Float[Array, "n d"]) -> SortedKeys:
    """`sort_keys` by radix: the same values and rows, ties included.

    Args:
      key: float32 or bfloat16, finite. Batches are `jax.vmap`.

    Raises:
      ValueError: for another type.
      RuntimeError: if the native library is not there (`why_native_unavailable`).

    O(n d), three or four passes over eight bytes an entry; memory beside the result: 136 n bytes a thread.
    """
    check_key_type("key", key)
    n, d = key.shape
    results = (jax.ShapeDtypeStruct((d, n), key.dtype), jax.ShapeDtypeStruct((d, n), jnp.int32))
    return SortedKeys(*call_native("a3_sort", results, jax.lax.stop_gradient(key)))


def native_append_keys(sorted_keys: SortedKeys, key: Float[Array, "w d"], length: int | Int32[Array, ""]) -> SortedKeys:
    """Sorted keys with w rows more, in place: rows `length` to `length + w - 1`, whose numbers are their places in the cache.

    The first `length + w` entries of every column are those of `sort_keys` of so many rows, ties included; what follows means nothing.
    For a cache that grows: rows are collected and attended to exactly (`native_exact_attention`), and put in w at a time. `GrowingKeys`
    moves fewer entries, log2(n) instead of n / w for each, and has more than one run to search.

    Args:
      sorted_keys: `[d, capacity]`, of which the first `length` entries of every column count, such as those of `native_sort_keys` padded
        at the end. Donate it (`jax.jit(native_append_keys, donate_argnums=0)`), or it is copied first.
      key: the new rows, of the same type. Batches are `jax.vmap` over all but the length.
      length: rows so far; may be traced.

    Raises:
      ValueError: for another type, another number of columns, or more rows than the capacity.
      ValueError or jax.errors.JaxRuntimeError: when it runs, if there is no room for them.
      RuntimeError: if the native library is not there (`why_native_unavailable`).

    O(d (capacity + w log capacity)): most entries are moved, once.
    """
    check_key_type("sorted_keys.values", sorted_keys.values)
    (d, capacity), (w, columns) = sorted_keys.rows.shape, key.shape
    if key.dtype != sorted_keys.values.dtype or columns != d or w > capacity:
        wanted = f"{sorted_keys.values.dtype} [at most {capacity}, {d}]"
        raise ValueError(f"key: wanted {wanted}, as sorted_keys say, got {key.dtype} {list(key.shape)}")
    results = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in sorted_keys)
    operands = (*sorted_keys, jax.lax.stop_gradient(key), jnp.asarray(length, jnp.int32))
    return SortedKeys(*call_native("a3_append", results, *operands, in_place={0: 0, 1: 1}))


def check_key_type(name: str, key: Array) -> None:
    if key.dtype not in KEY_TYPES:
        raise ValueError(f"{name}: wanted float32 or bfloat16, got {key.dtype}")
