"""Sorted keys of a cache that grows by a row at a time: sorted runs, merged now and then. Not in the paper, which sorts once.

Rows are collected until there are `run_length` of them; these are sorted by column, a run. Two runs of equal length are merged at
once, as a binary counter carries, so that there are at most `log2(n / run_length) + 1` runs, each twice as long as the next or longer
(log-structured merge; the "logarithmic method" of Bentley and Saxe 1980). Rows of an older run are all lower than those of a newer one.

With n rows and runs of length b, an entry is sorted once and merged at most `log2(n / b)` times: `merge_work` counts. Sorting all rows
again for every row that is added would move n entries of a column each time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.sorted_keys import SortedKeys, sort_keys


class GrowingKeys(NamedTuple):
    """Sorted runs of the keys so far, and the rows since the last run. Sizes never change: `capacity` and `run_length` are shapes.

    The following hold, with m = length // run_length:
      * entries `[0, m * run_length)` of a column are runs, one for each 1 in the binary digits of m, the longest first: a 1 worth w is
        a run of `w * run_length` entries. It is sorted as `SortedKeys` are, and holds the rows whose numbers are its places.
      * `pending[: length % run_length]` are the rows since.

    To `jax.vmap` over heads, share the length: `GrowingKeys(0, 0, 0, None)` as axes. A batched one makes every append pay for all merges.
    """

    values: Real[Array, "d capacity"]
    rows: Int32[Array, "d capacity"]
    pending: Real[Array, "run_length d"]
    length: Int32[Array, ""]


def grow_keys(key: Real[Array, "n d"], *, capacity: int, run_length: int = 128) -> GrowingKeys:
    """Sorted runs of the rows that there are at first, such as those of a prompt; none will do.

    Args:
      capacity: the most rows that there will be, a multiple of `run_length`.
      run_length: rows that are collected before they are sorted.

    Raises:
      ValueError: if the capacity is no multiple of the run length, or smaller than n.

    O(n d log n).
    """
    num_rows, dim = key.shape
    if run_length < 1 or capacity < 1 or capacity % run_length:
        raise ValueError(f"capacity: wanted a multiple of the run length, at least 1, got {capacity} and {run_length}")
    if num_rows > capacity:
        raise ValueError(f"capacity: wanted at least the {num_rows} rows that there are, got {capacity}")
    num_runs = num_rows // run_length
    runs, start = [], 0
    for level in reversed(range(num_runs.bit_length())):
        if num_runs >> level & 1:
            end = start + (run_length << level)
            runs.append(_run_of(key[start:end], start))
            start = end
    padding = jnp.zeros((dim, capacity - start), key.dtype)
    runs.append(SortedKeys(padding, padding.astype(jnp.int32)))
    values, rows = (jnp.concatenate(arrays, axis=1) for arrays in zip(*runs, strict=True))
    pending = jnp.zeros((run_length, dim), key.dtype).at[: num_rows - start].set(key[start:])
    return GrowingKeys(values, rows, jax.lax.stop_gradient(pending), jnp.int32(num_rows))


def append_key(keys: GrowingKeys, key: Real[Array, " d"]) -> GrowingKeys:
    """Adds a row, whose number is the length so far. Where there is no room, nothing changes.

    O(d) for most rows, if the argument is donated (`jax.jit(append_key, donate_argnums=0)`) or this is in a loop. Every
    `run_length`-th row sorts a run, and merges as many as it completes: `merge_work` entries of every column for all rows together, each
    found by binary search.
    """
    capacity, run_length = keys.values.shape[1], keys.pending.shape[0]
    has_room, place = keys.length < capacity, keys.length % run_length
    key = jax.lax.stop_gradient(key).astype(keys.pending.dtype)
    pending = keys.pending.at[jnp.where(has_room, place, run_length)].set(key, mode="drop")
    keys = keys._replace(pending=pending, length=keys.length + has_room)
    completes = has_room & (place == run_length - 1)
    keys = _once(completes, _sort_pending, keys)
    # As many runs are merged with the new one as the binary digits of the number of runs end in 0s.
    num_runs = keys.length // run_length
    for level in range(1, _num_levels(capacity, run_length)):
        keys = _once(completes & (num_runs % (1 << level) == 0), _merge_last(level), keys)
    return keys


def merge_runs(keys: GrowingKeys) -> SortedKeys:
    """The sorted keys of all rows, as `sort_keys` gives them, ties included.

    Every column has `capacity` entries: those of rows that are not there yet stand last, with the largest value of the type (infinite
    for floats). Search with `mask=filled_rows(keys)`. One copy serves all queries of a grouped head.

    O(d capacity) entries moved, each found by binary search, instead of a sort. A search may also go through the runs one by one, as d
    columns each; the forms here want one.
    """
    capacity, run_length = keys.values.shape[1], keys.pending.shape[0]
    num_runs, num_pending = keys.length // run_length, keys.length % run_length
    largest = _largest(keys.values.dtype)
    present = jnp.arange(run_length, dtype=jnp.int32) < num_pending
    merged = _run_of(jnp.where(present[:, None], keys.pending, largest), num_runs * run_length)
    for level in range(_num_levels(capacity, run_length)):
        start, size = (num_runs >> (level + 1) << (level + 1)) * run_length, run_length << level
        run = _slice(keys, start, size)
        there, together = (num_runs >> level & 1) == 1, _merge(run, merged)
        padded = jnp.concatenate([merged.values, jnp.full_like(run.values, largest)], axis=1)
        rows = jnp.concatenate([merged.rows, run.rows], axis=1)
        merged = SortedKeys(jnp.where(there, together.values, padded), jnp.where(there, together.rows, rows))
    values, rows = (array[:, :capacity] for array in merged)
    # What stands behind the rows that there are is what `sort_keys` would put there.
    position = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 1)
    there = position < keys.length
    return SortedKeys(jnp.where(there, values, largest), jnp.where(there, rows, position))


def filled_rows(keys: GrowingKeys) -> Bool[Array, " capacity"]:
    """The rows that there are."""
    return jnp.arange(keys.rows.shape[-1], dtype=jnp.int32) < keys.length


def merge_work(num_rows: int, *, run_length: int = 128) -> int:
    """Entries of each column that sorts and merges write while rows are appended, from none to `num_rows`.

    For n rows, n / run_length a power of two, it is `n (1 + log2(n / run_length))`.
    """
    runs = num_rows // run_length
    written, size = runs * run_length, 2
    while size <= runs:
        written += runs // size * size * run_length
        size *= 2
    return written


def _num_levels(capacity: int, run_length: int) -> int:
    return (capacity // run_length).bit_length()


def _largest(dtype: jnp.dtype) -> Array:
    return jnp.array(jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max, dtype)


def _run_of(key: Real[Array, "n d"], first_row: int | Int32[Array, ""]) -> SortedKeys:
    values, rows = sort_keys(key)
    return SortedKeys(values, rows + first_row)


def _slice(keys: GrowingKeys, start: Int32[Array, ""], size: int) -> SortedKeys:
    return SortedKeys(*(jax.lax.dynamic_slice_in_dim(array, start, size, axis=1) for array in keys[:2]))


def _once(when: Bool[Array, ""], change: Callable[[GrowingKeys], GrowingKeys], keys: GrowingKeys) -> GrowingKeys:
    """The keys changed, or as they are. Of a loop XLA keeps the arrays in place; of a conditional it copies them."""

    def step(state: tuple[Array, GrowingKeys]) -> tuple[Array, GrowingKeys]:
        return jnp.zeros_like(state[0]), change(state[1])

    return jax.lax.while_loop(lambda state: state[0], step, (when, keys))[1]


def _sort_pending(keys: GrowingKeys) -> GrowingKeys:
    start = keys.length - keys.pending.shape[0]
    return _write(keys, _run_of(keys.pending, start), start)


def _merge_last(level: int) -> Callable[[GrowingKeys], GrowingKeys]:
    """Makes the last two runs, of `run_length << (level - 1)` entries each, one."""

    def merge_last(keys: GrowingKeys) -> GrowingKeys:
        size = keys.pending.shape[0] << (level - 1)
        start = keys.length - 2 * size
        return _write(keys, _merge(_slice(keys, start, size), _slice(keys, start + size, size)), start)

    return merge_last


def _write(keys: GrowingKeys, run: SortedKeys, start: Int32[Array, ""]) -> GrowingKeys:
    values, rows = (
        jax.lax.dynamic_update_slice_in_dim(array, piece, start, axis=1)
        for array, piece in zip(keys[:2], run, strict=True)
    )
    return keys._replace(values=values, rows=rows)


def _merge(first: SortedKeys, second: SortedKeys) -> SortedKeys:
    """Two runs as one; of equal values those of the first, whose rows are lower, stand first.

    An entry goes behind as many as stand before it in both runs.
    """

    def merge_column(first: SortedKeys, second: SortedKeys) -> SortedKeys:
        size, other = first.rows.shape[0], second.rows.shape[0]
        of_first = jnp.arange(size, dtype=jnp.int32) + _count_below(second.values, first.values, "left")
        of_second = jnp.arange(other, dtype=jnp.int32) + _count_below(first.values, second.values, "right")
        places = jnp.concatenate([of_first, of_second])
        return jax.tree.map(
            lambda one, two: jnp.zeros(size + other, one.dtype).at[places].set(jnp.concatenate([one, two])),
            first,
            second,
        )

    return jax.vmap(merge_column)(first, second)


def _count_below(ascending: Real[Array, " n"], values: Real[Array, " m"], side: str) -> Int32[Array, " m"]:
    return jnp.searchsorted(ascending, values, side=side).astype(jnp.int32)
