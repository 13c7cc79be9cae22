"""Attention of one query in C++: exact, and over the rows that A3 selects."""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from a3_jax.attention.exact import scale_query
from a3_jax.attention.validation import check_shapes
from a3_jax.candidates.iterations import resolve_iterations
from a3_jax.native.library import call_native
from a3_jax.native.sorting import check_key_type
from a3_jax.post_scoring import Percent, score_gap
from a3_jax.sorted_keys import SortedKeys

Isa: TypeAlias = Literal["portable", "avx2"]
Row = int | Int32[Array, ""]


class NativeInfo(NamedTuple):
    """What was selected for a query: numbers, no rows. Each as in `Info`."""

    lse: Float32[Array, ""]
    M: Int32[Array, ""]
    C: Int32[Array, ""]
    K: Int32[Array, ""]


def native_attention(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    value: Float[Array, "n dv"],
    sorted_keys: SortedKeys,
    *,
    num_iterations: Any,
    threshold_percent: Percent | None = None,
    scale: int | float | Float[Array, ""] = 1.0,
    length: Row | None = None,
    skip_heuristic: bool = True,
    max_iterations: int | None = None,
    isa: Isa | None = None,
) -> tuple[Float[Array, " dv"], NativeInfo]:
    """`approx_attention` on a CPU, reading no more than it must: ends of sorted columns, keys of candidates, values of kept rows.

    The candidates are those of `select_candidates`, bit for bit, with the row of the largest product where there are none. Their scores
    are float32 and may differ in the last bits from `approx_attention`'s, and so may a row be kept here and not there whose score is that
    close to the limit. Not differentiable. Batches are `jax.vmap`: keys that are not mapped are read in place, and the batch is shared out
    over XLA's threads; one query is one thread's.

    Args:
      query: any floats; computed in float32.
      key, value: float32 or bfloat16, both the same, finite.
      sorted_keys: of `native_sort_keys(key)` or `sort_keys(key)`; with `length` also of `merge_runs`.
      num_iterations, skip_heuristic, max_iterations: as for `greedy_scores`; a float counts `length` rows.
      threshold_percent: as for `approx_attention`.
      scale: multiplies the query, before the search too.
      length: only the first so many rows take part, whose entries stand first in the sorted columns; clamped to [0, n]. None is n.
        Rows since the last sort belong into `native_exact_attention`, and `merge_attention` adds the two up.
      isa: the instruction set to use, or None for the best that this processor has.

    Returns:
      The output in the type of the values, zeros where no row takes part; and what was selected.

    Raises:
      ValueError: as `approx_attention`; for other types of key and value.
      ValueError or jax.errors.JaxRuntimeError: when it runs, if sorted rows are out of range, or if this processor lacks `isa`.
      RuntimeError: if the native library is not there (`why_native_unavailable`).

    Under `jax.vmap` keys that are not mapped are read in place; but of bfloat16 ones under two, XLA makes a copy for every call.

    O(M + d log d + n + C d + K dv) time. Every thread keeps 16 n + 24 M bytes until it ends.
    """
    check_shapes(query, key, value, sorted_keys=sorted_keys)
    _check_types(key, value)
    check_key_type("sorted_keys.values", sorted_keys.values)
    if sorted_keys.values.dtype != key.dtype:
        raise ValueError(f"sorted_keys.values: wanted {key.dtype} as the keys, got {sorted_keys.values.dtype}")
    rows = jnp.int32(key.shape[0]) if length is None else _row(length, key.shape[0])
    count = _count_iterations(num_iterations, max_iterations, sorted_keys, rows)
    gap = jnp.float32(jnp.inf) if threshold_percent is None else jnp.asarray(score_gap(threshold_percent), jnp.float32)
    results = tuple(
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((value.shape[1],), jnp.float32), ((), jnp.float32), ((2,), jnp.int32))
    )
    output, lse, counts = call_native(
        "a3_attention",
        results,
        scale_query(query, scale).astype(jnp.float32),
        key,
        value,
        *sorted_keys,
        count,
        rows,
        gap,
        skip_heuristic=skip_heuristic,
        isa=isa or "",
    )
    return output.astype(value.dtype), NativeInfo(lse, count, counts[0], counts[1])


def native_candidates(
    query: Float[Array, " d"],
    sorted_keys: SortedKeys,
    *,
    num_iterations: Any,
    length: Row | None = None,
    skip_heuristic: bool = True,
    max_iterations: int | None = None,
    isa: Isa | None = None,
) -> Bool[Array, " n"]:
    """The candidates of `native_attention`: those of `select_candidates`, or the row of the largest product where there are none.

    Arguments, errors and cost as there.
    """
    d, n = sorted_keys.rows.shape
    if list(query.shape) != [d]:
        raise ValueError(f"query: wanted [{d}], as sorted_keys say, got {list(query.shape)}; batches are jax.vmap")
    check_key_type("sorted_keys.values", sorted_keys.values)
    rows = jnp.int32(n) if length is None else _row(length, n)
    count = _count_iterations(num_iterations, max_iterations, sorted_keys, rows)
    return call_native(
        "a3_candidates",
        jax.ShapeDtypeStruct((n,), jnp.bool_),
        query.astype(jnp.float32),
        *sorted_keys,
        count,
        rows,
        skip_heuristic=skip_heuristic,
        isa=isa or "",
    )


def native_exact_attention(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    value: Float[Array, "n dv"],
    *,
    scale: int | float | Float[Array, ""] = 1.0,
    first: Row = 0,
    last: Row | None = None,
    isa: Isa | None = None,
) -> tuple[Float[Array, " dv"], Float32[Array, ""]]:
    """`exact_attention` over rows [first, last), and its log of the sum of exponentials: what `native_attention` has to beat.

    One pass over keys and values, which queries that share them under `jax.vmap` make together.

    Args:
      first, last: the rows that take part, clamped to [0, n]; may be traced.
      query, key, value, scale, isa: as for `native_attention`.

    Returns:
      The output in the type of the values, and the log; zeros and -inf without rows.

    Raises:
      ValueError, jax.errors.JaxRuntimeError or RuntimeError: as `native_attention`.

    Time: that of reading the rows once.
    """
    check_shapes(query, key, value)
    _check_types(key, value)
    n = key.shape[0]
    results = (jax.ShapeDtypeStruct((value.shape[1],), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32))
    start, end = _row(first, n), jnp.int32(n) if last is None else _row(last, n)
    scaled = scale_query(query, scale).astype(jnp.float32)
    output, lse = call_native("a3_exact", results, scaled, key, value, start, end, isa=isa or "")
    return output.astype(value.dtype), lse


def _row(row: Row, num_rows: int) -> Int32[Array, ""]:
    return jnp.clip(jnp.asarray(row, jnp.int32), 0, num_rows)


def _count_iterations(
    num_iterations: Any, max_iterations: int | None, keys: SortedKeys, rows: Int32[Array, ""]
) -> Int32[Array, ""]:
    num_columns, num_rows = keys.rows.shape
    return resolve_iterations(
        num_iterations, max_iterations=max_iterations, num_rows=num_rows, num_columns=num_columns, num_valid=rows
    ).count


def _check_types(key: Array, value: Array) -> None:
    check_key_type("key", key)
    if value.dtype != key.dtype:
        raise ValueError(f"value: wanted {key.dtype} as the keys, got {value.dtype}")
