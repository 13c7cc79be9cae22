"""How well scores tell edges from pairs that are none. Host only, exact."""

import numpy as np
from jaxtyping import Float


def mean_reciprocal_rank(
    positive: Float[np.ndarray, " links"], negative: Float[np.ndarray, "links negatives"]
) -> float:
    """The mean, over links, of 1 / the rank of its score among those of its negatives; in (0, 1].

    Where negatives are as high, the rank is the mean of the best and the worst there can be, so that a constant score earns nothing.

    Raises:
      ValueError: there are no links, or a score is not a number.
    """
    _check(positive, negative)
    above = (negative > positive[:, None]).sum(axis=1)
    equal = (negative == positive[:, None]).sum(axis=1)
    return float(np.mean(1 / (1 + above + equal / 2)))


def area_under_curve(positive: Float[np.ndarray, "..."], negative: Float[np.ndarray, "..."]) -> float:
    """The chance that a positive's score is above a negative's, over all pairs of them, ties as a half: the area under the ROC curve.

    Raises:
      ValueError: there are no scores, or one is not a number.

    O(n log n).
    """
    _check(positive, negative)
    ordered = np.sort(negative, axis=None)
    below, not_above = (np.searchsorted(ordered, positive.reshape(-1), side=side) for side in ("left", "right"))
    wins = int(below.sum()) + int(not_above.sum())  # twice
    return wins / (2 * positive.size * negative.size)


def _check(positive: Float[np.ndarray, "..."], negative: Float[np.ndarray, "..."]) -> None:
    if positive.size == 0 or negative.size == 0:
        raise ValueError(f"there should be scores of edges and of negatives, got {positive.shape} and {negative.shape}")
    if np.isnan(positive).any() or np.isnan(negative).any():
        raise ValueError("scores should be numbers, and some are NaN: the parameters or features are not finite")
