"""Uniform grids, one for every row of a matrix: rounding to the nearest point, and GPTQ (Frantar et al., ICLR 2023).

The peers of codebooks. A grid of b bits is two float16 numbers a row, so a weight costs b + 32 / k bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from anyprec_jax.kmeans1d import compiled
from anyprec_jax.row_threads import for_rows

DAMPING = 0.01  # of the moment's mean diagonal, added to its diagonal: GPTQ's default
_CLIPS = np.linspace(1.0, 0.4, 21)  # of the range of a row, about its zero, that a searched grid spans
_WEIGHTS_AT_ONCE = 1 << 15
_ROWS_TOGETHER = 8  # which share what is read of the k x k factor


class Grids(NamedTuple):
    """Point c of row r is low[r] + step[r] * c, c from 0 to 2**precision - 1; what float16 holds, as float64."""

    low: np.ndarray  # [n]
    step: np.ndarray  # [n]
    precision: int

    @property
    def top(self) -> int:
        """The last point."""
        return 2**self.precision - 1


def bits_per_weight(precision: int, k: int) -> float:
    """Of a code, and of a row's two float16 numbers."""
    return precision + 32 / k


def spanning_grids(weights: np.ndarray, precision: int) -> Grids:
    """From the smallest weight of every row to the largest; `weights` is [n, k]."""
    return _grids(weights.min(axis=1).astype(np.float64), weights.max(axis=1).astype(np.float64), precision)


def searched_grids(weights: np.ndarray, precision: int) -> Grids:
    """Of the row's range shrunk by some factors, the grid with the least squared error of rounding, as GPTQ's code has it."""
    low, high = weights.min(axis=1).astype(np.float64), weights.max(axis=1).astype(np.float64)
    tried = [_grids(clip * low, clip * high, precision) for clip in _CLIPS]
    lows, steps = (np.stack([getattr(grids, name) for grids in tried], axis=1) for name in ("low", "step"))
    chosen = np.empty(len(weights), np.int64)
    _for_rows(lambda rows: _least(weights[rows], lows[rows], steps[rows], tried[0].top, chosen[rows]), weights)
    each = np.arange(len(weights))
    return Grids(lows[each, chosen], steps[each, chosen], precision)


def rounded(weights: np.ndarray, grids: Grids) -> np.ndarray:
    """The nearest point to every weight, float32 [n, k]."""
    result = np.empty(weights.shape, np.float32)
    _for_rows(lambda rows: _round(weights[rows], grids.low[rows], grids.step[rows], grids.top, result[rows]), weights)
    return result


class Feedback(NamedTuple):
    """How the columns to come make up for an error in one, for every matrix that reads the same inputs."""

    order: np.ndarray  # [k], of the columns
    factor: np.ndarray  # float32 [k, k], upper triangular U with U.T @ U the inverse of the damped moment


def feedback(moment: np.ndarray, *, damping: float = DAMPING) -> Feedback:
    """From H, the plain second moment of the inputs [k, k] (`quality_moments.input_moments`).

    Columns go in descending order of H's diagonal ("act-order"), so that those that matter most are rounded while there are
    still many to make up for it; a row has one grid, so their order costs no bits.

    Raises:
      numpy.linalg.LinAlgError: a damped moment that is not positive definite.

    Time k**3, float64.
    """
    moment = moment.astype(np.float64)
    order = np.argsort(-np.diag(moment), kind="stable")
    damped = moment[np.ix_(order, order)] + damping * np.mean(np.diag(moment)) * np.eye(len(moment))
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    return Feedback(order, np.ascontiguousarray(factor, np.float32))


def gptq(weights: np.ndarray, grids: Grids, given: Feedback) -> np.ndarray:
    """Rounds one column after the other, and moves those to come so that the row's outputs err least. Float32 [n, k].

    What is lowered is trace(E @ H @ E.T), E the error and H the damped moment. The grid is not changed on the way.

    Time n * k**2 / 2 multiplications, float32.
    """
    moved = np.ascontiguousarray(weights[:, given.order], np.float32)
    points = np.empty(weights.shape, np.float32)

    def work(rows: slice) -> None:
        low, step = grids.low[rows], grids.step[rows]
        _round_with_feedback(moved[rows], given.factor, low, step, grids.top, points[rows])

    _for_rows(work, weights)
    result = np.empty(weights.shape, np.float32)
    result[:, given.order] = points
    return result


def _for_rows(work: Callable[[slice], None], weights: np.ndarray) -> None:
    for_rows(work, num_rows=len(weights), rows_at_once=max(_ROWS_TOGETHER, _WEIGHTS_AT_ONCE // weights.shape[1]))


def _grids(low: np.ndarray, high: np.ndarray, precision: int) -> Grids:
    step = ((high - low) / (2**precision - 1)).astype(np.float16)
    return Grids(low.astype(np.float16).astype(np.float64), step.astype(np.float64), precision)


@compiled
def _nearest(weight, low, step, top):
    if not step > 0.0:
        return low
    return low + step * min(max(np.rint((weight - low) / step), 0.0), top)


@compiled
def _round(weights, low, step, top, result):
    for r in range(len(weights)):
        for c in range(weights.shape[1]):
            result[r, c] = _nearest(np.float64(weights[r, c]), low[r], step[r], top)


@compiled
def _least(weights, lows, steps, top, chosen):
    """Of every row the first grid with the least squared error."""
    for r in range(len(weights)):
        least = np.inf
        for g in range(lows.shape[1]):
            low, step, error = lows[r, g], steps[r, g], 0.0
            for c in range(weights.shape[1]):
                weight = np.float64(weights[r, c])
                error += (weight - _nearest(weight, low, step, top)) ** 2
            if error < least:
                least, chosen[r] = error, g


@compiled
def _round_with_feedback(weights, factor, low, step, top, result):
    """Columns in their order, for a few rows at a time; `weights` is overwritten."""
    n, k = weights.shape
    for first in range(0, n, _ROWS_TOGETHER):
        last = min(first + _ROWS_TOGETHER, n)
        for j in range(k):
            for r in range(first, last):
                point = _nearest(np.float64(weights[r, j]), low[r], step[r], top)
                result[r, j] = point
                share = np.float32((weights[r, j] - point) / factor[j, j])
                for c in range(j + 1, k):
                    weights[r, c] -= share * factor[j, c]
