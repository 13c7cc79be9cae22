"""Neighbour lists kept in memory: which ones, and how a position is found among them. Importing this module imports numba."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, Integer, Shaped

from ginex_jax.compilation import compiled

LIST_BYTES = 24  # that a list takes besides its edges, at most: two entries of `ranges`, one of the table
FIXED_BYTES = 16  # that finding any lists takes besides
_NODES_AT_ONCE = 1 << 20
_NUM_SCORES = 1 << 15  # float32 by its upper bits, which order numbers as the numbers themselves do


def choose_lists(
    indptr: Int64[np.ndarray, " nodes_plus_one"],
    uses: Integer[np.ndarray, " nodes"] | None,
    *,
    edge_bytes: int,
    memory_bytes: int,
) -> Bool[np.ndarray, " nodes"]:
    """The lists with the most expected uses per byte that fit into memory.

    Uses per byte are compared to within 1 %; among equals the smaller nodes win. Empty lists and unused ones are never chosen. Time
    O(nodes), memory one byte a node.

    Args:
      uses: how often each list is expected to be read, in any unit; all alike if not known, so that short lists come first.
      edge_bytes: of an edge in memory.
      memory_bytes: for all of them.
    """
    memory_bytes = max(0, memory_bytes)
    better, left = _border(_bytes_by_score(indptr, uses, edge_bytes), memory_bytes)
    border = _NUM_SCORES - 1 - better
    chosen = np.zeros(len(indptr) - 1, bool)
    for piece in _pieces(len(chosen)):
        scores, sizes = _scores(indptr, uses, piece, edge_bytes)
        chosen[piece] = scores > border
        if border:
            at_border = np.flatnonzero(scores == border)
            fitting = np.cumsum(sizes[at_border]) <= left
            chosen[piece][at_border[fitting]] = True
            left = left - int(sizes[at_border[fitting]].sum()) if fitting.all() else 0
    return chosen


def would_choose(
    indptr: Int64[np.ndarray, " nodes_plus_one"],
    uses: Integer[np.ndarray, " nodes"] | None,
    nodes: Int64[np.ndarray, " some"],
    *,
    edge_bytes: int,
    memory_bytes: Sequence[int],
) -> list[Bool[np.ndarray, " some"]]:
    """For each of several sizes of memory, which of these nodes' lists `choose_lists` would choose, lists at the border left out.

    Time O(nodes of the graph), once for all sizes.
    """
    bytes_by_score = _bytes_by_score(indptr, uses, edge_bytes)
    scores = _score(indptr[nodes + 1] - indptr[nodes], None if uses is None else uses[nodes], edge_bytes)[0]
    return [scores > _NUM_SCORES - 1 - _border(bytes_by_score, max(0, size))[0] for size in memory_bytes]


def _bytes_by_score(
    indptr: Int64[np.ndarray, " nodes_plus_one"], uses: Integer[np.ndarray, " nodes"] | None, edge_bytes: int
) -> Int64[np.ndarray, " scores"]:
    totals = np.zeros(_NUM_SCORES, np.int64)
    for piece in _pieces(len(indptr) - 1):
        scores, sizes = _scores(indptr, uses, piece, edge_bytes)
        totals += np.bincount(scores, sizes, _NUM_SCORES).astype(np.int64)  # exact below 2^53
    return totals


def _border(bytes_by_score: Int64[np.ndarray, " scores"], memory_bytes: int) -> tuple[int, int]:
    """How many of the best scores fit with all their lists; and the bytes left for lists of the next."""
    falling = bytes_by_score[::-1].copy()
    falling[-1] = memory_bytes + 1  # useless: never
    taken = np.cumsum(falling)
    better = int(np.searchsorted(taken, memory_bytes, side="right"))
    return better, memory_bytes - int(taken[better - 1] if better else 0)


def _pieces(num_nodes: int) -> list[slice]:
    return [slice(start, min(start + _NODES_AT_ONCE, num_nodes)) for start in range(0, num_nodes, _NODES_AT_ONCE)]


def _scores(
    indptr: Int64[np.ndarray, " nodes_plus_one"],
    uses: Integer[np.ndarray, " nodes"] | None,
    piece: slice,
    edge_bytes: int,
) -> tuple[Int64[np.ndarray, " piece"], Int64[np.ndarray, " piece"]]:
    """Of some nodes: uses per byte as an order of magnitude, 0 where there are none; and bytes."""
    return _score(np.diff(indptr[piece.start : piece.stop + 1]), None if uses is None else uses[piece], edge_bytes)


def _score(
    lengths: Int64[np.ndarray, " lists"], uses: Integer[np.ndarray, " lists"] | None, edge_bytes: int
) -> tuple[Int64[np.ndarray, " lists"], Int64[np.ndarray, " lists"]]:
    sizes = lengths * edge_bytes + LIST_BYTES
    used = np.ones(len(sizes), np.int64) if uses is None else uses
    score = np.where((lengths > 0) & (used > 0), used / sizes, 0).astype(np.float32)
    return (score.view(np.int32) >> 16).astype(np.int64), sizes


class PinnedLists:
    """Runs of positions whose values are in memory.

    Run i holds the positions `starts[i]` up to `starts[i] + memory[i + 1] - memory[i]`; their values lie from `memory[i]` on.
    """

    def __init__(self, indptr: Int64[np.ndarray, " nodes_plus_one"], chosen: Bool[np.ndarray, " nodes"]) -> None:
        """Lays out the lists of the nodes `chosen`; neighbouring lists make one run."""
        borders = np.diff(np.concatenate([[False], chosen, [False]]).view(np.int8))
        starts, stops = indptr[np.flatnonzero(borders == 1)], indptr[np.flatnonzero(borders == -1)]
        starts, stops = starts[stops > starts], stops[stops > starts]
        self.starts = starts
        self.memory = np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64)
        # For each block of positions the last run that begins before it, so that few runs are left to search. There are about as many
        # blocks as runs.
        num_edges = int(indptr[-1])
        self._shift = max(0, (num_edges // max(1, len(starts))).bit_length())
        blocks = np.arange((num_edges >> self._shift) + 2, dtype=np.int64) << self._shift
        self._table = np.searchsorted(starts, blocks, side="left") - 1

    @property
    def num_positions(self) -> int:
        return int(self.memory[-1])

    @property
    def nbytes(self) -> int:
        """Besides the values."""
        return self.starts.nbytes + self.memory.nbytes + self._table.nbytes

    def find(self, positions: Int64[np.ndarray, " positions"]) -> Int64[np.ndarray, " positions"]:
        """Where in memory the value of each position lies, negative where it does not."""
        found = np.empty(len(positions), np.int64)
        _find(positions, self.starts, self.memory, self._table, self._shift, found)
        return found


@compiled
def _find(positions, starts, memory, table, shift, found):
    for i in range(len(positions)):
        position = positions[i]
        block = position >> shift
        low, high = table[block], table[block + 1] + 1  # the run, if any, is in [low, high)
        while high - low > 1:
            middle = (low + high) >> 1
            if starts[middle] <= position:
                low = middle
            else:
                high = middle
        found[i] = -1
        if low >= 0 and starts[low] <= position:
            offset = memory[low] + position - starts[low]
            if offset < memory[low + 1]:
                found[i] = offset


def take(
    values: Shaped[np.ndarray, " pinned"], found: Int64[np.ndarray, " positions"], out: Shaped[np.ndarray, " positions"]
) -> None:
    """Copies what was found to its place in `out`."""
    _take(values, found, out)


@compiled
def _take(values, found, out):
    for i in range(len(found)):
        if found[i] >= 0:
            out[i] = values[found[i]]
