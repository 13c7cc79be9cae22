"""A3's selection written from the paper's pseudo-code (HPCA 2020, figure 7), with heaps and pointers, one product at a time."""

import heapq
from typing import Any

import numpy as np


def greedy_oracle(
    query: np.ndarray,
    key: np.ndarray,
    num_iterations: int,
    *,
    mask: np.ndarray | None = None,
    skip_heuristic: bool = True,
) -> tuple[np.ndarray, int]:
    """Greedy scores, and the row of the first max pop (-1 without rows), in the arithmetic of the arrays' type.

    The pseudo-code adds to one register a row, and keeps one running sum; here max pops and min pops have one each, which is the same
    but for the rounding of floats (`tests` compare with one register where nothing is rounded).
    """
    rows = np.arange(len(key)) if mask is None else np.flatnonzero(mask)
    scores = np.zeros((2, len(key)), key.dtype)
    if not len(rows):
        return scores[0], -1
    # Ascending, of equal values the lower row first: list.sort is stable.
    columns = [
        sorted(((key[row, j], int(row)) for row in rows), key=lambda entry: entry[0]) for j in range(key.shape[1])
    ]
    pointers = [_pointers(query, len(rows), largest) for largest in (True, False)]
    heaps: list[list[Any]] = [[], []]
    for side, sign in ((0, -1), (1, 1)):
        for j in range(len(query)):
            _push(heaps[side], columns, pointers[side], query, j, sign)
    first_row = heaps[0][0][2]
    totals = np.zeros(2, key.dtype)
    for _ in range(num_iterations):
        if not heaps[0]:
            break
        for side, sign in ((0, -1), (1, 1)):
            if side == 1 and skip_heuristic and totals[0] < -totals[1]:
                continue
            product, column, row = heapq.heappop(heaps[side])
            product = product * sign
            if product * sign < 0:
                scores[side, row] += product
                totals[side] += product
            step = -1 if (query[column] > 0) == (side == 0) else 1
            pointers[side][column] += step
            _push(heaps[side], columns, pointers[side], query, column, sign)
    return scores[0] + scores[1], first_row


def greedy_one_register(
    query: np.ndarray, key: np.ndarray, num_iterations: int, *, skip_heuristic: bool = True
) -> np.ndarray:
    """The naive search of section IV-B: all products sorted, one register a row, one running sum."""
    products = key * query
    # Of equal products: the lowest column, and in it the order of the pointer.
    by_place = {}
    for j in range(key.shape[1]):
        ascending = sorted(range(len(key)), key=lambda row: key[row, j])
        for rank, row in enumerate(ascending):
            by_place[row, j] = (len(key) - 1 - rank if query[j] > 0 else rank), rank
    entries = list(by_place)
    largest = sorted(entries, key=lambda entry: (-products[entry], entry[1], by_place[entry][0]))
    smallest = sorted(entries, key=lambda entry: (products[entry], entry[1], len(key) - 1 - by_place[entry][0]))
    scores, total, used = np.zeros(len(key), key.dtype), key.dtype.type(0), 0
    for iteration in range(min(num_iterations, len(entries))):
        entry = largest[iteration]
        if products[entry] > 0:
            scores[entry[0]] += products[entry]
            total += products[entry]
        if skip_heuristic and total < 0:
            continue
        entry = smallest[used]
        used += 1
        if products[entry] < 0:
            scores[entry[0]] += products[entry]
            total += products[entry]
    return scores


def _pointers(query: np.ndarray, num_rows: int, largest: bool) -> list[int]:
    return [num_rows - 1 if (component > 0) == largest else 0 for component in query]


def _push(heap: list[Any], columns: list[Any], pointers: list[int], query: np.ndarray, j: int, sign: int) -> None:
    """The next entry of a column, unless its pointer has run off. The lowest column leads among equal products."""
    if 0 <= pointers[j] < len(columns[j]):
        value, row = columns[j][pointers[j]]
        heapq.heappush(heap, (value * query[j] * sign, j, row))
