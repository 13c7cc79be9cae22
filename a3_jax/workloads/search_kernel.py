"""The search of many queries over their sorted keys, compiled. Importing this module imports numba, which takes a second.

One query of 300 keys takes some ten microseconds here and some hundred in the forms of `a3_jax.candidates`, which are JAX: a trained
encoder asks twenty thousand for every passage.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Shaped

from a3_jax.compilation import compiled


@compiled
def _next_place(rows: Int32[np.ndarray, " n"], at: int, step: int, first: int, stop: int) -> int:
    """The place itself or the next one with a row of the range; outside the column where there is none."""
    while 0 <= at < len(rows) and not first <= rows[at] < stop:
        at += step
    return at


@compiled
def search_rows(
    queries: Shaped[np.ndarray, "queries d"],
    values: Shaped[np.ndarray, "d n"],
    rows: Int32[np.ndarray, "d n"],
    lowest: Any,
    num_iterations: Int32[np.ndarray, " queries"],
    ranges: Int32[np.ndarray, "queries 2"],
    skips: bool,
    candidates: Bool[np.ndarray, "queries n"],
) -> None:
    """Writes `candidates`: rows with a greedy score above 0, or else that of the largest product.

    A query's rows are those from the first number of its range to before the second, at least one; others are passed over.
    The pops are found in a tournament of the columns, by side; an entry of the second side is its product negated. `lowest` stands where
    a column is used up, in the type of the products.
    """
    d, n = values.shape
    leaves = 1
    while leaves < d:
        leaves *= 2
    winner = np.zeros((2, 2 * leaves), np.int64)
    head = np.empty((2, leaves), values.dtype)
    place = np.zeros((2, d), np.int64)
    step = np.zeros((2, d), np.int64)
    sums = np.zeros((2, n), values.dtype)
    for number in range(len(queries)):
        query, first, stop = queries[number], ranges[number, 0], ranges[number, 1]
        passes_over = first > 0 or stop < n
        sums[:] = 0
        gained, lost = sums[0, 0], sums[1, 0]
        for side in range(2):
            head[side, :] = lowest
            for column in range(d):
                downwards = (query[column] > 0) == (side == 0)
                step[side, column] = -1 if downwards else 1
                at = n - 1 if downwards else 0
                if passes_over:
                    at = _next_place(rows[column], at, step[side, column], first, stop)
                place[side, column] = at
                factor = query[column] if side == 0 else -query[column]
                head[side, column] = values[column, at] * factor
            for leaf in range(leaves):
                winner[side, leaves + leaf] = leaf
            for node in range(leaves - 1, 0, -1):
                left, right = winner[side, 2 * node], winner[side, 2 * node + 1]
                winner[side, node] = left if head[side, left] >= head[side, right] else right
        column = winner[0, 1]
        first_row = rows[column, place[0, column]]
        for _ in range(num_iterations[number]):
            for side in range(2):
                column = winner[side, 1]
                product = head[side, column]
                if side == 1 and skips and gained < lost:
                    break
                if product > 0:
                    sums[side, rows[column, place[side, column]]] += product
                    if side == 0:
                        gained += product
                    else:
                        lost += product
                at = place[side, column] + step[side, column]
                if passes_over:
                    at = _next_place(rows[column], at, step[side, column], first, stop)
                place[side, column] = at
                factor = query[column] if side == 0 else -query[column]
                head[side, column] = values[column, at] * factor if 0 <= at < n else lowest
                node = (leaves + column) // 2
                while node:
                    left, right = winner[side, 2 * node], winner[side, 2 * node + 1]
                    winner[side, node] = left if head[side, left] >= head[side, right] else right
                    node //= 2
        found = False
        for row in range(n):
            candidates[number, row] = sums[0, row] - sums[1, row] > 0
            found = found or candidates[number, row]
        if not found:
            candidates[number, first_row] = True
