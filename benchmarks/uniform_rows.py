"""Uniform grids, one for every row of a matrix: rounding to the nearest point, and GPTQ (Frantar et al., ICLR 2023).

The peers of codebooks. A grid of b bits is two float16 numbers a row, so a weight costs b + 32 / k bits.
"""

from typing import NamedTuple

import numpy as np

from anyprec_jax.kmeans1d import compiled
from anyprec_jax.row_threads import for_rows

DAMPING = 0.01  # of the moment's mean diagonal, added to its diagonal: GPTQ's default
_CLIPS = np.linspace(1.0, 0.4, 21)  # of the range of a row, about its zero, that a searched grid spans
_ROWS_AT_ONCE = 8  # which share what is read of the k x k factor


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
    best = _grids(low, high, precision)
    least = _squared_errors(weights, best)
    for clip in _CLIPS[1:]:
        tried = _grids(clip * low, clip * high, precision)
        errors = _squared_errors(weights, tried)
        better = errors < least
        least = np.where(better, errors, least)
        best = Grids(np.where(better, tried.low, best.low), np.where(better, tried.step, best.step), precision)
    return best


def rounded(weights: np.ndarray, grids: Grids) -> np.ndarray:
    """The nearest point to every weight, float32 [n, k]."""
    result = np.empty(weights.shape, np.float32)
    _for_rows(lambda rows: _round(weights[rows], grids.low[rows], grids.step[rows], grids.top, result[rows]), weights)
    return result


def gptq(weights: np.ndarray, moment: np.ndarray, grids: Grids, *, damping: float = DAMPING) -> np.ndarray:
    """Rounds one column after the other, and moves those to come so that the row's outputs err least. Float32 [n, k].

    What is lowered is trace(E @ H @ E.T), E the error and H the plain second moment of the inputs (`quality_moments.input_moments`).
    Columns go in descending order of H's diagonal ("act-order"), so that those that matter most are rounded while there are
    still many to make up for it; a row has one grid, so their order costs no bits. The grid is not changed on the way.

    Raises:
      numpy.linalg.LinAlgError: a damped moment that is not positive definite.

    Time n * k**2 / 2 multiplications and k**3, float64.
    """
    moment = moment.astype(np.float64)
    order = np.argsort(-np.diag(moment), kind="stable")
    damped = moment[np.ix_(order, order)] + damping * np.mean(np.diag(moment)) * np.eye(len(moment))
    # U with U.T @ U = inv(H): row j over U[j, j] is how the columns after j make up for an error in j.
    factor = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(damped)).T)
    moved = np.ascontiguousarray(weights[:, order], np.float64)
    result = np.empty(weights.shape, np.float32)

    def work(rows: slice) -> None:
        points = np.empty(moved[rows].shape, np.float32)
        _round_with_feedback(moved[rows], factor, grids.low[rows], grids.step[rows], grids.top, points)
        result[rows, order] = points

    _for_rows(work, weights)
    return result


def _for_rows(work, weights: np.ndarray) -> None:
    for_rows(work, num_rows=len(weights), rows_at_once=_ROWS_AT_ONCE)


def _grids(low: np.ndarray, high: np.ndarray, precision: int) -> Grids:
    step = ((high - low) / (2**precision - 1)).astype(np.float16)
    return Grids(low.astype(np.float16).astype(np.float64), step.astype(np.float64), precision)


def _squared_errors(weights: np.ndarray, grids: Grids) -> np.ndarray:
    errors = np.empty(len(weights))
    _for_rows(
        lambda rows: _sum_squares(weights[rows], grids.low[rows], grids.step[rows], grids.top, errors[rows]), weights
    )
    return errors


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
def _sum_squares(weights, low, step, top, errors):
    for r in range(len(weights)):
        errors[r] = 0.0
        for c in range(weights.shape[1]):
            weight = np.float64(weights[r, c])
            errors[r] += (weight - _nearest(weight, low[r], step[r], top)) ** 2


@compiled
def _round_with_feedback(weights, factor, low, step, top, result):
    """Columns in their order; `weights` is overwritten."""
    k = weights.shape[1]
    for j in range(k):
        for r in range(len(weights)):
            point = _nearest(weights[r, j], low[r], step[r], top)
            result[r, j] = point
            share = (weights[r, j] - point) / factor[j, j]
            for c in range(j + 1, k):
                weights[r, c] -= share * factor[j, c]
