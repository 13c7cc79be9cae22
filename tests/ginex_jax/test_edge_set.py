import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ginex_jax.batch import padded
from ginex_jax.graph import CSCGraph, Graph
from ginex_jax.sampling.aggregation import aggregate_max, aggregate_sum
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.edge_set import EdgeSet, edge_set, without_edges
from ginex_jax.sampling.edge_split import edges_of, split_edges
from ginex_jax.sampling.neighbors import sample_batch
from ginex_jax.sampling.reduced_graph import graph_without
from ginex_jax.sampling.shapes import pilot
from tests.ginex_jax import oracles_links as oracles
from tests.ginex_jax import oracles_sampling as sampling
from tests.ginex_jax.test_sampling import same

GRAPH = sampling.random_graph(200, seed=5, longest=400)
EDGES = edges_of(GRAPH)
SOME = EDGES[np.random.default_rng(0).random(len(EDGES)) < 0.3]
FANOUTS = [(4, 3), (3, None), (None, None)]
ends = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def array(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, np.int64).reshape(-1, 2)


@given(ends, ends, st.booleans())
def test_a_set_is_a_set(pairs: list[tuple[int, int]], asked: list[tuple[int, int]], both: bool) -> None:
    expected = set(pairs) | ({(b, a) for a, b in pairs} if both else set())
    edges = edge_set(array(pairs), 7, both_directions=both)
    assert len(edges) == len(expected)
    assert edges.edges().tolist() == [[u, v] for v, u in sorted((v, u) for u, v in expected)]
    sources, targets = array(asked).T
    assert edges.contains(sources, targets).tolist() == [pair in expected for pair in asked]


def test_pairs_are_broadcast() -> None:
    edges = edge_set(array([(1, 0), (2, 3)]), 4)
    assert edges.contains(np.array([[1, 2], [1, 2]]), np.array([[0], [3]])).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("fanouts", FANOUTS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("is_padded", [False, True])
def test_excluded_edges_are_gone_from_every_hop_and_nothing_else(
    fanouts: tuple[int | None, ...], weighted: bool, is_padded: bool
) -> None:
    graph = GRAPH if weighted else GRAPH._replace(weights=None)
    seeds = np.arange(0, 60, 2)
    batch = sample_batch(graph, seeds, fanouts=fanouts, seed=1, epoch=0, index=0)
    if is_padded:
        batch = padded(batch, pilot(graph, seeds, SamplerConfig(fanouts=fanouts, batch_size=40))[-1])
    gone = {tuple(edge) for edge in SOME.tolist()}
    result = without_edges(batch, edge_set(SOME, graph.num_nodes))
    before, after = oracles.edges_of_batch(batch), oracles.edges_of_batch(result)
    assert after == [[edge for edge in hop if edge[:2] not in gone] for hop in before]
    assert sum(map(len, after)) < sum(map(len, before))
    assert result.shape == batch.shape
    np.testing.assert_array_equal(result.node_ids, batch.node_ids)
    if is_padded:
        check_aggregation(result, after, weighted)


def check_aggregation(batch, hops: list[list[tuple[int, int, float]]], weighted: bool) -> None:
    """Sums and maxima of the first layer's block follow the edges that are left, degrees too."""
    x = np.random.default_rng(0).standard_normal((batch.shape.level_sizes[-1], 2)).astype(np.float32)
    local = {node: i for i, node in enumerate(batch.node_ids.tolist())}
    sums, maxima = np.zeros((batch.level_sizes[-2], 2)), np.full((batch.level_sizes[-2], 2), -np.inf)
    for source, target, weight in hops[-1]:
        sums[local[target]] += x[local[source]] * weight
        maxima[local[target]] = np.maximum(maxima[local[target]], x[local[source]])
    maxima[np.isneginf(maxima)] = 0
    count = batch.level_sizes[-2]
    np.testing.assert_allclose(aggregate_sum(batch.blocks[0], x, weighted=weighted)[:count], sums, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(aggregate_max(batch.blocks[0], x)[:count], maxima.astype(np.float32))


def test_nothing_to_exclude_changes_nothing() -> None:
    batch = sample_batch(GRAPH, np.arange(5), fanouts=(3,), seed=0, epoch=0, index=0)
    assert without_edges(batch, EdgeSet(np.empty(0, np.int64), 200)) is batch
    other = without_edges(batch, edge_set(array([(0, 199)]), 200))
    assert oracles.edges_of_batch(other) == oracles.edges_of_batch(batch)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_reduced_graph_is_the_graph_of_the_other_edges(is_weighted: bool) -> None:
    graph = GRAPH if is_weighted else GRAPH._replace(weights=None)
    gone = {tuple(edge) for edge in SOME.tolist()}
    kept = np.array([tuple(edge) not in gone for edge in EDGES.tolist()])
    counts = np.bincount(EDGES[kept, 1], minlength=200)
    expected = CSCGraph(
        np.concatenate([[0], np.cumsum(counts)]),
        EDGES[kept, 0].astype(np.int32),
        None if graph.weights is None else graph.weights[kept],
    )
    excluded = edge_set(SOME, 200)
    reduced = graph_without(graph, excluded), graph_without(sampling.ElsewhereGraph(graph), excluded)
    assert isinstance(reduced[0], CSCGraph) and isinstance(reduced[1], Graph)
    everywhere = np.random.default_rng(0).permutation(expected.num_edges)
    for found in reduced:
        assert (found.num_nodes, found.num_edges) == (200, expected.num_edges)
        np.testing.assert_array_equal(found.indptr, expected.indptr)
        np.testing.assert_array_equal(found.neighbors_at(everywhere), expected.indices[everywhere])
        assert found.is_weighted == is_weighted
        if expected.weights is not None:
            np.testing.assert_array_equal(found.weights_at(everywhere), expected.weights[everywhere])
        batch = sample_batch(found, np.arange(9), fanouts=(4, None), seed=0, epoch=0, index=0)
        assert same(batch, sample_batch(expected, np.arange(9), fanouts=(4, None), seed=0, epoch=0, index=0))
    nothing = graph_without(sampling.ElsewhereGraph(graph), edge_set(EDGES[:0], 200))
    np.testing.assert_array_equal(nothing.neighbors_at(np.arange(graph.num_edges)), graph.indices)
    empty = graph_without(sampling.ElsewhereGraph(graph), edge_set(EDGES, 200))
    assert not empty.indptr.any()


def test_edges_of_a_graph() -> None:
    graph = CSCGraph(np.array([0, 2, 2, 5]), np.array([1, 2, 0, 2, 2], np.int32))
    assert edges_of(graph).tolist() == [[1, 0], [2, 0], [0, 2], [2, 2], [2, 2]]


def test_a_split_depends_on_the_edge_alone() -> None:
    rng = np.random.default_rng(3)
    edges = rng.integers(0, 1000, (5000, 2))
    both = np.concatenate([edges, edges[:, ::-1], edges[:50]])
    shuffled = both[rng.permutation(len(both))]
    settings = {"valid_fraction": 0.05, "test_fraction": 0.1, "seed": 2**64 - 1, "undirected": True}
    split = split_edges(shuffled, **settings)
    assert sum(map(len, split)) == len(shuffled)
    sets = [{tuple(edge) for edge in side.tolist()} for side in split]
    assert not sets[0] & sets[1] and not sets[1] & sets[2] and not sets[0] & sets[2]
    assert all({(b, a) for a, b in side} == side for side in sets)
    assert sets == [{tuple(edge) for edge in side.tolist()} for side in split_edges(both, **settings)]
    for side, share in zip(split[1:], (0.05, 0.1), strict=True):
        assert abs(len(side) / len(shuffled) - share) < 5 * (share / 5000) ** 0.5
    directed = split_edges(both, **{**settings, "undirected": False})
    assert {tuple(e) for e in directed.test.tolist()} != {tuple(e[::-1]) for e in directed.test.tolist()}
    assert not np.array_equal(split_edges(edges, **{**settings, "seed": 1}).test, split_edges(edges, **settings).test)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "below 1 together"),
        ({"valid_fraction": -0.1}, "at least 0"),
        ({"valid_fraction": float("nan")}, "at least 0"),
        ({"seed": -1}, "seed should be"),
    ],
)
def test_a_split_refuses(changes: dict[str, float], complaint: str) -> None:
    settings = {"valid_fraction": 0.1, "test_fraction": 0.1, "seed": 0, "undirected": False}
    with pytest.raises(ValueError, match=complaint):
        split_edges(array([(0, 1)]), **{**settings, **changes})


def test_a_set_refuses() -> None:
    with pytest.raises(ValueError, match="nodes of edges should be in"):
        edge_set(array([(0, 7)]), 7)
    with pytest.raises(ValueError, match="at most 3037000499 nodes"):
        edge_set(array([(0, 7)]), 2**32)
    assert edge_set(array([(3_037_000_498, 3_037_000_498)]), 3_037_000_499).edges().tolist() == [[3_037_000_498] * 2]
