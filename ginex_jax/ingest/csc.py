"""Sorted edges to the three arrays of a graph, as a stream."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Shaped

from ginex_jax.ingest.edge_sorter import SortedEdges

_NODES_AT_ONCE = 1 << 20
_EDGES_AT_ONCE = 1 << 20


@runtime_checkable
class Writer(Protocol):
    """One array, written front to back."""

    def append(self, block: Shaped[np.ndarray, "rows ..."]) -> None: ...

    def close(self) -> object: ...


MakeWriter = Callable[[str, tuple[int, ...], np.dtype[Any]], Writer]


class CSCCounts(NamedTuple):
    """What was written."""

    num_nodes: int
    num_edges: int


def write_csc(
    spill: Path,
    runs: Iterator[SortedEdges],
    *,
    num_nodes: int,
    num_edges: int | None,
    weighted: bool,
    make_writer: MakeWriter,
    observe: Callable[[SortedEdges], None] | None = None,
) -> CSCCounts:
    """Writes `indptr` int64 [num_nodes + 1], `indices` [num_edges], int32 below 2^31 nodes and int64 from there on, and `weights`.

    Args:
      spill: a folder for `indices` and `weights` while their number is not known.
      runs: edges, ascending by (target, source), none of them empty.
      num_edges: how many there are; None if only the end will tell.
      make_writer: opens the writer of an array from its name, shape and dtype.
      observe: sees every run.

    Raises:
      ValueError: a node is out of range.

    Memory: a few blocks of a million. Time O(nodes + edges).
    """
    dtype = np.dtype(np.int32 if num_nodes < 1 << 31 else np.int64)
    pointers = _Pointers(make_writer("indptr", (num_nodes + 1,), np.dtype(np.int64)), num_nodes)
    lists = _Column("indices", dtype, spill, num_edges, make_writer)
    weights = _Column("weights", np.dtype(np.float32), spill, num_edges, make_writer) if weighted else None
    for run in runs:
        if run.targets[-1] >= num_nodes or run.sources.max() >= num_nodes:
            raise ValueError(
                f"node {max(run.targets[-1], run.sources.max())} has an edge, and there are {num_nodes} nodes: 0 to {num_nodes - 1}"
            )
        if observe is not None:
            observe(run)
        pointers.append(run.targets)
        lists.append(run.sources)
        if weights is not None:
            assert run.weights is not None
            weights.append(run.weights)
    pointers.close()
    lists.close()
    if weights is not None:
        weights.close()
    return CSCCounts(num_nodes, pointers.num_edges)


def disk_bytes(num_edges: int, num_nodes: int, *, weighted: bool, num_edges_known: bool = True) -> int:
    """What sorting and writing a graph take of the disk at their peak: spilled edges, and the arrays.

    Spilled files go as they are sorted, but until their number is known, edges lie in a file and then in the array as well.
    """
    indices = 4 if num_nodes < 1 << 31 else 8
    columns = num_edges * (indices + (4 if weighted else 0))
    spilled = num_edges * (12 if weighted else 8)
    return 8 * (num_nodes + 1) + max(spilled + columns, columns if num_edges_known else 2 * columns)


class _Pointers:
    """Where every node's list starts, from the sorted targets."""

    def __init__(self, writer: Writer, num_nodes: int) -> None:
        self._writer, self._num_nodes = writer, num_nodes
        self._next = 0  # the first node whose start is not written
        self.num_edges = 0

    def append(self, targets: Int64[np.ndarray, " edges"]) -> None:
        self._write_up_to(int(targets[-1]) + 1, targets)
        self.num_edges += len(targets)

    def close(self) -> None:
        self._write_up_to(self._num_nodes + 1, np.empty(0, np.int64))
        self._writer.close()

    def _write_up_to(self, stop: int, targets: Int64[np.ndarray, " edges"]) -> None:
        while self._next < stop:
            first, last = self._next, min(self._next + _NODES_AT_ONCE, stop)
            begin, end = np.searchsorted(targets, (first, last))
            degrees = np.bincount(targets[begin:end] - first, minlength=last - first)
            self._writer.append(self.num_edges + begin + np.cumsum(degrees) - degrees)
            self._next = last


class _Column:
    """`indices` or `weights`: straight into the array, or by way of a file until the length is known."""

    def __init__(
        self, name: str, dtype: np.dtype[Any], spill: Path, num_edges: int | None, make_writer: MakeWriter
    ) -> None:
        self._name, self._dtype, self._make_writer = name, dtype, make_writer
        self._writer = None if num_edges is None else make_writer(name, (num_edges,), dtype)
        self._path = spill / f"{name}.column"
        self._length = 0

    def append(self, values: Shaped[np.ndarray, " edges"]) -> None:
        values = values.astype(self._dtype, copy=False)
        self._length += len(values)
        if self._writer is not None:
            self._writer.append(values)
        else:
            with self._path.open("ab") as stream:
                stream.write(np.ascontiguousarray(values).data)

    def close(self) -> None:
        if self._writer is None:
            self._writer = self._make_writer(self._name, (self._length,), self._dtype)
            for start in range(0, self._length, _EDGES_AT_ONCE):
                count = min(_EDGES_AT_ONCE, self._length - start)
                self._writer.append(np.fromfile(self._path, self._dtype, count, offset=start * self._dtype.itemsize))
            self._path.unlink(missing_ok=True)  # without an edge there is none
        self._writer.close()
