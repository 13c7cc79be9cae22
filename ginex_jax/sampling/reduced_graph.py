"""Graphs without some of their edges: what inference may see when these are to be predicted."""

import numpy as np
from jaxtyping import Float32, Int64, Integer

from ginex_jax.graph import CSCGraph, Graph
from ginex_jax.sampling.degree_blocks import list_positions
from ginex_jax.sampling.edge_set import EdgeSet

_EDGES_AT_ONCE = 1 << 22


def graph_without(graph: Graph, excluded: EdgeSet) -> Graph:
    """The graph without these edges, repeated ones all of them.

    A graph in memory is copied. Any other is read through a `ReducedGraph`: nothing on disk is written again.

    Reads the lists that the set points to.
    """
    removed = _positions(graph, excluded)
    indptr = graph.indptr - np.searchsorted(removed, graph.indptr)
    if isinstance(graph, CSCGraph):
        weights = None if graph.weights is None else np.delete(graph.weights, removed)
        return CSCGraph(indptr, np.delete(graph.indices, removed), weights)
    return ReducedGraph(graph, indptr, removed)


class ReducedGraph:
    """A `Graph` that reads another one and skips some positions of its lists: 8 bytes a node, 8 an edge that is skipped."""

    def __init__(
        self, graph: Graph, indptr: Int64[np.ndarray, " nodes_plus_one"], removed: Int64[np.ndarray, " removed"]
    ) -> None:
        """Takes the positions to skip, ascending, and where the lists lie without them."""
        self._graph, self._indptr = graph, indptr
        self._skipped_at = removed - np.arange(len(removed))  # positions here, before which one more is skipped

    @property
    def indptr(self) -> Int64[np.ndarray, " nodes_plus_one"]:
        return self._indptr

    @property
    def num_nodes(self) -> int:
        return self._graph.num_nodes

    @property
    def num_edges(self) -> int:
        return self._graph.num_edges - len(self._skipped_at)

    @property
    def is_weighted(self) -> bool:
        return self._graph.is_weighted

    def neighbors_at(self, positions: Int64[np.ndarray, " positions"]) -> Integer[np.ndarray, " positions"]:
        return self._graph.neighbors_at(self._original(positions))

    def weights_at(self, positions: Int64[np.ndarray, " positions"]) -> Float32[np.ndarray, " positions"]:
        return self._graph.weights_at(self._original(positions))

    def _original(self, positions: Int64[np.ndarray, " positions"]) -> Int64[np.ndarray, " positions"]:
        return positions + np.searchsorted(self._skipped_at, positions, side="right")


def _positions(graph: Graph, excluded: EdgeSet) -> Int64[np.ndarray, " removed"]:
    """Where the edges stand in the lists, ascending."""
    targets = np.unique(excluded.keys // excluded.num_nodes)
    starts, lengths = graph.indptr[targets], graph.indptr[targets + 1] - graph.indptr[targets]
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // _EDGES_AT_ONCE)) + 1
    found = [np.empty(0, np.int64)]
    for some in np.split(np.arange(len(targets)), cuts):
        positions = list_positions(starts[some], lengths[some])
        neighbors = graph.neighbors_at(positions).astype(np.int64)
        found.append(positions[excluded.contains(neighbors, np.repeat(targets[some], lengths[some]))])
    return np.concatenate(found)
