"""Neighbour samplers that do nothing but that: a bare compiled loop, and NumPy."""

from collections.abc import Callable, Sequence

import numba
import numpy as np

from ginex_jax.graph import CSCGraph


def bare_sampler(
    graph: CSCGraph, batch_size: int, fanouts: Sequence[int]
) -> Callable[[np.ndarray, int], tuple[int, int]]:
    capacity = min(graph.num_nodes, batch_size * int(np.prod([1 + fanout for fanout in fanouts])))
    table, node_ids = np.full(graph.num_nodes, -1, np.int32), np.empty(capacity, np.int32)
    neighbors, local = (np.empty((capacity, fanouts[0]), np.int32) for _ in range(2))
    counts = np.empty(capacity, np.int32)

    def sample(seeds: np.ndarray, index: int) -> tuple[int, int]:
        return _bare_batch(*graph[:2], seeds, len(fanouts), index, table, node_ids, neighbors, counts, local)

    return sample


@numba.njit(nogil=True)
def _mixed(x):
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(nogil=True)
def _bare_row(indptr, indices, node, seed, row):
    start, fanout = indptr[node], len(row)
    degree = indptr[node + 1] - start
    if degree <= fanout:
        for j in range(degree):
            row[j] = indices[start + j]
        return degree
    state = _mixed(np.uint64(seed) ^ np.uint64(node) * np.uint64(0x9E3779B97F4A7C15))
    for j in range(fanout):
        state = _mixed(state)
        choice = np.int64((state >> np.uint64(33)) * np.uint64(degree - fanout + j + 1) >> np.uint64(31))
        for other in range(j):
            if row[other] == choice:
                choice = degree - fanout + j
                break
        row[j] = choice
    for j in range(fanout):
        row[j] = indices[start + row[j]]
    return fanout


@numba.njit(nogil=True)
def _bare_batch(indptr, indices, seeds, num_hops, seed, table, node_ids, neighbors, counts, local):
    known, edges = 0, 0
    for node in seeds:
        table[node], node_ids[known] = known, node
        known += 1
    for hop in range(num_hops):
        num_rows = known
        for i in range(num_rows):
            counts[i] = _bare_row(indptr, indices, node_ids[i], seed + hop, neighbors[i])
            edges += counts[i]
        for i in range(num_rows):
            for j in range(counts[i]):
                node = neighbors[i, j]
                if table[node] < 0:
                    table[node], node_ids[known] = known, node
                    known += 1
                local[i, j] = table[node]
    for i in range(known):
        table[node_ids[i]] = -1
    return edges, known


def numpy_sample(graph: CSCGraph, seeds: np.ndarray, fanouts: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Whole hops at a time; the nodes it reached, sorted."""
    nodes = seeds
    for fanout in fanouts:
        starts = graph.indptr[nodes]
        degrees = graph.indptr[nodes + 1] - starts
        longest, draws = np.maximum(degrees, fanout), rng.random((len(nodes), fanout))
        places = np.empty(draws.shape, np.int64)
        for j in range(fanout):
            last = longest - fanout + j
            choice = (draws[:, j] * (last + 1)).astype(np.int64)
            places[:, j] = np.where((places[:, :j] == choice[:, None]).any(1), last, choice)
        places[degrees <= fanout] = np.arange(fanout)
        mask = places < degrees[:, None]
        nodes = np.unique(np.concatenate([nodes, graph.indices[(starts[:, None] + places)[mask]]]))
    return nodes
