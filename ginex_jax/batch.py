"""Mini-batches: what one training step sees of the graph, with static shapes."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Shaped

if TYPE_CHECKING:
    import jraph

TABLE_WIDTHS = (4, 16, 64, 256)
COMBINE_WIDTHS = (8, 64, 512, 4096, 32768, 262144)  # in rows of the widest table: 67 M neighbours in the end


class Block(NamedTuple):
    """One hop of a fixed fan-out, dense. Where `mask` is False, the neighbour is 0 and the weight 0: reading it is harmless.

    Local ids count the nodes of the mini-batch. Destinations are the first of the sources: row i is the list of local id i.
    """

    neighbors: Int32[np.ndarray, "destinations fanout"]
    mask: Bool[np.ndarray, "destinations fanout"]
    weights: Float32[np.ndarray, "destinations fanout"] | None = None

    @property
    def num_destinations(self) -> int:
        return self.mask.shape[0]


class DegreeTable(NamedTuple):
    """Lists of at most `width` entries, one a row, masked as in `Block`."""

    entries: Int32[np.ndarray, "rows width"]
    mask: Bool[np.ndarray, "rows width"]
    weights: Float32[np.ndarray, "rows width"] | None = None


class DegreeBlock(NamedTuple):
    """One hop with all neighbours: every list in the narrowest table that holds it, and no scatter to sum them up.

    The sum of x over the neighbours of every destination is, with row sums meaning `sum(where(mask, x[entries], 0), axis=1)`:

        sums   = concatenate([0, row sums of x for each of tables])
        sums   = concatenate([sums, row sums of these sums for each of combines])
        result = sums[rows]

    A list longer than the widest table is cut into rows of it, one after the other, and a row of `combines` names the pieces. Row 0 is the
    sum over nothing, for destinations without neighbours and padding. The widths are TABLE_WIDTHS and COMBINE_WIDTHS; tables may be empty.
    `ginex_jax.sampling.aggregation.aggregate_sum` computes it.
    """

    tables: tuple[DegreeTable, ...]
    combines: tuple[DegreeTable, ...]
    rows: Int32[np.ndarray, " destinations"]
    degrees: Int32[np.ndarray, " destinations"]

    @property
    def num_destinations(self) -> int:
        return self.rows.shape[0]

    @property
    def num_rows(self) -> "DegreeRows":
        return DegreeRows(*(tuple(len(table.mask) for table in tables) for tables in (self.tables, self.combines)))


class DegreeRows(NamedTuple):
    """The number of rows of every table of a `DegreeBlock`."""

    tables: tuple[int, ...]
    combines: tuple[int, ...]


class BatchShape(NamedTuple):
    """All that a compiled step depends on: level h holds the nodes within h hops of the seeds, level 0 being the seeds.

    `degree_rows[h]` are those of the hop from level h to level h + 1; None where its fan-out is fixed.
    """

    batch_size: int
    level_sizes: tuple[int, ...]
    degree_rows: tuple[DegreeRows | None, ...]

    def holds(self, other: "BatchShape") -> bool:
        """Whether every array of the other shape fits into this one's."""
        if [rows is None for rows in self.degree_rows] != [rows is None for rows in other.degree_rows]:
            return False
        return all(ours >= theirs for ours, theirs in zip(self.sizes, other.sizes, strict=True))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every number in it, in a fixed order."""
        rows = [number for rows in self.degree_rows if rows is not None for number in (*rows.tables, *rows.combines)]
        return (self.batch_size, *self.level_sizes, *rows)


class MiniBatch(NamedTuple):
    """The nodes and edges of one training step.

    Attributes:
      node_ids: distinct; the seeds first, then as first seen: hop by hop, each row of a block from left to right. Never padded.
      blocks: in the order in which layers apply them. The destinations of blocks[-1] are the seeds; every block's destinations are a prefix
        of its sources, which are the destinations of the block before, or all nodes.
      seed_positions: the local id of every seed as given; those given twice share one. 0 where seed_mask is False.
      seed_mask: False for padding.
      level_sizes: distinct seeds, and distinct nodes after each hop, without padding.
      shape: that of the arrays, with padding.
    """

    node_ids: Int64[np.ndarray, " nodes"]
    blocks: tuple[Block | DegreeBlock, ...]
    seed_positions: Int32[np.ndarray, " batch_size"]
    seed_mask: Bool[np.ndarray, " batch_size"]
    level_sizes: tuple[int, ...]
    shape: BatchShape

    def pad_features(self, features: Shaped[np.ndarray, "nodes ..."]) -> Shaped[np.ndarray, "padded ..."]:
        """Rows of `node_ids`, with zeros up to the size that the first block reads. ValueError for another number of rows."""
        if len(features) != len(self.node_ids):
            raise ValueError(f"features should be one row for each of {len(self.node_ids)} nodes, got {features.shape}")
        return grown(features, self.shape.level_sizes[-1])

    def to_graphs_tuple(self, features: Shaped[np.ndarray, "nodes ..."] | None = None) -> "jraph.GraphsTuple":
        """As a padded `jraph.GraphsTuple`: the graph, and a graph of padding with at least one node. All shapes follow from `shape`.

        Nodes are a dict of `id` (the ids of the whole graph: int64, NumPy's; padding is 0) and, if given, `features`; edges one of `hop`
        (0 for that into the seeds) and `weight` (1 where the graph has none), int32 and float32. An edge runs from the neighbour to the
        node whose list it is in; senders and receivers are local ids. The edges of several hops are there together.

        Args:
          features: rows of `node_ids`.
        """
        import jraph

        num_nodes, padded_nodes = len(self.node_ids), self.shape.level_sizes[-1] + 1
        hops = [_edges(block, hop) for hop, block in enumerate(reversed(self.blocks))]
        senders, receivers, hop_numbers, weights = (np.concatenate(arrays) for arrays in zip(*hops, strict=True))
        num_edges, padded_edges = len(senders), sum(_num_places(block) for block in self.blocks)
        nodes = {"id": grown(self.node_ids, padded_nodes)}
        if features is not None:
            nodes["features"] = grown(self.pad_features(features), padded_nodes)
        ends = np.full((2, padded_edges), num_nodes, np.int32)  # edges of padding run within its first node
        ends[:, :num_edges] = senders, receivers
        return jraph.GraphsTuple(
            nodes=nodes,
            edges={"hop": grown(hop_numbers, padded_edges), "weight": grown(weights, padded_edges)},
            senders=ends[0],
            receivers=ends[1],
            globals=None,
            n_node=np.array([num_nodes, padded_nodes - num_nodes], np.int32),  # pyright: ignore[reportArgumentType]
            n_edge=np.array([num_edges, padded_edges - num_edges], np.int32),  # pyright: ignore[reportArgumentType]
        )


def padded(batch: MiniBatch, shape: BatchShape) -> MiniBatch:
    """The same mini-batch in the larger arrays of `shape`; additional seeds are masked.

    Raises:
      ValueError: it does not fit.
    """
    if not shape.holds(batch.shape):
        raise ValueError(f"a mini-batch of {batch.shape} does not fit into {shape}")
    blocks = tuple(
        _padded_block(block, shape.level_sizes[hop], shape.degree_rows[hop])
        for hop, block in zip(reversed(range(len(batch.blocks))), batch.blocks, strict=True)
    )
    seeds = grown(batch.seed_positions, shape.batch_size), grown(batch.seed_mask, shape.batch_size)
    return MiniBatch(batch.node_ids, blocks, *seeds, batch.level_sizes, shape)


def grown(array: Shaped[np.ndarray, "rows ..."], num_rows: int) -> Shaped[np.ndarray, "num_rows ..."]:
    """With zeros, or False, up to that many rows."""
    if len(array) == num_rows:
        return array
    result = np.empty((num_rows, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    result[len(array) :] = 0
    return result


def _padded_block(block: Block | DegreeBlock, num_destinations: int, rows: DegreeRows | None) -> Block | DegreeBlock:
    if isinstance(block, Block) or rows is None:
        return type(block)(*(None if array is None else grown(array, num_destinations) for array in block))  # pyright: ignore
    old_sizes = (1, *block.num_rows.tables, *block.num_rows.combines)
    new_sizes = (1, *rows.tables, *rows.combines)

    def moved(references: Int32[np.ndarray, "..."]) -> Int32[np.ndarray, "..."]:
        """The rows' numbers once every table before theirs has grown."""
        old_starts, new_starts = (np.cumsum((0, *sizes[:-1])) for sizes in (old_sizes, new_sizes))
        table = np.searchsorted(np.cumsum(old_sizes), references, side="right")
        return (references + (new_starts - old_starts)[table]).astype(np.int32)

    combines = tuple(table._replace(entries=moved(table.entries)) for table in block.combines)
    return DegreeBlock(
        tables=tuple(_padded_table(table, size) for table, size in zip(block.tables, rows.tables, strict=True)),
        combines=tuple(_padded_table(table, size) for table, size in zip(combines, rows.combines, strict=True)),
        rows=grown(moved(block.rows), num_destinations),
        degrees=grown(block.degrees, num_destinations),
    )


def _padded_table(table: DegreeTable, num_rows: int) -> DegreeTable:
    return DegreeTable(*(None if array is None else grown(array, num_rows) for array in table))  # pyright: ignore


def _num_places(block: Block | DegreeBlock) -> int:
    return block.mask.size if isinstance(block, Block) else sum(table.mask.size for table in block.tables)


def _edges(block: Block | DegreeBlock, hop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Senders, receivers, hops and weights of what is not masked, row by row."""
    if isinstance(block, Block):
        lists = [(block.neighbors, block.mask, block.weights, np.arange(block.num_destinations))]
    else:
        owners = _owners(block)
        starts = np.cumsum((1, *block.num_rows.tables))
        lists = [
            (table.entries, table.mask, table.weights, owners[start:])
            for table, start in zip(block.tables, starts[:-1], strict=True)
        ]
    parts = []
    for entries, mask, weights, receivers in lists:
        rows = np.nonzero(mask)[0]
        ones = np.ones(len(rows), np.float32)
        parts.append((entries[mask], receivers[rows].astype(np.int32), ones if weights is None else weights[mask]))
    senders, receivers, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return senders, receivers, np.full(len(senders), hop, np.int32), weights


def _owners(block: DegreeBlock) -> Int64[np.ndarray, " rows"]:
    """The destination of every row of the tables and combines; 0 for padding."""
    owners = np.zeros(1 + sum(block.num_rows.tables) + sum(block.num_rows.combines), np.int64)
    owners[block.rows] = np.arange(block.num_destinations)
    start = 1 + sum(block.num_rows.tables)
    for table in block.combines:
        piece_owners = np.broadcast_to(owners[start : start + len(table.mask), None], table.mask.shape)
        owners[table.entries[table.mask]] = piece_owners[table.mask]
        start += len(table.mask)
    return owners
