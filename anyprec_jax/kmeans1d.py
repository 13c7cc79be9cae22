"""Weighted one-dimensional clustering of the rows of a matrix: sorting, the optimal seed, centroids, codes.

On a line the best clusters are intervals, so a clustering is a list of borders in the sorted row. Everything here runs on the host,
row by row on one thread, compiled by numba and free of the interpreter lock: callers may spread rows over threads. Importing this
module imports numba.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8

_MASS_BITS = 46  # of a row's total mass: prefix sums stay exact in float64, and so do their differences
_SIGN = np.uint32(1 << 31)
_DIGIT_BITS = 11  # three passes sort 32 bits
_DIGIT = np.uint64((1 << _DIGIT_BITS) - 1)
_GRID_SPACING = 24  # values between the borders of the coarse partition that bounds the optimum
_FEW = 8  # candidates that are not worth a vectorised loop
_SLACK = 2.0**-40  # of a row's squared error: far above rounding, far below what would rule out fewer prefixes


def compiled(function: Callable[..., Any]) -> Any:
    """`numba.njit` with IEEE arithmetic and without the lock, kept on disk between runs where numba finds a folder it may write to.

    Keep functions that call each other in one file: numba compiles again when the file of the caller changed, not the callee's.
    """
    source = inspect.unwrap(function)  # a type checker may have wrapped it
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(source)
    except RuntimeError:  # there is no such folder
        return numba.njit(nogil=True, error_model="numpy")(source)


class SortedRows(NamedTuple):
    """The distinct weights of every row in ascending order, and how much each of them counts.

    With m = counts[r]: values[r, :m] ascend strictly, value i has mass cumulative[r, i + 1] - cumulative[r, i], a whole number of at
    least 1, and weights[r, c] == values[r, ranks[r, c]]. Beyond m, values and cumulative are unspecified.
    """

    values: Float32[np.ndarray, "n k"]
    cumulative: Float64[np.ndarray, "n k+1"]
    ranks: Int32[np.ndarray, "n k"]
    counts: Int32[np.ndarray, " n"]


class Clusters(NamedTuple):
    """A partition of every sorted row into intervals: cluster c of row r holds values[r, borders[r, c] : borders[r, c + 1]]."""

    borders: Int32[np.ndarray, "n clusters+1"]
    centroids: Float64[np.ndarray, "n clusters"]


def sort_rows(weights: Float32[np.ndarray, "n k"], sensitivity: Float32[np.ndarray, "n k"]) -> SortedRows:
    """Sorts each row, merges equal weights and turns sensitivities into masses.

    A mass is the sensitivity scaled by a power of two, so that the row's total is about 2**46, rounded to a whole number and at
    least 1. So only ratios within a row count, whatever their scale; a weight of zero sensitivity has a mass too, too small to
    move a border that any sensitivity decides, and large enough to place borders among weights of zero sensitivity; and sums
    of masses are exact in any order. In a row of zeros all masses are equal.

    Args:
      weights: finite.
      sensitivity: finite, at least 0.

    Time O(n k).
    """
    n, k = weights.shape
    rows = SortedRows(
        values=np.empty((n, k), np.float32),
        cumulative=np.empty((n, k + 1), np.float64),
        ranks=np.empty((n, k), np.int32),
        counts=np.empty(n, np.int32),
    )
    _sort_rows(np.ascontiguousarray(weights), np.ascontiguousarray(sensitivity), *rows)
    return rows


def seed_clusters(rows: SortedRows, *, precision: int) -> Clusters:
    """The clustering of each row into 2**precision intervals that minimises the sum of mass * (value - centroid)**2.

    A global optimum, by dynamic programming; Any-Precision LLM section 3.2 (upstream: k-means++ and Lloyd, a local one). Which of equally
    good borders is taken is the same every time. A row of fewer distinct values than clusters gets one cluster for each; those left over
    are empty, come last and repeat the largest value.

    Time O(2**precision * k log k) a row, memory 4 * 2**precision * k bytes a thread.
    """
    borders = np.empty((len(rows.counts), 2**precision + 1), np.int32)
    _seed_borders(rows.values, rows.cumulative, rows.counts, borders)
    largest = np.take_along_axis(rows.values, rows.counts[:, None] - 1, axis=1).astype(np.float64)
    return Clusters(borders, centroids(rows, borders, np.repeat(largest, 2**precision, axis=1)))


def centroids(
    rows: SortedRows, borders: Int32[np.ndarray, "n borders"], inherited: Float64[np.ndarray, "n clusters"]
) -> Float64[np.ndarray, "n clusters"]:
    """The mass-weighted mean of every cluster; an empty cluster's is `inherited`."""
    means = inherited.copy()
    _means(rows.values, rows.cumulative, borders, means)
    return means


def codes(rows: SortedRows, clusters: Clusters) -> UInt8[np.ndarray, "n k"]:
    """The cluster of every weight, in the order of the columns; at most 256 clusters."""
    result = np.empty(rows.ranks.shape, np.uint8)
    _codes(rows.ranks, clusters.borders, result)
    return result


@compiled
def _sort_rows(weights, sensitivity, values, cumulative, ranks, counts):
    for row in range(len(weights)):
        counts[row] = _sort_row(weights[row], sensitivity[row], values[row], cumulative[row], ranks[row])


@compiled
def _sort_row(weights, sensitivity, values, cumulative, ranks):
    """Fills values, cumulative and ranks; returns how many values are distinct."""
    scale = _mass_scale(sensitivity)
    count = 0
    total = 0
    last = np.float32(np.nan)
    cumulative[0] = 0.0
    for item in _sorted_items(weights):
        column = np.uint32(item)
        weight = weights[column] + np.float32(0.0)  # -0.0 becomes 0.0
        if weight != last:
            values[count] = last = weight
            count += 1
        total += max(1, np.int64(sensitivity[column] * scale + 0.5))
        cumulative[count] = total
        ranks[column] = count - 1
    return count


@compiled
def _sorted_items(weights):
    """Radix sort of a float32 row: the columns in the lower halves, above them keys that compare as the weights do."""
    bits = weights.view(np.uint32)
    items = np.empty(len(bits), np.uint64)
    varying = np.uint64(0)
    for i in range(len(bits)):
        key = np.uint32(0) - bits[i] if bits[i] & _SIGN else bits[i] | _SIGN  # equal for 0.0 and -0.0
        items[i] = np.uint64(key) << np.uint64(32) | np.uint64(i)
        varying |= items[i] ^ items[0]
    for shift in range(32, 64, _DIGIT_BITS):
        if varying >> np.uint64(shift) & _DIGIT:  # the last digits of weights that were 16-bit once do not vary
            items = _sort_by_digit(items, np.uint64(shift))
    return items


@compiled
def _sort_by_digit(items, shift):
    slots = np.zeros(_DIGIT + 1, np.int32)
    for item in items:
        slots[item >> shift & _DIGIT] += 1
    taken = 0
    for digit in range(len(slots)):
        size = slots[digit]
        slots[digit] = taken
        taken += size
    result = np.empty_like(items)
    for item in items:
        digit = item >> shift & _DIGIT
        result[slots[digit]] = item
        slots[digit] += 1
    return result


@compiled
def _mass_scale(sensitivity):
    """The power of two that brings a row's total to [2**45, 2**46); 0 for a row of zeros."""
    total = 0.0
    for f in sensitivity:
        total += f
    return 2.0 ** (_MASS_BITS - math.frexp(total)[1]) if total > 0.0 else 0.0


@compiled
def _means(values, cumulative, borders, means):
    for row in range(len(means)):
        _row_means(values[row], cumulative[row], borders[row], means[row])


@compiled
def _row_means(values, cumulative, borders, means):
    for c in range(len(means)):
        if borders[c] < borders[c + 1]:
            means[c] = _mean(values, cumulative, borders[c], borders[c + 1])


@compiled
def _mean(values, cumulative, start, stop):
    """Mean of values[start:stop]. Offsets from the first value all have one sign, so nothing cancels."""
    first = np.float64(values[start])
    offset = 0.0
    for i in range(start + 1, stop):
        offset += (cumulative[i + 1] - cumulative[i]) * (values[i] - first)
    mean = first + offset / (cumulative[stop] - cumulative[start])
    return min(mean, np.float64(values[stop - 1]))


@compiled
def _codes(ranks, borders, codes):
    for row in range(len(ranks)):
        _row_codes(ranks[row], borders[row], codes[row])


@compiled
def _row_codes(ranks, borders, codes):
    code_of_rank = np.empty(len(ranks), np.uint8)
    for code in range(len(borders) - 1):
        for rank in range(borders[code], borders[code + 1]):
            code_of_rank[rank] = code
    for column in range(len(ranks)):
        codes[column] = code_of_rank[ranks[column]]


@compiled
def _seed_borders(values, cumulative, counts, borders):
    for row in range(len(counts)):
        _optimal_borders(values[row], cumulative[row], counts[row], borders[row])


@compiled
def _optimal_borders(values, cumulative, count, borders):
    """Fills `borders` with those of the optimal partition into len(borders) - 1 intervals.

    The squared error of an interval is its second moment less moment**2 / mass; to minimise the error is to maximise the sum of
    the latter, the gain. Prefixes of the row are partitioned into about half of the clusters, suffixes likewise, and where they
    meet the gains add up. A prefix whose error alone exceeds that of some partition of the whole row is of no use: the best
    partition along a coarse grid is near enough to the optimum to rule most of them out.
    """
    clusters = len(borders) - 1
    for c in range(clusters + 1):
        borders[c] = min(c, count)
    if count <= clusters:
        return
    values, cumulative = values[:count], cumulative[: count + 1]
    moment, second = _centred_moments(values, cumulative)
    cells = max(count // _GRID_SPACING, clusters)
    _, gain, _ = _partition_prefixes(
        _coarse(cumulative, cells), _coarse(moment, cells), _coarse(second, cells), clusters, cells, np.inf
    )
    bound = second[count] - gain[cells] + _SLACK * second[count]

    num_left, num_right = clusters - clusters // 2, clusters // 2
    right, right_gain, right_stop = _partition_prefixes(
        _mirrored(cumulative), _mirrored(moment), _mirrored(second), num_right, num_right, bound
    )
    from_j = max(num_left, count - right_stop)
    left, left_gain, left_stop = _partition_prefixes(cumulative, moment, second, num_left, from_j, bound)
    middle, best = from_j, -1.0
    for j in range(from_j, min(left_stop, count - num_right) + 1):
        if left_gain[j] + right_gain[count - j] > best:
            middle, best = j, left_gain[j] + right_gain[count - j]
    borders[num_left] = middle
    for c in range(num_left, 1, -1):
        borders[c - 1] = left[c, borders[c]]
    for c in range(num_right, 1, -1):
        borders[clusters - c + 1] = count - right[c, count - borders[clusters - c]]
    borders[clusters] = count


@compiled
def _centred_moments(values, cumulative):
    """Prefix sums of mass * x and mass * x**2 with x measured from the row's mean: a common offset would drown the differences."""
    mean = _mean(values, cumulative, 0, len(values))
    moment, second = np.zeros(len(values) + 1), np.zeros(len(values) + 1)
    for i in range(len(values)):
        x = values[i] - mean
        mass = cumulative[i + 1] - cumulative[i]
        moment[i + 1] = moment[i] + mass * x
        second[i + 1] = second[i] + mass * x * x
    return moment, second


@compiled
def _coarse(prefix_sums, cells):
    """Prefix sums of runs of terms: cells + 1 of them, as evenly spaced as whole numbers can be."""
    result = np.empty(cells + 1)
    for i in range(cells + 1):
        result[i] = prefix_sums[i * (len(prefix_sums) - 1) // cells]
    return result


@compiled
def _mirrored(prefix_sums):
    """Prefix sums of the same terms taken from right to left."""
    result = np.empty(len(prefix_sums))
    for i in range(len(result)):
        result[i] = prefix_sums[-1] - prefix_sums[len(result) - 1 - i]
    return result


@compiled
def _partition_prefixes(mass, moment, second, clusters, from_j, bound):
    """Optimal partitions of the prefixes into 1, 2, ..., `clusters` intervals.

    Returns (start, gain, stop): of the best partition of the first j values into c intervals the last begins at start[c, j]; gain[j]
    belongs to `clusters` intervals, and is computed for j = from_j..stop. The error grows with j, and beyond `stop` it exceeds
    `bound`.
    """
    count = len(mass) - 1
    start = np.zeros((clusters + 1, count + 1), np.int32)
    gain, gain_before, scratch = np.empty(count + 1), np.empty(count + 1), np.empty(count + 1)
    stop = count
    for j in range(1, count + 1):
        gain[j] = moment[j] ** 2 / mass[j]
        if second[j] - gain[j] > bound:
            stop = j - 1
            break
    for c in range(2, clusters + 1):
        gain, gain_before = gain_before, gain
        first = max(c, from_j) if c == clusters else c
        start[c, first - 1] = c - 1  # not a partition: what bounds the searches to its right
        stop = _append_interval(
            mass, moment, second, first, bound, start[c - 1], gain_before, stop, start[c], gain, scratch
        )
    return start, gain, stop


@compiled
def _append_interval(mass, moment, second, first, bound, start_before, gain_before, stop_before, start, gain, gains):
    """Fills start[j] and gain[j] for j = first..stop from those of one interval less; returns stop. `gains` is scratch.

    The last interval's start never moves left when j or the number of intervals grows (Monge property). With the j's taken from coarse
    to fine, each search lies between the results of its neighbours: O(count log count) in all. Of equal gains the first wins.
    """
    stop = len(mass) - 1
    step = 1
    while step <= stop - first + 1:
        step *= 2
    while step > 1:
        half = step // 2
        j = first - 1 + half
        while j <= stop:
            high = min(j - 1, stop_before)
            if j + half <= stop:
                high = min(high, start[j + half])
            low = min(high, max(start[j - half], start_before[j]))  # rounding can reverse starts that tie
            mass_j, moment_j = mass[j], moment[j]
            best, best_gain = low, -1.0
            if high - low < _FEW:
                for i in range(np.uint64(low), np.uint64(high + 1)):
                    g = gain_before[i] + (moment_j - moment[i]) ** 2 / (mass_j - mass[i])
                    if g > best_gain:
                        best, best_gain = np.int64(i), g
            else:  # the same in two loops, of which the first is vectorised: no branches, and no negative indices to look for
                for i in range(np.uint64(low), np.uint64(high + 1)):
                    gains[i] = gain_before[i] + (moment_j - moment[i]) ** 2 / (mass_j - mass[i])
                for i in range(np.uint64(low), np.uint64(high + 1)):
                    if gains[i] > best_gain:
                        best, best_gain = np.int64(i), gains[i]
            start[j], gain[j] = best, best_gain
            if second[j] - best_gain > bound and j > stop_before:
                stop = j - 1
            j += step
        step = half
    return stop
