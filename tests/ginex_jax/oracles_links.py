"""Slow, obvious versions of what links need, in Python's own numbers."""

import numpy as np

from ginex_jax.batch import MiniBatch
from tests.ginex_jax import oracles_sampling as sampling


def links(
    edges: list[tuple[int, int]],
    *,
    batch_size: int,
    num_negatives: int,
    num_nodes: int,
    seed: int,
    epoch: int,
    index: int,
) -> list[tuple[int, int, list[int]]]:
    """(source, target, negatives) of a mini-batch."""
    order = sampling.permuted(seed, epoch, len(edges))[index * batch_size : (index + 1) * batch_size]
    key = sampling.path(seed, epoch, index, 2**64 - 1)
    found = []
    for i, place in enumerate(order):
        row = sampling.hashed(key, i)
        found.append((*edges[place], [sampling.bounded(row, j, num_nodes) for j in range(num_negatives)]))
    return found


def edges_of_batch(batch: MiniBatch) -> list[list[tuple[int, int, float]]]:
    """(source, target, weight) of every hop, seeds' hop first, from the padded graph that `to_graphs_tuple` makes."""
    graph = batch.to_graphs_tuple()
    count = int(graph.n_edge[0])
    ids = graph.nodes["id"]
    hops = [[] for _ in batch.blocks]
    rows = zip(
        ids[graph.senders[:count]].tolist(),
        ids[graph.receivers[:count]].tolist(),
        graph.edges["weight"][:count].tolist(),
        graph.edges["hop"][:count].tolist(),
        strict=True,
    )
    for source, target, weight, hop in rows:
        hops[hop].append((source, target, weight))
    return [sorted(hop) for hop in hops]


def mean_reciprocal_rank(positive: np.ndarray, negative: np.ndarray) -> float:
    """Ties: the mean of the ranks before and behind those that are as high."""
    total = 0.0
    for score, others in zip(positive.tolist(), negative.tolist(), strict=True):
        above = sum(other > score for other in others)
        equal = sum(other == score for other in others)
        total += 1 / (((above + 1) + (above + equal + 1)) / 2)
    return total / len(positive)


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """How often a positive is above a negative, of all pairs; ties count half."""
    wins = 0.0
    for score in positive.reshape(-1).tolist():
        for other in negative.reshape(-1).tolist():
            wins += 1.0 if score > other else 0.5 if score == other else 0.0
    return wins / (positive.size * negative.size)
