"""Sets of edges, and mini-batches without them: what must not be seen while it is being predicted."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer

from ginex_jax.batch import Block, DegreeBlock, DegreeTable, MiniBatch, row_owners
from ginex_jax.features import require_within

_MAX_NODES = 3_037_000_499  # whose square is below 2**63


class EdgeSet(NamedTuple):
    """Distinct edges of a graph. 8 bytes an edge.

    Attributes:
      keys: `target * num_nodes + source`, ascending.
      num_nodes: of the graph, at most 3,037,000,499.
    """

    keys: Int64[np.ndarray, " edges"]
    num_nodes: int

    def __len__(self) -> int:
        return len(self.keys)

    def contains(
        self, sources: Int64[np.ndarray, "*#pairs"], targets: Int64[np.ndarray, "*#pairs"]
    ) -> Bool[np.ndarray, "..."]:
        """For each pair of nodes, broadcast, whether the edge from one to the other is in the set. O(pairs * log(edges))."""
        wanted = targets * self.num_nodes + sources
        if len(self.keys) == 0:
            return np.zeros(wanted.shape, np.bool_)
        places = np.searchsorted(self.keys, wanted)
        return self.keys[np.minimum(places, len(self.keys) - 1)] == wanted

    def edges(self) -> Int64[np.ndarray, "edges 2"]:
        """(source, target), by target and then source."""
        return np.stack([self.keys % self.num_nodes, self.keys // self.num_nodes], axis=1)


def edge_set(edges: Int64[np.ndarray, "edges 2"], num_nodes: int, *, both_directions: bool = False) -> EdgeSet:
    """The set of these edges, (source, target); with `both_directions`, of the reverse ones too.

    Raises:
      ValueError: a node is not in [0, num_nodes), or there are too many nodes.

    O(edges * log(edges)).
    """
    if num_nodes > _MAX_NODES:
        raise ValueError(f"a set of edges takes graphs of at most {_MAX_NODES} nodes, got {num_nodes}")
    require_within(edges.reshape(-1), num_nodes, "nodes of edges")
    keys = edges[:, 1] * num_nodes + edges[:, 0]
    if both_directions:
        keys = np.concatenate([keys, edges[:, 0] * num_nodes + edges[:, 1]])
    return EdgeSet(np.unique(keys), num_nodes)


def without_edges(batch: MiniBatch, excluded: EdgeSet) -> MiniBatch:
    """The mini-batch with every edge of the set masked, in every hop; repeated edges all of them.

    The arrays' sizes and the nodes stay: those that only an excluded edge led to are still there, and nothing depends on them. What was
    drawn is not drawn again, so that a list may be shorter than its fan-out; what is left of a uniform draw is a uniform draw of the
    other neighbours. Padded or not.

    O(destinations * log(excluded)), and O(entries * log(list of the set)) for lists that the set points to.
    """
    if len(excluded) == 0:
        return batch
    mask_block = functools.partial(_masked, node_ids=batch.node_ids, excluded=excluded)
    return batch._replace(blocks=tuple(mask_block(block) for block in batch.blocks))


def _masked(
    block: Block | DegreeBlock, *, node_ids: Int64[np.ndarray, " nodes"], excluded: EdgeSet
) -> Block | DegreeBlock:
    if isinstance(block, Block):
        owners = np.minimum(np.arange(block.num_destinations), len(node_ids) - 1)  # rows of padding have no entries
        table, _ = _masked_table(DegreeTable(*block), owners, node_ids, excluded)
        return Block(*table)
    owners, start, tables = row_owners(block), 1, []
    degrees = block.degrees.copy()
    for table in block.tables:
        table_owners = owners[start : start + len(table.mask)]
        start += len(table.mask)
        table, num_masked = _masked_table(table, table_owners, node_ids, excluded)
        tables.append(table)
        np.subtract.at(degrees, table_owners, num_masked.astype(degrees.dtype))
    return block._replace(tables=tuple(tables), degrees=degrees)


def _masked_table(
    table: DegreeTable, owners: Int64[np.ndarray, " rows"], node_ids: Int64[np.ndarray, " nodes"], excluded: EdgeSet
) -> tuple[DegreeTable, Integer[np.ndarray, " rows"]]:
    """The table without them, and how many entries of every row that took."""
    from ginex_jax.sampling.kernels import mark_edges

    gone, counts = np.zeros(table.mask.shape, np.bool_), np.zeros(len(owners), np.int64)
    mark_edges(excluded.keys, excluded.num_nodes, node_ids, owners, table.entries, table.mask, gone, counts)
    if not counts.any():
        return table, counts
    arrays = (None if array is None else np.where(gone, np.zeros((), array.dtype), array) for array in table)
    return DegreeTable(*arrays), counts  # pyright: ignore[reportArgumentType]
