"""Numbers the nodes of a mini-batch in the order in which they are first seen."""

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Integer

from ginex_jax.graph import CSCGraph
from ginex_jax.sampling import kernels

_LEAST_CAPACITY = 1 << 12
_GROWTH = 4


class LocalIds:
    """A hash table of a size with the batch, not with the graph: at most half full, 8 bytes an entry, grown fourfold as needed."""

    def __init__(self, seeds: Int64[np.ndarray, " seeds"]) -> None:
        self._known = 0
        self._node_ids = np.empty(0, np.int64)
        self._reserve(_LEAST_CAPACITY)
        self.seed_positions = self.number(seeds)

    def __len__(self) -> int:
        return self._known

    @property
    def node_ids(self) -> Int64[np.ndarray, " nodes"]:
        """In the order of their local ids; a view."""
        return self._node_ids[: self._known]

    def number(self, nodes: Integer[np.ndarray, " nodes"]) -> Int32[np.ndarray, " nodes"]:
        """The local ids of nodes, new ones from left to right."""
        labels, done = np.empty(len(nodes), np.int32), 0
        while True:
            done, self._known = kernels.number(nodes, done, labels, *self._state)
            if done == len(nodes):
                return labels
            self._reserve(_GROWTH * len(self._node_ids))

    def sample_hop(
        self,
        graph: CSCGraph,
        key: np.uint64,
        by_weight: bool,
        neighbors: Int32[np.ndarray, "destinations fanout"],
        mask: Bool[np.ndarray, "destinations fanout"],
        weights: Float32[np.ndarray, "rows fanout"],
    ) -> None:
        """Fills the arrays of a block whose destinations are the nodes known at first. `weights` may have no rows."""
        graph_weights = np.empty(0, np.float32) if graph.weights is None else np.asarray(graph.weights)
        lists = np.asarray(graph.indptr), np.asarray(graph.indices), graph_weights
        row = 0
        while True:
            row, self._known = kernels.sample_hop(key, *lists, by_weight, row, neighbors, mask, weights, *self._state)
            if row == len(neighbors):
                return
            self._reserve(max(_GROWTH * len(self._node_ids), self._known + 64 * mask.shape[1]))

    @property
    def _state(self) -> tuple[np.ndarray, int, np.ndarray, np.uint64]:
        return self._node_ids, self._known, self._table, self._shift

    def _reserve(self, capacity: int) -> None:
        if len(self._node_ids) >= kernels.MAX_LABELS:
            raise ValueError(f"a mini-batch should have at most {kernels.MAX_LABELS} nodes")
        table_bits = (2 * min(capacity, kernels.MAX_LABELS) - 1).bit_length()
        node_ids = np.empty(1 << (table_bits - 1), np.int64)
        node_ids[: self._known] = self.node_ids
        self._node_ids, self._shift = node_ids, np.uint64(64 - table_bits)
        self._table = np.full(1 << table_bits, kernels.EMPTY, np.int64)
        kernels.rebuild(self._node_ids, self._known, self._table, self._shift)
