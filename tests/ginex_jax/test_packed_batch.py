"""A batch that was packed is the batch it was."""

import jax
import numpy as np
import pytest

from ginex_jax.graph import CSCGraph
from ginex_jax.pipeline.packed_batch import pack, unpack
from ginex_jax.sampling.neighbors import sample_batch


def random_graph(num_nodes: int, num_edges: int, *, weighted: bool) -> CSCGraph:
    rng = np.random.default_rng(0)
    indptr = np.concatenate([[0], np.sort(rng.integers(0, num_edges, num_nodes - 1)), [num_edges]]).astype(np.int64)
    weights = rng.random(num_edges, np.float32) if weighted else None
    return CSCGraph(indptr, rng.integers(0, num_nodes, num_edges).astype(np.int32), weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fanouts", [(3,), (2, 5), (None,), (3, None)])
def test_round_trip(fanouts: tuple[int | None, ...], weighted: bool) -> None:
    graph = random_graph(500, 3000, weighted=weighted)
    batch = sample_batch(graph, np.array([3, 9, 3, 77]), fanouts=fanouts, seed=1, epoch=2, index=3)
    packed = pack(batch)
    restored = unpack(packed)
    assert jax.tree.structure(restored) == jax.tree.structure(batch)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
    if None not in fanouts:
        num_edges = sum(int(block.mask.sum()) for block in batch.blocks)
        per_edge = 8 if weighted else 4
        places = sum(block.mask.size for block in batch.blocks)
        assert packed.nbytes <= 4 * len(batch.node_ids) + per_edge * num_edges + places / 8 + 100


def test_ids_beyond_int32_stay_what_they_are() -> None:
    graph = random_graph(50, 300, weighted=False)
    batch = sample_batch(graph, np.array([1]), fanouts=(2,), seed=0, epoch=0, index=0)
    far = batch._replace(node_ids=batch.node_ids + 2**31)
    np.testing.assert_array_equal(unpack(pack(far)).node_ids, far.node_ids)
