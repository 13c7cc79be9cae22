import itertools

import numpy as np
import pytest
import scipy.stats

from ginex_jax.belady.policies import NoCache
from ginex_jax.features import ArrayFeatures
from ginex_jax.graph import CSCGraph
from ginex_jax.pipeline.disk_loader import DiskLoader
from ginex_jax.pipeline.loading import Loader
from ginex_jax.pipeline.memory_loader import MemoryLoader
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.edge_set import EdgeSet, edge_set
from ginex_jax.sampling.edge_split import edges_of, split_edges
from ginex_jax.sampling.links import LinkConfig, links_at, uniform_negatives
from ginex_jax.sampling.samplers import WHOLE, BatchSampler, LinkSampler, NodeSampler, Share, sampled
from tests.ginex_jax import oracles_links as oracles
from tests.ginex_jax import oracles_sampling as sampling
from tests.ginex_jax.test_sampling import same

GRAPH = sampling.random_graph(300, seed=7, longest=20)
EDGES = edges_of(GRAPH)
SPLIT = split_edges(EDGES, valid_fraction=0.1, test_fraction=0.1, seed=0, undirected=True)
HELD_OUT = edge_set(np.concatenate([SPLIT.valid, SPLIT.test]), 300, both_directions=True)
CONFIG = LinkConfig(sampling=SamplerConfig(fanouts=(4, 3), batch_size=20, seed=3), num_negatives=2)


def test_links_equal_the_oracles() -> None:
    edges = [tuple(edge) for edge in SPLIT.train.tolist()]
    where = {"num_nodes": 300, "epoch": 2}
    for index in (0, 3, -(-len(edges) // 20) - 1):
        links = links_at(SPLIT.train, CONFIG, index=index, **where)
        expected = oracles.links(edges, batch_size=20, num_negatives=2, seed=3, index=index, **where)
        found = zip(links.sources.tolist(), links.targets.tolist(), links.negatives.tolist(), strict=True)
        assert list(found) == expected
        assert links.seed_nodes.tolist() == [node for u, v, negatives in expected for node in (u, v, *negatives)]


def test_an_epoch_has_every_target_edge_once() -> None:
    steps = -(-len(SPLIT.train) // 20)
    all_links = [links_at(SPLIT.train, CONFIG, num_nodes=300, epoch=1, index=index).edges for index in range(steps)]
    assert sorted(np.concatenate(all_links).tolist()) == sorted(SPLIT.train.tolist())
    with pytest.raises(ValueError, match=f"got {steps}"):
        links_at(SPLIT.train, CONFIG, num_nodes=300, epoch=1, index=steps)


def test_negatives_are_uniform_and_can_avoid_edges() -> None:
    sources = np.arange(500, dtype=np.int64) % 10
    nodes = uniform_negatives(sources, 40, num_nodes=10, key=5)
    assert scipy.stats.chisquare(np.bincount(nodes.reshape(-1), minlength=10)).pvalue > 1e-3
    avoid = edge_set(np.array([(u, v) for u in range(10) for v in range(10) if (u + v) % 2]), 10)
    others = uniform_negatives(sources, 40, num_nodes=10, key=5, avoid=avoid)
    kept = ~avoid.contains(sources[:, None], nodes)
    np.testing.assert_array_equal(others[kept], nodes[kept])
    assert avoid.contains(sources[:, None], others).mean() < 0.01  # a half to the eighth
    even = np.bincount(others[sources == 2].reshape(-1), minlength=10)[::2]
    assert scipy.stats.chisquare(even).pvalue > 1e-3
    np.testing.assert_array_equal(nodes[7:], uniform_negatives(sources[7:], 40, num_nodes=10, key=5, first=7))


@pytest.mark.parametrize("fanouts", [(4, 3), (None, None)])
@pytest.mark.parametrize("undirected", [False, True])
def test_a_batch_sees_neither_its_targets_nor_held_out_edges(fanouts: tuple[int | None, ...], undirected: bool) -> None:
    config = LinkConfig(sampling=SamplerConfig(fanouts=fanouts, batch_size=20), undirected=undirected)
    sampler = LinkSampler(GRAPH, SPLIT.train, config, held_out=HELD_OUT)
    for index in range(3):
        batch, links = sampler.sampled(0, index), sampler.links(0, index)
        hidden = {tuple(edge) for edge in (*links.edges.tolist(), *HELD_OUT.edges().tolist())}
        if undirected:
            hidden |= {(v, u) for u, v in hidden}
        where = {"fanouts": fanouts, "seed": 0, "epoch": 0, "index": index}
        whole = sampling.sample(GRAPH, links.seed_nodes.tolist(), **where)
        seen = [
            sorted(
                (whole.node_ids[source], whole.node_ids[target], np.float32(weight))
                for target, row in enumerate(rows)
                for source, weight in row
                if (whole.node_ids[source], whole.node_ids[target]) not in hidden
            )
            for rows in whole.hops
        ]
        assert oracles.edges_of_batch(batch) == seen
        assert sum(map(len, seen)) < sum(len(row) for rows in whole.hops for row in rows)
        positions = batch.seed_positions.reshape(-1, 3)
        np.testing.assert_array_equal(batch.node_ids[positions[:, :2]], links.edges)
        np.testing.assert_array_equal(batch.node_ids[positions[:, 2:]], links.negatives)


def test_a_loader_of_links() -> None:
    sampler = LinkSampler(GRAPH, SPLIT.train, CONFIG, held_out=HELD_OUT)
    features = np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32)
    loader = MemoryLoader.of(sampler, ArrayFeatures(features))
    assert isinstance(loader, Loader) and isinstance(sampler, BatchSampler)
    assert loader.steps_per_epoch == -(-len(SPLIT.train) // 20)
    last = loader.steps_per_epoch - 1
    loaded = list(loader.stream(last, last + 2))
    rest = len(SPLIT.train) - 20 * last
    mask = loaded[0].batch.seed_mask.reshape(-1, 4)
    assert mask.shape == (20, 4) and mask[:rest].all() and not mask[rest:].any()
    assert (loaded[1].epoch, loaded[1].index) == (1, 0)
    again = LinkSampler(GRAPH, SPLIT.train, CONFIG, held_out=HELD_OUT, shapes=sampler.shapes)
    assert again.state == sampler.state
    assert LinkSampler(GRAPH, SPLIT.train, CONFIG, shapes=sampler.shapes).state != sampler.state
    assert LinkSampler(GRAPH, SPLIT.train[:-1], CONFIG, held_out=HELD_OUT).state != sampler.state


@pytest.mark.parametrize("share", [WHOLE, Share(1, 4)])
def test_links_come_through_the_pipeline(share: Share) -> None:
    """All neighbours in one hop, masked edges in both, and in the last batch a share of none."""
    config = LinkConfig(sampling=SamplerConfig(fanouts=(None, 3), batch_size=20), num_negatives=2)
    sampler = LinkSampler(GRAPH, SPLIT.train[:61], config, held_out=HELD_OUT, share=share)
    features = ArrayFeatures(np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32))
    pipeline = DiskLoader(sampler, features, make_policy=NoCache, ring_rows=3 * sampler.shapes[-1].level_sizes[-1])
    twin = MemoryLoader.of(sampler, features)
    with pipeline.stream(1, 6) as stream, twin.stream(1, 6) as expected:
        for ours, theirs in zip(stream, expected, strict=True):
            assert same(ours.batch, theirs.batch)
            np.testing.assert_array_equal(ours.features, theirs.features)
            ours.release()


def samplers(kind: str, count: int, fanouts: tuple[int | None, ...]) -> list[NodeSampler | LinkSampler]:
    shares = [Share(index, count) for index in range(count)]
    config = SamplerConfig(fanouts=fanouts, batch_size=24, seed=9)
    if kind == "nodes":
        return [NodeSampler(GRAPH, np.arange(0, 300, 4), config, share=share) for share in shares]
    links = LinkConfig(sampling=config, num_negatives=2)
    return [LinkSampler(GRAPH, SPLIT.train[:75], links, held_out=HELD_OUT, share=share) for share in shares]


@pytest.mark.parametrize("kind", ["nodes", "links"])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("fanouts", [(4, 3), (3, None)])
def test_shares_have_the_seeds_and_neighbourhoods_of_the_whole(
    kind: str, count: int, fanouts: tuple[int | None, ...]
) -> None:
    (whole,), parts = samplers(kind, 1, fanouts), samplers(kind, count, fanouts)
    assert len({part.shapes for part in parts}) == len({str(part.state) for part in parts}) == 1
    for index in range(whole.steps_per_epoch):
        batch, shares = whole.sampled(2, index), [part.sampled(2, index) for part in parts]
        seeds = [share.node_ids[share.seed_positions].tolist() for share in shares]
        assert list(itertools.chain(*seeds)) == batch.node_ids[batch.seed_positions].tolist()
        lists = [neighbors_of(batch, hop) for hop in range(2)]
        for share, given in zip(shares, seeds, strict=True):
            assert parts[0].shapes[-1].holds(share.shape)
            assert share.shape.batch_size == len(given)
            for hop in range(2 if given else 0):
                for node, neighbors in neighbors_of(share, hop).items():
                    assert neighbors == lists[hop][node]


def neighbors_of(batch, hop: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for source, target, _ in oracles.edges_of_batch(batch)[hop]:
        found.setdefault(target, []).append(source)
    return found


def test_the_whole_is_what_the_source_samples() -> None:
    config = SamplerConfig(fanouts=(4, 3), batch_size=30, seed=3)
    nodes = np.arange(1, 300, 3)
    sampler = NodeSampler(GRAPH, nodes, config)
    for index in range(4):
        assert same(sampler.sampled(5, index), sampled(GRAPH, nodes, config, 5, index))


def test_a_share_without_seeds() -> None:
    config = SamplerConfig(fanouts=(2,), batch_size=8)
    parts = [NodeSampler(GRAPH, np.arange(9), config, share=Share(index, 4)) for index in range(4)]
    batches = list(MemoryLoader.of(parts[0], ArrayFeatures(np.ones((300, 1), np.float32))).stream(1, 2))
    assert not batches[0].batch.seed_mask.any() and batches[0].batch.seed_mask.shape == (2,)
    assert [len(part.sampled(0, 1).seed_mask) for part in parts] == [0, 0, 0, 1]


def test_refusals() -> None:
    nodes, config = np.arange(9), SamplerConfig(fanouts=(2,), batch_size=9)
    with pytest.raises(ValueError, match="multiple of the 2 shares"):
        NodeSampler(GRAPH, nodes, config, share=Share(0, 2))
    with pytest.raises(ValueError, match="one of 3, from 0, got 3"):
        NodeSampler(GRAPH, nodes, config, share=Share(3, 3))
    with pytest.raises(ValueError, match="at least one seed node"):
        NodeSampler(GRAPH, nodes[:0], config)
    with pytest.raises(ValueError, match="at least one target edge"):
        LinkSampler(GRAPH, EDGES[:0], CONFIG)
    with pytest.raises(ValueError, match="nodes of edges"):
        LinkSampler(CSCGraph(np.zeros(3, np.int64), np.zeros(0, np.int32)), np.array([[0, 2]]), CONFIG)
    with pytest.raises(ValueError, match="num_negatives"):
        LinkConfig(sampling=config, num_negatives=0)
    with pytest.raises(ValueError, match="multiple of the 2 shares"):
        LinkSampler(GRAPH, EDGES, LinkConfig(sampling=config), share=Share(0, 2))
    assert len(EdgeSet(np.empty(0, np.int64), 3)) == 0
