"""The loop of the candidate selector, compiled. Importing this module imports numba, which takes a second."""

import numpy as np
from jaxtyping import Bool, Int8, Int32, Shaped

from a3_jax.compilation import compiled

MAX, MIN = 0, 1


@compiled
def run_selector(
    query: Shaped[np.ndarray, " d"],
    values: Shaped[np.ndarray, "d n"],
    rows: Int32[np.ndarray, "d n"],
    valid: Bool[np.ndarray, " n"],
    depth: int,
    latency: int,
    skips: bool,
    num_iterations: int,
    scores: Shaped[np.ndarray, " n"],
    popped_rows: Int32[np.ndarray, "2 M"],
    popped_columns: Int32[np.ndarray, "2 M"],
    popped_values: Shaped[np.ndarray, "2 M"],
    cycles: Int32[np.ndarray, " M"],
    stalls: Int32[np.ndarray, "2 M"],
    failed: Int8[np.ndarray, "1"],
) -> None:
    """One query, its first iteration at cycle 0. Everything from `scores` on is written.

    The two sides are `MAX` and `MIN`. A column's queue holds its next `depth` products in the order of traversal; the product that
    takes the place of one popped at cycle t can be compared from t + latency on.
    """
    d, n = values.shape
    place = np.empty((2, d), np.int64)  # of the head of the queue, in the sorted column; -1 or n: the column is used up
    head = np.empty((2, d), values.dtype)
    direction = np.empty((2, d), np.int64)
    taken = np.zeros((2, d), np.int64)  # pops of the column
    arrival = np.zeros((2, d, depth), np.int64)  # when the product at a place of the circular queue can be compared
    ready = np.zeros(2, np.int64)  # when all heads of a side can be compared
    for side in range(2):
        for column in range(d):
            downwards = (query[column] > 0) == (side == MAX)
            direction[side, column] = -1 if downwards else 1
            place[side, column] = n - 1 if downwards else 0
            place[side, column] = _next_valid(place[side, column], direction[side, column], rows[column], valid)
            if 0 <= place[side, column] < n:
                head[side, column] = values[column, place[side, column]] * query[column]
    # Sums of each sign by themselves: how floats are rounded then does not depend on which minimum comes before which maximum.
    sums = np.zeros((2, n), scores.dtype)
    positive = query[0] - query[0]
    negative = query[0] - query[0]
    now = 0
    for iteration in range(num_iterations):
        issue = max(now, ready[MAX])
        stalls[MAX, iteration] = issue - now
        now = issue
        for side in range(2):
            if side == MIN:
                if skips and positive < -negative:
                    popped_rows[MIN, iteration] = popped_columns[MIN, iteration] = -1
                    popped_values[MIN, iteration] = 0
                    stalls[MIN, iteration] = 0
                    break
                issue = max(now, ready[MIN])
                stalls[MIN, iteration] = issue - now
                if issue > now:
                    # The iteration takes both entries in one cycle: the max side waits too, so that its refill starts later.
                    column = popped_columns[MAX, iteration]
                    arrival[MAX, column, (taken[MAX, column] - 1) % depth] += issue - now
                    now = issue
            best = -1
            for column in range(d):
                if 0 <= place[side, column] < n:
                    product = head[side, column]
                    if (
                        best < 0
                        or (side == MAX and product > head[side, best])
                        or (side == MIN and product < head[side, best])
                    ):
                        best = column
            if best < 0:
                failed[0] = 1
                return
            product = head[side, best]
            row = rows[best, place[side, best]]
            popped_rows[side, iteration] = row
            popped_columns[side, iteration] = best
            popped_values[side, iteration] = product
            if side == MAX and product > 0:
                sums[MAX, row] += product
                positive += product
            if side == MIN and product < 0:
                sums[MIN, row] += product
                negative += product
            arrival[side, best, taken[side, best] % depth] = now + latency
            taken[side, best] += 1
            place[side, best] = _next_valid(
                place[side, best] + direction[side, best], direction[side, best], rows[best], valid
            )
            if 0 <= place[side, best] < n:
                head[side, best] = values[best, place[side, best]] * query[best]
        for side in range(2):
            column = popped_columns[side, iteration]
            if column >= 0 and 0 <= place[side, column] < n:
                ready[side] = max(ready[side], arrival[side, column, taken[side, column] % depth])
        cycles[iteration] = now
        now += 1
    scores[:] = sums[MAX] + sums[MIN]


@compiled
def _next_valid(place: int, direction: int, rows: Int32[np.ndarray, " n"], valid: Bool[np.ndarray, " n"]) -> int:
    """The first place from here on whose row is valid: masked rows are as good as not there."""
    while 0 <= place < rows.size and not valid[rows[place]]:
        place += direction
    return place


@compiled
def run_scan(candidates: Bool[np.ndarray, " n"], width: int, cycles: Int32[np.ndarray, " n"]) -> int:
    """Cycles of the scan; `cycles` gets the one in which a row is sent on, -1 for the others.

    A cycle looks at up to `width` entries from where the last one ended, and ends at the first candidate.
    """
    n = candidates.size
    cycles[:] = -1
    position = 0
    now = 0
    while position < n:
        end = min(position + width, n)
        while position < end:
            position += 1
            if candidates[position - 1]:
                cycles[position - 1] = now
                break
        now += 1
    return now
