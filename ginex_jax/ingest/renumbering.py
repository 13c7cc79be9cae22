"""A graph on disk under other numbers for its nodes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from ginex_jax.ingest.assembly import Progress
from ginex_jax.ingest.edge_sorter import SortedEdges
from ginex_jax.ingest.node_order import by_breadth, by_degree, inverse
from ginex_jax.store.dataset import read_array
from ginex_jax.store.stored_graph import StoredGraph

_EDGES_AT_ONCE = 1 << 20


def order_of(folder: Path, kind: str, progress: Progress) -> Int64[np.ndarray, " nodes"]:
    """What node v of the new graph is called in the graph in `folder`: by "degree" or by "bfs" (see `node_order`)."""
    graph = _open(folder)
    try:
        uses = graph.count_uses()
        if kind == "degree":
            return by_degree(uses)
        return by_breadth(graph, uses, lambda done, total: progress("ordering nodes", done, total))
    finally:
        graph.close()


def renumbered(folder: Path, order: Int64[np.ndarray, " nodes"]) -> Iterator[SortedEdges]:
    """The edges of the graph in `folder` under their new numbers, still in the old order, a million at a time."""
    renamed = inverse(order)
    graph = _open(folder)
    try:
        for positions in _positions(graph):
            targets = np.searchsorted(graph.indptr, positions, side="right") - 1
            yield SortedEdges(
                renamed[targets],
                renamed[graph.neighbors_at(positions)],
                graph.weights_at(positions) if graph.is_weighted else None,
            )
    finally:
        graph.close()


def _open(folder: Path) -> StoredGraph:
    weights = folder / "weights"
    return StoredGraph.open(read_array(folder / "indptr"), folder / "indices", weights if weights.is_dir() else None)


def _positions(graph: StoredGraph) -> Iterator[Int64[np.ndarray, " positions"]]:
    for start in range(0, graph.num_edges, _EDGES_AT_ONCE):
        yield np.arange(start, min(start + _EDGES_AT_ONCE, graph.num_edges))
