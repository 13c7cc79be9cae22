"""How often nodes are neighbours, and which are most often. Importing this module imports numba."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64, Integer

from ginex_jax.compilation import compiled


def count_ids(pieces: Iterable[Integer[np.ndarray, " _"]], num_nodes: int) -> Int64[np.ndarray, " nodes"]:
    """How often each of the nodes [0, num_nodes) is in the pieces, whose ids should be nodes; 8 bytes a node."""
    counts = np.zeros(num_nodes, np.int64)
    for ids in pieces:
        _count(ids, counts)
    return counts


@compiled
def _count(nodes, counts):
    for node in nodes:
        counts[node] += 1


def most_used(uses: Integer[np.ndarray, " nodes"], count: int) -> Int64[np.ndarray, " hot"]:
    """The `count` nodes with the most uses, of equals the lower ones, ascending; nodes without uses are left out.

    Time O(nodes), memory for a copy of the uses.
    """
    chosen = uses > 0
    if count < np.count_nonzero(chosen):
        border = np.partition(uses, len(uses) - count - 1)[len(uses) - count - 1]  # the next one down
        chosen = uses > border
        chosen[np.flatnonzero(uses == border)[: count - int(np.count_nonzero(chosen))]] = True
    return np.flatnonzero(chosen)
