"""A graph whose lists lie on disk: some of them pinned in memory, the rest read by the page."""

import dataclasses
import time
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, Integer, Shaped

from ginex_jax.features import ReadCounter, ReadStats, require_within
from ginex_jax.graph import check_rising, require_nodes
from ginex_jax.store.direct_reads import PieceReader
from ginex_jax.store.pinned_lists import FIXED_BYTES, PinnedLists, choose_lists, take
from ginex_jax.store.shards import ShardedArray, open_sharded
from ginex_jax.store.uses import count_ids

_POSITIONS_AT_ONCE = 1 << 20  # while lists are pinned: what is needed besides is some 100 bytes for each


class StoredGraph:
    """A `Graph` with `indptr` in memory, 8 bytes a node, and neighbours and weights on disk. Thread-safe.

    Positions are read sorted, in as few requests as is good: neighbours that share a sector, or lie close together, come in one.
    """

    def __init__(
        self,
        indptr: Int64[np.ndarray, " nodes_plus_one"],
        indices: ShardedArray,
        weights: ShardedArray | None = None,
        *,
        num_threads: int = 64,
    ) -> None:
        """Takes open arrays.

        Raises:
          ValueError: the arrays do not fit together, or are no graph's.
          OSError: a shard cannot be opened.
        """
        _check(indptr, indices, weights)
        self._indptr = indptr
        self._indices = _StoredVector(indices, num_threads, num_nodes=len(indptr) - 1)
        self._weights = None if weights is None else _StoredVector(weights, num_threads)
        self._pinned = _NOTHING_PINNED

    @classmethod
    def open(
        cls,
        indptr: Int64[np.ndarray, " nodes_plus_one"],
        indices: str | Path,
        weights: str | Path | None = None,
        *,
        num_threads: int = 64,
    ) -> "StoredGraph":
        """Opens the arrays in these folders; raises as `open_sharded` does."""
        opened = None if weights is None else open_sharded(weights)
        return cls(indptr, open_sharded(indices), opened, num_threads=num_threads)

    def close(self) -> None:
        """Closes the files; no other thread may be reading."""
        for vector in self._vectors:
            vector.reader.close()

    @property
    def indptr(self) -> Int64[np.ndarray, " nodes_plus_one"]:
        return self._indptr

    @property
    def num_nodes(self) -> int:
        return len(self._indptr) - 1

    @property
    def num_edges(self) -> int:
        return self._indices.array.shape[0]

    @property
    def is_weighted(self) -> bool:
        return self._weights is not None

    @property
    def edge_bytes(self) -> int:
        """That an edge takes in memory, its weight included."""
        return sum(vector.array.dtype.itemsize for vector in self._vectors)

    @property
    def note(self) -> str | None:
        """Why reads go through the page cache; None where they go past it."""
        return self._indices.reader.note

    @property
    def stats(self) -> ReadStats:
        """Of reads from disk; a row is a position."""
        first, *others = (vector.counter.stats for vector in self._vectors)
        return ReadStats(*map(sum, zip(first, *others, strict=True)))

    @property
    def pinned_bytes(self) -> int:
        """Memory that pinned lists take."""
        return self._pinned.nbytes

    def count_uses(self) -> Int64[np.ndarray, " nodes"]:
        """How often each node is a neighbour: one pass over all lists, 8 bytes a node."""
        starts = range(0, self.num_edges, _POSITIONS_AT_ONCE)
        lengths = (min(_POSITIONS_AT_ONCE, self.num_edges - start) for start in starts)
        pieces = (
            self._indices.read_runs(np.array([start]), np.array([0, length]))
            for start, length in zip(starts, lengths, strict=True)
        )
        return count_ids(pieces, self.num_nodes)

    def pin(self, memory_bytes: int, *, uses: Integer[np.ndarray, " nodes"] | None = None) -> int:
        """Reads the lists with the most expected uses per byte into memory, in place of those pinned before.

        A node's list is read when the node is sampled, and a node is sampled about as often as it occurs as a neighbour. Results of
        reads do not change.

        Args:
          memory_bytes: for pinned lists and what finds them, weights included; at least 0.
          uses: how often each node occurs as a neighbour, or any other weight. Without it all nodes count alike, so that the shortest
            lists come first.

        Returns:
          The bytes used.

        Raises:
          ValueError: `memory_bytes` is negative, `uses` are not one a node, or what is on disk is no node.
          OSError: the disk failed.

        Time O(nodes), and the reads; a byte a node and about 100 MB besides the result.
        """
        if memory_bytes < 0:
            raise ValueError(f"memory_bytes should be at least 0, got {memory_bytes}")
        if uses is not None and len(uses) != self.num_nodes:
            raise ValueError(f"uses should be one for each of {self.num_nodes} nodes, got {len(uses)}")
        size = memory_bytes - FIXED_BYTES
        chosen = choose_lists(self._indptr, uses, edge_bytes=self.edge_bytes, memory_bytes=size)
        self._pinned = _NOTHING_PINNED  # before there are others: the old and the new need not fit together
        if chosen.any():
            lists = PinnedLists(self._indptr, chosen)
            values = tuple(vector.read_runs(lists.starts, lists.memory) for vector in self._vectors)
            self._pinned = _Pinned(lists, values)
        return self.pinned_bytes

    def neighbors_at(self, positions: Int64[np.ndarray, " positions"]) -> Integer[np.ndarray, " positions"]:
        """As `Graph.neighbors_at`.

        Raises:
          ValueError: a position is not in [0, edges), or what is on disk is no node.
          OSError: the disk failed.
        """
        return self._at(0, positions)

    def weights_at(self, positions: Int64[np.ndarray, " positions"]) -> Float32[np.ndarray, " positions"]:
        """As `Graph.weights_at`; raises as `neighbors_at` does besides."""
        if self._weights is None:
            raise ValueError("the graph has no edge weights")
        return self._at(1, positions)

    @property
    def _vectors(self) -> "tuple[_StoredVector, ...]":
        return (self._indices,) if self._weights is None else (self._indices, self._weights)

    def _at(self, which: int, positions: Int64[np.ndarray, " positions"]) -> Shaped[np.ndarray, " positions"]:
        require_within(positions, self.num_edges, "positions")
        vector, pinned = self._vectors[which], self._pinned
        if pinned.lists is None:
            return vector.read(positions)
        found = pinned.lists.find(positions)
        out = np.empty(len(positions), vector.array.dtype)
        take(pinned.values[which], found, out)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            out[missing] = vector.read(positions[missing])
        return out


@dataclasses.dataclass(frozen=True)
class _Pinned:
    """Swapped as a whole, so that readers in other threads see one state."""

    lists: PinnedLists | None = None
    values: tuple[np.ndarray, ...] = ()

    @property
    def nbytes(self) -> int:
        return (self.lists.nbytes if self.lists else 0) + sum(values.nbytes for values in self.values)


_NOTHING_PINNED = _Pinned()


class _StoredVector:
    """A vector on disk, read by position or by run. With `num_nodes` it holds nodes, which no reader needs to check again."""

    def __init__(self, array: ShardedArray, num_threads: int, num_nodes: int | None = None) -> None:
        self.array = array
        self._num_nodes = num_nodes
        self.reader = PieceReader(array.paths, max_piece_bytes=array.inner_bytes, num_threads=num_threads)
        self.counter = ReadCounter()

    def read(self, positions: Int64[np.ndarray, " positions"]) -> Shaped[np.ndarray, " positions"]:
        out = np.empty(len(positions), self.array.dtype)
        self._read(positions, np.ones(len(positions), np.int64), np.arange(len(positions)), out)
        self._check(out)
        return out

    def read_runs(
        self, starts: Int64[np.ndarray, " runs"], borders: Int64[np.ndarray, " runs_plus_one"]
    ) -> Shaped[np.ndarray, " positions"]:
        """The positions from `starts[i]` on that belong at [borders[i], borders[i + 1]) of the result."""
        out = np.empty(int(borders[-1]), self.array.dtype)
        for first in range(0, len(out), _POSITIONS_AT_ONCE):
            last = min(first + _POSITIONS_AT_ONCE, len(out))
            runs = slice(np.searchsorted(borders, first, side="right") - 1, np.searchsorted(borders, last, side="left"))
            places = np.clip(borders[runs.start : runs.stop + 1], first, last)
            positions = starts[runs] + places[:-1] - borders[runs]
            self._read(*_cut(positions, np.diff(places), places[:-1], self.array.inner_rows), out)
            self._check(out[first:last])
        return out

    def _check(self, values: Shaped[np.ndarray, " positions"]) -> None:
        if self._num_nodes is not None:
            require_nodes(values, self._num_nodes, self.array.path)

    def _read(
        self,
        positions: Int64[np.ndarray, " pieces"],
        lengths: Int64[np.ndarray, " pieces"],
        places: Int64[np.ndarray, " pieces"],
        out: Shaped[np.ndarray, " out"],
    ) -> None:
        """Reads `lengths[i]` positions from `positions[i]` on, all in one inner chunk, to `out[places[i]]` and on."""
        start = time.perf_counter()
        size = out.itemsize
        files, offsets = self.array.locate(positions)
        absent = offsets < 0
        if absent.any():
            out[_expanded(places[absent], lengths[absent])] = self.array.fill
            files, offsets, lengths, places = (x[~absent] for x in (files, offsets, lengths, places))
        requests, num_bytes = self.reader.read(files, offsets, lengths * size, places * size, out=out)
        self.counter.add(rows=int(lengths.sum()), num_bytes=num_bytes, requests=requests, start=start)


def _cut(
    positions: Int64[np.ndarray, " runs"],
    lengths: Int64[np.ndarray, " runs"],
    places: Int64[np.ndarray, " runs"],
    inner_rows: int,
) -> tuple[Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"]]:
    """Runs, of at least one position, cut where inner chunks meet: those may lie anywhere."""
    counts = (positions + lengths - 1) // inner_rows - positions // inner_rows + 1
    run = np.repeat(np.arange(len(counts)), counts)
    inner = _expanded(positions // inner_rows, counts)
    starts = np.maximum(positions[run], inner * inner_rows)
    stops = np.minimum(positions[run] + lengths[run], (inner + 1) * inner_rows)
    return starts, stops - starts, places[run] + starts - positions[run]


def _expanded(starts: Int64[np.ndarray, " runs"], lengths: Int64[np.ndarray, " runs"]) -> Int64[np.ndarray, " numbers"]:
    """The numbers from each start on, as many as its length says."""
    return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)


def _check(indptr: Int64[np.ndarray, " nodes_plus_one"], indices: ShardedArray, weights: ShardedArray | None) -> None:
    if len(indptr) == 0 or indptr.dtype != np.int64:
        raise ValueError(f"indptr should be int64 [nodes + 1], got {indptr.dtype} {indptr.shape}")
    if len(indices.shape) != 1 or indices.dtype not in (np.int32, np.int64):
        raise ValueError(
            f"{indices.path} should be int32 or int64 [edges], and is {indices.dtype} {list(indices.shape)}"
        )
    if indptr[0] != 0 or indptr[-1] != indices.shape[0]:
        raise ValueError(f"indptr should run from 0 to {indices.shape[0]} edges, got {indptr[0]} to {indptr[-1]}")
    check_rising(indptr, f"the indptr of {indices.path}")
    if weights is not None and (weights.shape != indices.shape or weights.dtype != np.float32):
        raise ValueError(
            f"{weights.path} should be float32 {list(indices.shape)}, and is {weights.dtype} {list(weights.shape)}"
        )
