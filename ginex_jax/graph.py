"""Graphs by in-neighbours: the lists that a neighbour sampler reads."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, Integer

_NODES_AT_ONCE = 1 << 20


@runtime_checkable
class Graph(Protocol):
    """What sampling needs of a graph: where every list lies, in memory, and the neighbours at given positions, from anywhere.

    The in-neighbours of node v lie at the positions `indptr[v]` up to, not including, `indptr[v + 1]`. Implementations are
    deterministic and may be read by several threads at once.
    """

    @property
    def indptr(self) -> Int64[np.ndarray, " nodes_plus_one"]: ...

    @property
    def num_nodes(self) -> int: ...

    @property
    def num_edges(self) -> int: ...

    @property
    def is_weighted(self) -> bool: ...

    def neighbors_at(self, positions: Int64[np.ndarray, " positions"]) -> Integer[np.ndarray, " positions"]:
        """The neighbours at these positions of the lists, in any order and with repetitions."""
        ...

    def weights_at(self, positions: Int64[np.ndarray, " positions"]) -> Float32[np.ndarray, " positions"]:
        """The weights of the edges at these positions; raises ValueError where the graph has none."""
        ...


class CSCGraph(NamedTuple):
    """A graph in memory: in-neighbours by destination, `indices[indptr[v] : indptr[v + 1]]` point into v.

    With 4 nodes and the edges 1 -> 0, 2 -> 0, 0 -> 2, 3 -> 2, 3 -> 2:

        indptr  = [0, 2, 2, 5, 5]
        indices = [1, 2, 0, 3, 3]

    The following hold (see `validate`): `indptr[0] == 0`, it never falls, `indptr[-1] == len(indices)`, every index is a node, and
    weights, where there are any, are one for each edge, finite and at least 0. In a dataset each list ascends.
    """

    indptr: Int64[np.ndarray, " nodes_plus_one"]
    indices: Integer[np.ndarray, " edges"]
    weights: Float32[np.ndarray, " edges"] | None = None

    @property
    def num_nodes(self) -> int:
        return len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        return len(self.indices)

    @property
    def is_weighted(self) -> bool:
        return self.weights is not None

    def neighbors_at(self, positions: Int64[np.ndarray, " positions"]) -> Integer[np.ndarray, " positions"]:
        return self.indices[positions]

    def weights_at(self, positions: Int64[np.ndarray, " positions"]) -> Float32[np.ndarray, " positions"]:
        if self.weights is None:
            raise ValueError("the graph has no edge weights")
        return self.weights[positions]


def check_rising(indptr: Int64[np.ndarray, " nodes_plus_one"], what: str = "indptr") -> None:
    """Raises ValueError, with the first offender, if it falls anywhere. O(nodes), in little memory."""
    for start in range(0, len(indptr), _NODES_AT_ONCE):
        piece = indptr[start : start + _NODES_AT_ONCE + 1]
        if (falls := np.flatnonzero(piece[1:] < piece[:-1])).size:
            node = start + falls[0]
            raise ValueError(f"{what} falls after node {node}: {indptr[node]} to {indptr[node + 1]}")


def require_nodes(ids: Integer[np.ndarray, " ids"], num_nodes: int, source: object) -> None:
    """Raises ValueError, with the first that is not, unless all ids that came from `source` are in [0, num_nodes).

    Compiled code that reads lists does not look again. O(ids), far less than reading them.
    """
    if len(ids) and (ids.min() < 0 or ids.max() >= num_nodes):
        first = ids[np.flatnonzero((ids < 0) | (ids >= num_nodes))[0]]
        raise ValueError(f"{source} is damaged: it has a node {first}, and there are {num_nodes} nodes, from 0 on")


def validate(graph: CSCGraph) -> None:
    """Raises ValueError, with the first offender, unless the equations in the docstring of `CSCGraph` hold. O(nodes + edges)."""
    indptr, indices, weights = graph
    if indptr.ndim != 1 or len(indptr) == 0 or indptr.dtype != np.int64:
        raise ValueError(f"indptr should be int64 [nodes + 1], got {indptr.dtype} {indptr.shape}")
    if indices.ndim != 1 or indices.dtype not in (np.int32, np.int64):
        raise ValueError(f"indices should be int32 or int64 [edges], got {indices.dtype} {indices.shape}")
    if indptr[0] != 0 or indptr[-1] != len(indices):
        raise ValueError(f"indptr should run from 0 to {len(indices)} edges, got {indptr[0]} to {indptr[-1]}")
    check_rising(indptr)
    outside = np.flatnonzero((indices < 0) | (indices >= graph.num_nodes))
    if outside.size:
        raise ValueError(
            f"indices[{outside[0]}] is {indices[outside[0]]}, and there are {graph.num_nodes} nodes: 0 to {graph.num_nodes - 1}"
        )
    if weights is None:
        return
    if weights.shape != indices.shape or weights.dtype != np.float32:
        raise ValueError(f"weights should be float32 {indices.shape}, got {weights.dtype} {weights.shape}")
    if (bad := np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))).size:
        raise ValueError(f"weights[{bad[0]}] is {weights[bad[0]]}: weights should be finite and at least 0")
