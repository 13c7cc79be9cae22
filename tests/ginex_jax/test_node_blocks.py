"""Cutting nodes into blocks, and the rows that stay in memory."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ginex_jax.features import ArrayFeatures
from ginex_jax.graph import CSCGraph
from ginex_jax.inference.hot_rows import HotRows
from ginex_jax.inference.node_blocks import block_shapes, cut, longest_list_shape, num_places, targets_of
from ginex_jax.sampling.neighbors import sample_batch
from tests.ginex_jax import oracles_sampling as oracles

GRAPH = oracles.random_graph(300, seed=1, longest=700)


@settings(max_examples=30)
@given(st.integers(0, 5000), st.sampled_from([None, [3, 1, 4, 1, 5, 9, 2, 6], list(range(299, 0, -2))]))
def test_blocks_cost_no_more_than_allowed_and_are_as_long_as_that_lets_them(
    budget: int, nodes: list[int] | None
) -> None:
    targets = targets_of(GRAPH, None if nodes is None else np.array(nodes))
    bounds = cut(targets, node_cost=2, edge_cost=3, budget=budget)
    degrees = np.diff(GRAPH.indptr)[np.arange(300) if nodes is None else nodes]
    costs = [2 * (b - a) + 3 * degrees[a:b].sum() for a, b in itertools.pairwise(bounds)]
    assert (bounds[0], bounds[-1]) == (0, len(degrees))
    for cost, (a, b) in zip(costs, itertools.pairwise(bounds), strict=True):
        assert cost <= budget or b == a + 1
        assert b == len(degrees) or cost + 2 + 3 * degrees[b] > budget


@pytest.mark.parametrize("budget", [30, 5000, 10**9])
@pytest.mark.parametrize("by_degree", [False, True])
def test_a_few_shapes_hold_all_blocks(budget: int, by_degree: bool) -> None:
    order = np.argsort(-np.diff(GRAPH.indptr), kind="stable") if by_degree else np.arange(300)
    targets = targets_of(GRAPH, order)
    bounds = cut(targets, node_cost=1, edge_cost=1, budget=budget)
    shapes = block_shapes(targets, bounds, 300)
    assert len(shapes) == len(bounds) - 1
    assert len(set(shapes)) <= 4
    for shape, (a, b) in zip(shapes, itertools.pairwise(bounds), strict=True):
        assert shape.holds(sample_batch(GRAPH, order[a:b], fanouts=(None,), seed=0, epoch=0, index=0).shape)
    longest = int(np.diff(GRAPH.indptr).argmax())
    alone = sample_batch(GRAPH, np.array([longest]), fanouts=(None,), seed=0, epoch=0, index=0).shape
    assert longest_list_shape(targets, 300).holds(alone)
    assert longest_list_shape(targets, 300).level_sizes[0] == 1


def test_nodes_by_degree_have_shapes_of_their_own() -> None:
    """One shape would have the first blocks' wide tables and the last blocks' many nodes."""
    degrees = np.repeat([200, 1], [64, 12800])
    graph = CSCGraph(np.concatenate([[0], np.cumsum(degrees)]), np.zeros(degrees.sum(), np.int32))
    targets = targets_of(graph, None)
    shapes = block_shapes(targets, cut(targets, node_cost=0, edge_cost=1, budget=400), graph.num_nodes)
    assert len(shapes) == 64
    assert len(set(shapes)) == 2
    assert sum(map(num_places, shapes)) == 32 * (2 * 256 + 2) + 32 * (400 * 4 + 400)


@pytest.mark.parametrize("num_hot", [0, 1, 100, 300])
def test_hot_rows_are_read_once(num_hot: int) -> None:
    matrix = np.random.default_rng(0).random((300, 3)).astype(np.float32)
    store, rng = ArrayFeatures(matrix), np.random.default_rng(1)
    hot = np.sort(rng.permutation(300)[:num_hot])
    rows, misses = HotRows(store, hot), 0
    for size in (0, 1, 200):
        ids = rng.permutation(300)[:size]
        out = np.full((size + 2, 3), 7, np.float32)
        rows.read(ids, out[:size])
        np.testing.assert_array_equal(out[:size], matrix[ids])
        assert (out[size:] == 7).all()
        misses += int((~np.isin(ids, hot)).sum())
    assert rows.misses == misses
    assert store.stats.rows == misses + num_hot
