"""Points that no other point beats."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool


def pareto_front(points: Sequence[Sequence[int | float]]) -> Bool[np.ndarray, " points"]:
    """Which points have no other that is at least as small in every coordinate and smaller in one; equal ones stay together.

    Time O(points^2 coordinates), memory O(points coordinates).
    """
    values = np.asarray(points, np.float64).reshape(len(points), -1)
    front = np.ones(len(values), bool)
    for index, point in enumerate(values):
        front[index] = not ((values <= point).all(1) & (values < point).any(1)).any()
    return front
