"""A3's candidates of whole heads, found on the host: the same rows as `select_candidates` gives, at a tenth of the time."""

import math
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Int32, Shaped

from a3_jax.workloads.search_kernel import search_rows

Share = int | float

# As `select_candidates` reads a float: the nearest fraction with a small denominator.
_LARGEST_DENOMINATOR = 10**6


def iterations_of(share: Share, *, num_rows: int, num_columns: int) -> int:
    """M: an int as it is, a float as a fraction of the rows, at least 1; at most rows times columns. ValueError unless it is positive."""
    if not 0 < share < math.inf:
        raise ValueError(f"M: wanted a number of iterations or a fraction of the rows above 0, got {share}")
    exact = Fraction(share).limit_denominator(_LARGEST_DENOMINATOR)
    wanted = share if isinstance(share, int) else max(1, math.ceil(num_rows * exact))
    return min(int(wanted), num_rows * num_columns)


def search_heads(
    query: Shaped[np.ndarray, "heads queries d"],
    key: Shaped[np.ndarray, "heads n d"],
    *,
    num_iterations: int | Int32[np.ndarray, " queries"],
    ranges: Int32[np.ndarray, "queries 2"] | None = None,
    skip_heuristic: bool = True,
) -> Bool[np.ndarray, "heads queries n"]:
    """The candidates of every query among the keys of its head; where no greedy score is above 0, the row of the largest product.

    Args:
      query, key: both float32 or both int32, finite; integers and their sums of M products must stay within int32.
      num_iterations: M, from 1 to n d, of all queries or of each.
      ranges: the rows that take part for each query, from the first number to before the second, at least one; all with None.

    Sorting takes O(n d log n) a head, a query O(d + M log d + n). ValueError for other types, another M, or no rows.
    """
    if query.dtype != key.dtype or key.dtype not in (np.float32, np.int32):
        raise ValueError(f"query and key: wanted both float32 or both int32, got {query.dtype} and {key.dtype}")
    heads, num_rows, num_columns = key.shape
    num_queries = query.shape[1]
    if ranges is None:
        ranges = np.tile(np.array([[0, num_rows]], np.int32), (num_queries, 1))
    if not ((ranges[:, 0] >= 0) & (ranges[:, 0] < ranges[:, 1]) & (ranges[:, 1] <= num_rows)).all():
        raise ValueError(f"ranges: wanted at least one row of {num_rows} for every query, got {ranges.tolist()}")
    iterations = np.broadcast_to(np.asarray(num_iterations, np.int32), num_queries)
    most = (ranges[:, 1] - ranges[:, 0]) * num_columns
    if not ((iterations >= 1) & (iterations <= most)).all():
        raise ValueError(f"num_iterations: wanted 1 to n d = {most.min()}, got {num_iterations}")
    lowest = np.float32(-np.inf) if key.dtype == np.float32 else np.iinfo(np.int32).min
    candidates = np.empty((heads, num_queries, num_rows), bool)
    for head in range(heads):
        values, rows = _sorted_columns(key[head])
        queries = np.ascontiguousarray(query[head])
        search_rows(queries, values, rows, lowest, iterations, ranges, skip_heuristic, candidates[head])
    return candidates


def _sorted_columns(key: Shaped[np.ndarray, "n d"]) -> tuple[Shaped[np.ndarray, "d n"], Int32[np.ndarray, "d n"]]:
    """As `sort_keys`: equal values in ascending order of their rows."""
    columns = np.ascontiguousarray(key.T)
    rows = np.argsort(columns, axis=1, kind="stable").astype(np.int32)
    return np.take_along_axis(columns, rows, axis=1), rows
