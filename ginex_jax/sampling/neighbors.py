"""Neighbour sampling: a mini-batch is a pure function of the graph, its seed nodes and (seed, epoch, index)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from ginex_jax.batch import BatchShape, DegreeBlock, MiniBatch
from ginex_jax.features import require_within
from ginex_jax.graph import Graph
from ginex_jax.sampling.config import check_fanouts


def sample_batch(
    graph: Graph,
    seed_nodes: Int64[np.ndarray, " seeds"],
    *,
    fanouts: Sequence[int | None],
    seed: int,
    epoch: int,
    index: int,
    weighted: bool = False,
) -> MiniBatch:
    """The neighbourhood of some seed nodes, as many hops deep as there are fan-outs. Bit-identical wherever and whenever it is asked for.

    Every hop draws for all nodes so far, and then numbers the new ones in the order in which they are seen, row by row. Uniform: each
    node gets `fanout` distinct places of its list, every set of places as likely, so that a repeated edge counts as often as it is there;
    a list no longer than that is taken whole and in order. Weighted: one after another without replacement, in proportion to the weight of
    what is left; an edge of weight 0 is never drawn. Ginex (Park et al., VLDB 2022), section 2; what its code does otherwise is in
    docs/ginex.md.

    Args:
      graph: in memory (`CSCGraph`), or anywhere; then each hop asks for all its neighbours in one call of `neighbors_at`.
      seed_nodes: in [0, graph.num_nodes), at least one, with repetitions if you like.
      fanouts: neighbours a node, for each hop from the seeds outwards, at least 1; None takes all of them, edges of weight 0 included.
      seed: in [0, 2**64).
      epoch: in [0, 2**63).
      index: of the batch within the epoch, in [0, 2**63).
      weighted: draw in proportion to the edges' weights.

    Returns:
      The mini-batch, without padding. Blocks carry weights if the graph has any.

    Raises:
      ValueError: an argument is out of range, a seed node is not in the graph, or the graph has no weights to draw by.

    Time O(edges drawn * fanout), weighted O(edges of the nodes) besides; memory at most 110 bytes a node of the batch
    and 5 a place of the blocks, none of it with the graph.
    """
    check_fanouts(fanouts)
    for name, value, bits in (("seed", seed, 64), ("epoch", epoch, 63), ("index", index, 63)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name} should be in [0, 2**{bits}), got {value}")
    return sample_any_epoch(graph, seed_nodes, fanouts=fanouts, seed=seed, epoch=epoch, index=index, weighted=weighted)


def sample_any_epoch(
    graph: Graph,
    seed_nodes: Int64[np.ndarray, " seeds"],
    *,
    fanouts: Sequence[int | None],
    seed: int,
    epoch: int,
    index: int,
    weighted: bool,
) -> MiniBatch:
    """`sample_batch`, the reserved epochs from 2**63 up included."""
    from ginex_jax.random_numbers import batch_key, hashed
    from ginex_jax.sampling.hops import MAX_NODES, all_neighbors, drawn_neighbors
    from ginex_jax.sampling.local_ids import LocalIds

    if weighted and not graph.is_weighted:
        raise ValueError("weighted sampling needs edge weights, and the graph has none")
    if graph.num_nodes > MAX_NODES:
        raise ValueError(f"the graph should have at most {MAX_NODES} nodes, got {graph.num_nodes}")
    if len(seed_nodes) == 0:
        raise ValueError("there should be at least one seed node")
    require_within(seed_nodes, graph.num_nodes, "seed nodes")
    batch, known = batch_key(seed, epoch, index), LocalIds(seed_nodes)
    hops, level_sizes = [], [len(known)]
    for hop, fanout in enumerate(fanouts):
        if fanout is None:
            hops.append(all_neighbors(graph, known))
        else:
            hops.append(drawn_neighbors(graph, known, fanout, hashed(batch, hop), weighted))
        level_sizes.append(len(known))
    rows = tuple(block.num_rows if isinstance(block, DegreeBlock) else None for block in hops)
    return MiniBatch(
        node_ids=known.node_ids.copy(),
        blocks=tuple(reversed(hops)),
        seed_positions=known.seed_positions,
        seed_mask=np.ones(len(seed_nodes), np.bool_),
        level_sizes=tuple(level_sizes),
        shape=BatchShape(len(seed_nodes), tuple(level_sizes), rows),
    )
