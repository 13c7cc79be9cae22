"""Keys sorted by column in C++: all of them, or new ones merged in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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


def native_merge_keys(first: SortedKeys, second: SortedKeys) -> SortedKeys:
    """The sorted keys of all rows: those of `first`, then those of `second`, whose numbers are counted on.

    The same as `sort_keys` of both, ties included. Made for a second that is short beside the first, such as the rows of a window that have
    become too many: what lies between two of its values is copied in one go.

    Args:
      first, second: `[d, n]` and `[d, w]`, float32 or bfloat16, both the same. Batches are `jax.vmap`.

    Raises:
      ValueError: for another type, or columns that are not as many.
      RuntimeError: if the native library is not there (`why_native_unavailable`).

    O(d (n + w log n)): every entry is copied.
    """
    check_key_type("first.values", first.values)
    if first.values.dtype != second.values.dtype or first.rows.shape[0] != second.rows.shape[0]:
        pairs = [(str(keys.values.dtype), list(keys.values.shape)) for keys in (first, second)]
        raise ValueError(f"first and second: wanted as many columns of one type, got {pairs[0]} and {pairs[1]}")
    d, n = first.rows.shape
    shape = (d, n + second.rows.shape[1])
    results = (jax.ShapeDtypeStruct(shape, first.values.dtype), jax.ShapeDtypeStruct(shape, jnp.int32))
    return SortedKeys(*call_native("a3_merge", results, *first, *second))


def check_key_type(name: str, key: Array) -> None:
    if key.dtype not in KEY_TYPES:
        raise ValueError(f"{name}: wanted float32 or bfloat16, got {key.dtype}")
