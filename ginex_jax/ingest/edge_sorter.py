"""Sorts more edges than fit in memory, by target and then by source.

A radix partition on disk: edges are spilled into files by the high bits of their targets; each file is then sorted in memory, and one that
is too large for that is split again by the next bits, down to the last bit of the source. Equal edges keep the order they came in, so
that what comes out depends on what went in and on nothing else. Importing this module imports numba.
"""

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Integer, UInt64

from ginex_jax.ingest.edge_spill import EDGES_AT_ONCE, SpilledEdges, SpillFolder, pieces, remove, split_evenly
from ginex_jax.ingest.radix_sort import sorted_with_weights

Progress = Callable[[str, int, int], None]

_KEY_BITS = 64  # target << 32 | source
_FIRST_BITS = 12  # a file for 2^20 targets
_NEXT_BITS = 8
_BYTES_PER_EDGE = 8  # while sorting
_BYTES_PER_WEIGHTED_EDGE = 24
_AHEAD = 2  # files that are sorted while another one is read
_LEAST_BYTES = 1 << 20


class SortedEdges(NamedTuple):
    """Some consecutive edges of the sorted list."""

    targets: Int64[np.ndarray, " edges"]
    sources: Int64[np.ndarray, " edges"]
    weights: Float32[np.ndarray, " edges"] | None


class EdgeSorter:
    """Takes edges in any order and gives them back sorted.

    Disk: 8 bytes an edge, 12 with weights, and for a moment twice what the largest file holds.
    """

    def __init__(
        self, folder: Path, *, memory_bytes: int, weighted: bool = False, progress: Progress | None = None
    ) -> None:
        """Spills into `folder`, which must not exist yet.

        Args:
          memory_bytes: most memory to use, beside some 20 MB; at least 1 MB is taken.
          weighted: edges come with weights.
          progress: is told how many edges of how many are sorted.
        """
        self._memory_bytes = max(memory_bytes, _LEAST_BYTES)
        self._weighted = weighted
        self._progress = progress
        self._files = SpillFolder(folder, _KEY_BITS, _FIRST_BITS, self._memory_bytes // 2, weighted)
        # Filled before it is partitioned: of a small piece, every file would get a handful, which costs more to hold than it is.
        self._keys = np.empty(EDGES_AT_ONCE, np.uint64)
        self._weights = np.empty(EDGES_AT_ONCE, np.float32) if weighted else None
        self._num_waiting = 0
        self._num_edges = 0
        self._max_id = -1

    @property
    def num_edges(self) -> int:
        """Edges so far."""
        return self._num_edges

    @property
    def spilled_bytes(self) -> int:
        """What edges take of the disk once all are spilled."""
        return self._num_edges * (12 if self._weighted else 8)

    @property
    def max_id(self) -> int:
        """The largest id so far, -1 if there is none."""
        return self._max_id

    def append(
        self,
        targets: Integer[np.ndarray, " edges"],
        sources: Integer[np.ndarray, " edges"],
        weights: Float32[np.ndarray, " edges"] | None = None,
    ) -> None:
        """Adds edges, all ids in [0, 2^32).

        Raises:
          ValueError: an id is out of range, or weights are missing or not wanted.
        """
        if (weights is not None) != self._weighted:
            raise ValueError(f"weights are {'wanted' if self._weighted else 'not wanted'} with these edges")
        if len(targets) == 0:
            return
        lowest = min(int(targets.min()), int(sources.min()))
        highest = max(int(targets.max()), int(sources.max()))
        if lowest < 0 or highest >= 1 << 32:
            raise ValueError(f"node ids should be in [0, 2^32), got {lowest if lowest < 0 else highest}")
        self._max_id = max(self._max_id, highest)
        self._num_edges += len(targets)
        start = 0
        while start < len(targets):
            room = len(self._keys) - self._num_waiting
            self._put(
                targets[start : start + room],
                sources[start : start + room],
                None if weights is None else weights[start : start + room],
            )
            start += room

    def _put(
        self,
        targets: Integer[np.ndarray, " edges"],
        sources: Integer[np.ndarray, " edges"],
        weights: Float32[np.ndarray, " edges"] | None,
    ) -> None:
        place = slice(self._num_waiting, self._num_waiting + len(targets))
        self._keys[place] = targets
        self._keys[place] <<= np.uint64(32)
        self._keys[place] |= sources.astype(np.uint64)
        if self._weights is not None:
            self._weights[place] = weights
        self._num_waiting = place.stop
        if self._num_waiting == len(self._keys):
            self._spill()

    def _spill(self) -> None:
        weights = None if self._weights is None else self._weights[: self._num_waiting]
        self._files.append(self._keys[: self._num_waiting], weights)
        self._num_waiting = 0

    def sorted_runs(self) -> Iterator[SortedEdges]:
        """All edges, ascending by (target, source), a million or fewer at a time. Can be called once: files go as they are read."""
        self._spill()
        self._keys, self._weights = np.empty(0, np.uint64), None
        done = 0
        for keys, weights in self._sorted_files():
            for start in range(0, len(keys), EDGES_AT_ONCE):
                piece = keys[start : start + EDGES_AT_ONCE]
                yield SortedEdges(
                    (piece >> np.uint64(32)).astype(np.int64),
                    (piece & np.uint64(0xFFFF_FFFF)).astype(np.int64),
                    None if weights is None else weights[start : start + EDGES_AT_ONCE],
                )
                done += len(piece)
                if self._progress is not None:
                    self._progress("sorting edges", done, self._num_edges)

    def _sorted_files(self) -> Iterator[tuple[UInt64[np.ndarray, " edges"], Float32[np.ndarray, " edges"] | None]]:
        """Sorts the next files while the caller is busy with the last one."""
        waiting: deque[concurrent.futures.Future[tuple[np.ndarray, np.ndarray | None]]] = deque()
        with concurrent.futures.ThreadPoolExecutor(_AHEAD) as pool:
            try:
                for file in self._small_files():
                    waiting.append(pool.submit(_sorted, file, self._weighted))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _small_files(self) -> Iterator[SpilledEdges]:
        """Files that can be sorted in memory, in the order of their keys; larger ones are split on the way."""
        per_edge = _BYTES_PER_WEIGHTED_EDGE if self._weighted else _BYTES_PER_EDGE
        most_edges = max(1, self._memory_bytes // (per_edge * (_AHEAD + 3)))
        stack = [iter(self._files.closed())]
        while stack:
            file = next(stack[-1], None)
            if file is None:
                stack.pop()
            elif file.num_edges <= most_edges:
                yield file
            elif file.bits == 0:
                yield from split_evenly(file, most_edges, self._weighted)
            else:
                stack.append(iter(self._split(file)))

    def _split(self, file: SpilledEdges) -> list[SpilledEdges]:
        bits = min(_NEXT_BITS, file.bits)
        folder = file.path.with_suffix(".parts")
        # The files that are being sorted meanwhile have taken the rest.
        parts = SpillFolder(folder, file.bits, bits, self._memory_bytes // (_AHEAD + 2), self._weighted)
        for keys, weights in pieces(file, self._weighted):
            parts.append(keys, weights)
        remove(file.path)
        return parts.closed()


def _sorted(
    file: SpilledEdges, weighted: bool
) -> tuple[UInt64[np.ndarray, " edges"], Float32[np.ndarray, " edges"] | None]:
    keys, weights = next(pieces(file, weighted, file.num_edges))
    remove(file.path)
    if file.bits == 0:
        return keys, weights
    if weights is not None:
        return sorted_with_weights(keys, weights)
    common = keys[0] >> np.uint64(file.bits) << np.uint64(file.bits)
    keys -= common
    keys.view(np.int64).sort()  # NumPy sorts these faster
    keys += common
    return keys, None


def without_duplicates(runs: Iterator[SortedEdges]) -> Iterator[SortedEdges]:
    """Leaves the first of every (target, source), also across runs."""
    last = None
    for run in runs:
        new = np.empty(len(run.targets), np.bool_)
        new[1:] = (run.targets[1:] != run.targets[:-1]) | (run.sources[1:] != run.sources[:-1])
        new[0] = last != (run.targets[0], run.sources[0])
        last = (run.targets[-1], run.sources[-1])
        weights = None if run.weights is None else run.weights[new]
        yield SortedEdges(run.targets[new], run.sources[new], weights)
