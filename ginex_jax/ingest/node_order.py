"""Orders of nodes in which those that are read together lie together."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Int64

from ginex_jax.graph import Graph

_POSITIONS_AT_ONCE = 1 << 20


def by_degree(uses: Int64[np.ndarray, " nodes"]) -> Int64[np.ndarray, " nodes"]:
    """Nodes by how often they are somebody's neighbour, most often first; ties by id.

    A sampler meets a node about that often, so that the rows of a cache's favourites share pages.

    Returns:
      What the new node v was called before.
    """
    return np.argsort(-uses, kind="stable")


def by_breadth(
    graph: Graph, uses: Int64[np.ndarray, " nodes"], progress: Callable[[int, int], None] | None = None
) -> Int64[np.ndarray, " nodes"]:
    """Nodes in the order of breadth-first search along in-neighbours: those of one list lie near each other.

    A search starts at the node, not yet met, with an in-neighbour that is used most, and goes level by level; within a level, nodes
    come in the order in which the lists of the level before name them. Nodes without in-neighbours that nobody names come last, most
    used first.

    Args:
      graph: lists may lie on disk: those of a level are read together.
      uses: how often each node is a neighbour.
      progress: is told how many nodes of how many are placed.

    Returns:
      What the new node v was called before. Time O(nodes + edges), memory 25 bytes a node and 64 MB.
    """
    starts = by_degree(uses)
    order = np.empty(graph.num_nodes, np.int64)
    met = np.zeros(graph.num_nodes, np.bool_)
    has_list = np.diff(graph.indptr) > 0
    placed = 0
    for start in _not_met(starts, met, has_list):
        level = np.array([start])
        met[level] = True
        while level.size:
            order[placed : placed + level.size] = level
            placed += level.size
            if progress is not None:
                progress(placed, graph.num_nodes)
            found = [_newly_met(graph, piece, met) for piece in _pieces(graph, level)]
            level = np.concatenate(found) if found else level[:0]
    order[placed:] = starts[~met[starts]]
    return order


def inverse(order: Int64[np.ndarray, " nodes"]) -> Int64[np.ndarray, " nodes"]:
    """What the node that was called v is called now."""
    renamed = np.empty_like(order)
    renamed[order] = np.arange(len(order))
    return renamed


def _not_met(
    starts: Int64[np.ndarray, " nodes"], met: Bool[np.ndarray, " nodes"], wanted: Bool[np.ndarray, " nodes"]
) -> Iterator[int]:
    """Of the wanted starts, those that are not met when their turn comes."""
    block = 4096
    for first in range(0, len(starts), block):
        piece = starts[first : first + block]
        for start in piece[wanted[piece] & ~met[piece]].tolist():
            if not met[start]:
                yield start


def _pieces(graph: Graph, nodes: Int64[np.ndarray, " level"]) -> Iterator[Int64[np.ndarray, " positions"]]:
    """The positions of the nodes' lists, a bounded number at a time."""
    begins, ends = graph.indptr[nodes], graph.indptr[nodes + 1]
    total = np.cumsum(ends - begins)
    done = 0
    while done < total[-1]:
        stop = min(done + _POSITIONS_AT_ONCE, int(total[-1]))
        first, last = (int(np.searchsorted(total, edge, side="right")) for edge in (done, stop - 1))
        # The k-th position of all lists, one after the other, lies total[i] - k before the end of its list i.
        counted = np.arange(done, stop)
        owner = np.repeat(
            np.arange(first, last + 1),
            np.diff(np.concatenate([[done], np.minimum(total[first : last + 1], stop)])),
        )
        yield ends[owner] - (total[owner] - counted)
        done = stop


def _newly_met(
    graph: Graph, positions: Int64[np.ndarray, " positions"], met: Bool[np.ndarray, " nodes"]
) -> Int64[np.ndarray, " new"]:
    neighbors = graph.neighbors_at(positions).astype(np.int64)
    candidates = neighbors[~met[neighbors]]
    _, first = np.unique(candidates, return_index=True)
    new = candidates[np.sort(first)]
    met[new] = True
    return new
