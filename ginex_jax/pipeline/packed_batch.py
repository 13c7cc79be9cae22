"""A mini-batch while it waits for its turn: as little memory as it can be made again from."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Integer, UInt8

from ginex_jax.batch import BatchShape, Block, DegreeBlock, MiniBatch

_MAX_INT32 = 2**31


class PackedBlock(NamedTuple):
    """A `Block` without its empty places: where a place is taken, one bit; what is in it, 4 bytes."""

    taken: UInt8[np.ndarray, " bytes"]
    neighbors: Int32[np.ndarray, " edges"]
    weights: Float32[np.ndarray, " edges"] | None
    shape: tuple[int, int]


class PackedBatch(NamedTuple):
    """`pack` makes it of a mini-batch without padding."""

    node_ids: Integer[np.ndarray, " nodes"]  # int32 where they fit
    blocks: tuple[PackedBlock | DegreeBlock, ...]
    seed_positions: Int32[np.ndarray, " batch_size"]
    level_sizes: tuple[int, ...]
    shape: BatchShape

    @property
    def nbytes(self) -> int:
        return self.node_ids.nbytes + self.seed_positions.nbytes + sum(_nbytes(block) for block in self.blocks)


def pack(batch: MiniBatch) -> PackedBatch:
    """Some 4 bytes a node and an edge. `batch` has no padding."""
    node_ids = batch.node_ids
    if len(node_ids) == 0 or node_ids.max() < _MAX_INT32:
        node_ids = node_ids.astype(np.int32)
    blocks = tuple(block if isinstance(block, DegreeBlock) else _packed(block) for block in batch.blocks)
    return PackedBatch(node_ids, blocks, batch.seed_positions, batch.level_sizes, batch.shape)


def unpack(packed: PackedBatch) -> MiniBatch:
    """Undoes `pack`."""
    return MiniBatch(
        node_ids=packed.node_ids.astype(np.int64),
        blocks=tuple(block if isinstance(block, DegreeBlock) else _unpacked(block) for block in packed.blocks),
        seed_positions=packed.seed_positions,
        seed_mask=np.ones(len(packed.seed_positions), np.bool_),
        level_sizes=packed.level_sizes,
        shape=packed.shape,
    )


def _packed(block: Block) -> PackedBlock:
    weights = None if block.weights is None else block.weights[block.mask]
    return PackedBlock(np.packbits(block.mask), block.neighbors[block.mask], weights, block.mask.shape)


def _unpacked(block: PackedBlock) -> Block:
    places = block.shape[0] * block.shape[1]
    mask = np.unpackbits(block.taken, count=places).view(np.bool_).reshape(block.shape)
    neighbors = np.zeros(block.shape, np.int32)
    neighbors[mask] = block.neighbors
    return Block(neighbors, mask, None if block.weights is None else _spread(block.weights, mask))


def _spread(
    values: Float32[np.ndarray, " edges"], mask: Bool[np.ndarray, "rows width"]
) -> Float32[np.ndarray, "rows width"]:
    spread = np.zeros(mask.shape, np.float32)
    spread[mask] = values
    return spread


def _nbytes(block: PackedBlock | DegreeBlock) -> int:
    if isinstance(block, PackedBlock):
        return sum(array.nbytes for array in block[:3] if array is not None)
    tables = [array for table in (*block.tables, *block.combines) for array in table if array is not None]
    return sum(array.nbytes for array in (block.rows, block.degrees, *tables))
