"""Labels that only the neighbours know: the commonest latent class among the nodes that point here.

Importing this module imports numba.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, Integer

from ginex_jax.compilation import compiled
from ginex_jax.ingest.rmat import CLASSES, SPLITS, stream
from ginex_jax.random_numbers import bounded, uniform


class MajorityLabels:
    """Counts, while edges stream past sorted by target, which latent class most sources of each target have.

    The label of a node is the commonest `ginex_jax.ingest.rmat.latent_class` of its in-neighbours, repeated edges counted as often as
    they occur and the lowest of equally common classes; -1 where nothing points to the node. Memory: a byte per node up to 127
    classes, two up to 32767, four beyond.
    """

    def __init__(self, num_nodes: int, *, seed: int, num_classes: int) -> None:
        if num_nodes < 0 or not 1 <= num_classes < 1 << 31:
            raise ValueError(
                f"{num_nodes} nodes in {num_classes} classes: both should be positive, the classes below 2**31"
            )
        self._seed, self._num_classes = seed, num_classes
        dtype = next(d for d in (np.int8, np.int16, np.int32) if num_classes <= np.iinfo(d).max)
        self._labels = np.full(num_nodes, -1, dtype)
        self._counts = np.zeros(num_classes, np.int64)
        self._counted_for = np.full(num_classes, -1, np.int64)  # the target that a count belongs to: nothing is reset
        self._current = np.array([-1, 0], np.int64)  # the target of the last edge, and how common its label is

    @property
    def num_rows(self) -> int:
        return len(self._labels)

    def observe(self, targets: Integer[np.ndarray, " edges"], sources: Integer[np.ndarray, " edges"]) -> None:
        """Counts further edges. A target's edges may be spread over several calls.

        Raises:
          ValueError: the targets do not ascend from call to call, or an edge leaves the graph.

        Time O(edges).
        """
        for what, ids in (("targets", targets), ("sources", sources)):
            if len(ids) and (ids.min() < 0 or ids.max() >= self.num_rows):
                raise ValueError(f"{what} should be in [0, {self.num_rows}), got {ids.min()} to {ids.max()}")
        key = stream(self._seed, CLASSES)
        where = _count(key, targets, sources, self._labels, self._counts, self._counted_for, self._current)
        if where >= 0:
            raise ValueError(f"edges should come sorted by target, and {targets[where]} follows a later one")

    def blocks(self, rows_per_block: int) -> Iterator[Int64[np.ndarray, " rows"]]:
        """The labels of all nodes in order, once all edges were counted."""
        for start in range(0, self.num_rows, rows_per_block):
            yield self._labels[start : start + rows_per_block].astype(np.int64)

    def split_ids(self, *, train: float = 0.1, valid: float = 0.05, test: float = 0.05) -> dict[str, np.ndarray]:
        """Ascending int64 ids for "train", "valid" and "test": disjoint, drawn by hash from the nodes that have a label.

        Args:
          train, valid, test: how likely a labelled node falls into each.

        Raises:
          ValueError: the shares are negative or exceed 1 together.
        """
        shares = np.array([train, valid, test])
        if not ((shares >= 0).all() and shares.sum() <= 1 + 1e-9):
            raise ValueError(f"shares should be at least 0 and at most 1 together, got {train}, {valid} and {test}")
        splits = np.empty(self.num_rows, np.int8)
        _assign(stream(self._seed, SPLITS), np.cumsum(shares), self._labels, splits)
        return {name: np.flatnonzero(splits == number) for number, name in enumerate(("train", "valid", "test"))}


@compiled
def _count(key, targets, sources, labels, counts, counted_for, current):
    """Returns the position of the first edge out of order, or -1."""
    num_classes = np.int64(len(counts))
    target, best = current[0], current[1]
    for i in range(len(targets)):
        if targets[i] != target:
            if targets[i] < target:
                return i
            target, best = np.int64(targets[i]), 0
        z = bounded(key, np.uint64(sources[i]), num_classes)
        if counted_for[z] != target:
            counted_for[z], counts[z] = target, 0
        counts[z] += 1
        if counts[z] > best or (counts[z] == best and z < labels[target]):
            best = counts[z]
            labels[target] = z
    current[0], current[1] = target, best
    return -1


@compiled
def _assign(key, borders, labels, splits):
    for node in range(len(labels)):
        draw = uniform(key, np.uint64(node))
        splits[node] = 3
        if labels[node] >= 0:
            for number in range(2, -1, -1):
                if draw < borders[number]:
                    splits[node] = number
