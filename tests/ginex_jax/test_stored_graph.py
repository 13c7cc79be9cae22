import concurrent.futures

import numpy as np
import pytest

from ginex_jax.graph import CSCGraph, Graph
from ginex_jax.store.pinned_lists import PinnedLists, choose_lists
from ginex_jax.store.stored_graph import StoredGraph
from tests.ginex_jax.stored_arrays import rewrite, write_vector


def power_law(num_nodes=3000, *, dtype=np.int32, weighted=True, seed=0):
    rng = np.random.default_rng(seed)
    degrees = np.minimum((rng.pareto(1.1, num_nodes) * 3).astype(np.int64), 20_000)
    degrees[[0, 7, num_nodes - 1]] = 0
    indptr = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64)
    indices = (num_nodes * rng.random(indptr[-1]) ** 3).astype(dtype)
    weights = rng.random(len(indices), dtype=np.float32) if weighted else None
    return CSCGraph(indptr, indices, weights)


def stored(path, graph, **options):
    write_vector(path / "indices", graph.indices, **options)
    if graph.weights is not None:
        write_vector(path / "weights", graph.weights, **options)
    return StoredGraph.open(graph.indptr, path / "indices", path / "weights" if graph.is_weighted else None)


def positions_of(graph, count, seed=1):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.integers(0, graph.num_edges, count), [graph.num_edges - 1, 0, 0]])


def uses_of(graph):
    return np.bincount(graph.indices, minlength=graph.num_nodes)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("memory_bytes", [0, 100, 5_000, 60_000, 10**9])
@pytest.mark.parametrize("known_uses", [True, False])
def test_equals_the_graph_in_memory(tmp_path, dtype, weighted, memory_bytes, known_uses):
    graph = power_law(dtype=dtype, weighted=weighted)
    store = stored(tmp_path, graph)
    assert isinstance(store, Graph)
    assert (store.num_nodes, store.num_edges, store.is_weighted) == (3000, graph.num_edges, weighted)
    used = store.pin(memory_bytes, uses=uses_of(graph) if known_uses else None)
    assert used == store.pinned_bytes <= memory_bytes
    positions = positions_of(graph, 5000)
    read = store.neighbors_at(positions)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, graph.neighbors_at(positions))
    if weighted:
        np.testing.assert_array_equal(store.weights_at(positions), graph.weights_at(positions))
    everything = np.arange(graph.num_edges)
    np.testing.assert_array_equal(store.neighbors_at(everything), graph.indices)
    assert store.neighbors_at(everything[:0]).shape == (0,)


def test_pinned_lists_are_not_read_again(tmp_path):
    graph = power_law(weighted=False)
    store = stored(tmp_path, graph)
    store.pin(10**9)
    before = store.stats
    np.testing.assert_array_equal(store.neighbors_at(np.arange(graph.num_edges)), graph.indices)
    assert store.stats == before
    assert store.pin(0) == 0
    store.neighbors_at(np.array([5]))
    assert store.stats.requests == before.requests + 1


def test_a_bigger_budget_reads_less(tmp_path):
    graph = power_law(weighted=False)
    store, read = stored(tmp_path, graph), []
    positions = positions_of(graph, 3000)
    for memory_bytes in (0, 10_000, 50_000, 200_000, 10**9):
        store.pin(memory_bytes, uses=uses_of(graph))
        before = store.stats.rows
        store.neighbors_at(positions)
        read.append(store.stats.rows - before)
    assert read == sorted(read, reverse=True)
    assert read[0] == len(positions)
    assert read[-1] == 0


def test_only_what_is_wanted_of_a_long_list_is_read(tmp_path):
    graph = CSCGraph(np.array([0, 1_000_000]), np.zeros(1_000_000, np.int32))
    store = stored(tmp_path, graph, shard_rows=1 << 20, inner_rows=1 << 14)
    store.neighbors_at(np.array([1, 500_000, 999_999, 2, 500_003]))
    assert store.stats.requests == 3
    assert store.stats.bytes <= 3 * 4096


@pytest.mark.parametrize("memory_bytes", [0, 40_000, 10**9])
def test_chunks_that_were_left_out_or_moved(tmp_path, memory_bytes):
    graph = power_law(weighted=False)
    graph.indices[3000:8000] = 0
    store = stored(tmp_path, graph, keep_fill=False)
    graph.indices[5000:5100] = 9
    rewrite(tmp_path / "indices", 5000, graph.indices[5000:5100])
    store.close()
    store = StoredGraph.open(graph.indptr, tmp_path / "indices")
    store.pin(memory_bytes)
    np.testing.assert_array_equal(store.neighbors_at(np.arange(graph.num_edges)), graph.indices)


def test_threads_share_a_graph_while_it_is_pinned_anew(tmp_path):
    graph = power_law()
    store = stored(tmp_path, graph)
    work = [positions_of(graph, 500, seed=seed) for seed in range(30)]
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        results = executor.map(store.weights_at, work)
        for memory_bytes in (5_000, 0, 100_000, 10**9):
            store.pin(memory_bytes)
        for positions, weights in zip(work, results, strict=True):
            np.testing.assert_array_equal(weights, graph.weights_at(positions))


def test_no_edges(tmp_path):
    graph = CSCGraph(np.zeros(5, np.int64), np.empty(0, np.int32))
    store = stored(tmp_path, graph)
    assert store.pin(1000) == 0
    assert store.neighbors_at(np.empty(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("memory_bytes", [-5, 0, 50, 3_000, 30_000, 10**9])
def test_the_most_used_per_byte_are_chosen(seed, memory_bytes):
    graph = power_law(1000, seed=seed)
    uses, sizes = uses_of(graph), np.diff(graph.indptr) * 8 + 24
    chosen = choose_lists(graph.indptr, uses, edge_bytes=8, memory_bytes=memory_bytes)
    assert sizes[chosen].sum() <= max(0, memory_bytes)
    assert not chosen[(uses == 0) | (np.diff(graph.indptr) == 0)].any()
    score = np.where(np.diff(graph.indptr) > 0, uses / sizes, 0)
    left_out = ~chosen & (score > 0)
    if memory_bytes > sizes.sum():
        assert not left_out.any()
    elif chosen.any():
        assert score[left_out].max() <= score[chosen].min() * 1.01


def test_finds_every_position(tmp_path):
    rng = np.random.default_rng(0)
    for share in (0.001, 0.1, 0.5, 0.99):
        graph = power_law(500)
        chosen = rng.random(500) < share
        chosen[100] = True
        lists = PinnedLists(graph.indptr, chosen)
        everything = np.arange(graph.num_edges)
        owner = np.searchsorted(graph.indptr, everything, side="right") - 1
        expected = np.where(chosen[owner], np.cumsum(chosen[owner]) - 1, -1)
        np.testing.assert_array_equal(lists.find(everything), expected)
        assert lists.num_positions == chosen[owner].sum()
        assert lists.nbytes <= 24 * chosen.sum() + 16


def test_the_doors(tmp_path):
    graph = power_law(weighted=False)
    store = stored(tmp_path, graph)
    with pytest.raises(ValueError, match=r"positions should be in \[0,"):
        store.neighbors_at(np.array([graph.num_edges]))
    with pytest.raises(ValueError, match="no edge weights"):
        store.weights_at(np.array([0]))
    with pytest.raises(ValueError, match="at least 0, got -1"):
        store.pin(-1)
    with pytest.raises(ValueError, match="one for each of 3000 nodes, got 3"):
        store.pin(10, uses=np.ones(3, np.int64))
    with pytest.raises(ValueError, match="indptr should run from 0"):
        StoredGraph.open(graph.indptr[:-5], tmp_path / "indices")
    with pytest.raises(ValueError, match="weights|float32"):
        StoredGraph.open(graph.indptr, tmp_path / "indices", tmp_path / "indices")
    write_vector(tmp_path / "floats", np.ones(graph.num_edges, np.float32))
    with pytest.raises(ValueError, match="should be int32 or int64"):
        StoredGraph.open(graph.indptr, tmp_path / "floats")
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.neighbors_at(np.array([0]))
