"""Slow, obvious sampling in Python's own integers: the same numbers, written from the rules and not from the code."""

import math
from typing import NamedTuple

import numpy as np

from ginex_jax.graph import CSCGraph

WORD = 2**64
ORDER = WORD - 1


def hashed(key: int, word: int) -> int:
    """SplitMix64, number `word` after the state `key`."""
    z = (key + (word + 1) * 0x9E3779B97F4A7C15) % WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def path(*words: int) -> int:
    key = 0
    for word in words:
        key = hashed(key, word)
    return key


def bounded(key: int, draw: int, n: int) -> int:
    """Of the 2**64 numbers, those are rejected whose product's low word is below 2**64 mod n: n equal shares are left."""
    number = hashed(key, draw)
    while (number * n) % WORD < WORD % n:
        number = hashed(number, 0)
    return number * n // WORD


def uniform(key: int, draw: int) -> float:
    return ((hashed(key, draw) >> 11) + 0.5) / 2**53


def permuted(seed: int, epoch: int, n: int) -> list[int]:
    half_bits = 1
    while 4**half_bits < n:
        half_bits += 1
    size, key, result = 2**half_bits, path(seed, epoch, ORDER), []
    for x in range(n):
        while True:
            left, right = divmod(x, size)
            for step in range(8):
                left, right = right, left ^ (hashed(hashed(key, step), right) % size)
            x = left * size + right
            if x < n:
                break
        result.append(x)
    return result


class Sampled(NamedTuple):
    """Rows are lists of (local id, weight), hop by hop from the seeds outwards."""

    node_ids: list[int]
    hops: list[list[list[tuple[int, float]]]]
    seed_positions: list[int]
    level_sizes: list[int]


def sample(
    graph: CSCGraph,
    seeds: list[int],
    *,
    fanouts: tuple[int | None, ...],
    seed: int,
    epoch: int,
    index: int,
    weighted: bool = False,
) -> Sampled:
    local: dict[int, int] = {}
    seed_positions = [local.setdefault(node, len(local)) for node in seeds]
    hops, level_sizes = [], [len(local)]
    for hop, fanout in enumerate(fanouts):
        rows = []
        for node in list(local):
            key = path(seed, epoch, index, hop, node)
            start, stop = int(graph.indptr[node]), int(graph.indptr[node + 1])
            places = list(range(stop - start))
            if fanout is not None:
                if weighted:
                    places = arrivals(key, graph.weights[start:stop].tolist())[:fanout]
                elif len(places) > fanout:
                    places = floyd(key, len(places), fanout)
            rows.append(
                [
                    (
                        local.setdefault(int(graph.indices[start + place]), len(local)),
                        1.0 if graph.weights is None else float(graph.weights[start + place]),
                    )
                    for place in places
                ]
            )
        hops.append(rows)
        level_sizes.append(len(local))
    return Sampled(list(local), hops, seed_positions, level_sizes)


def floyd(key: int, degree: int, fanout: int) -> list[int]:
    chosen: list[int] = []
    for j in range(fanout):
        choice = bounded(key, j, degree - fanout + j + 1)
        chosen.append(degree - fanout + j if choice in chosen else choice)
    return chosen


def arrivals(key: int, weights: list[float]) -> list[int]:
    """The places of positive weight, by when they arrive."""
    times = [(-math.log(uniform(key, i)) / weight, i) for i, weight in enumerate(weights) if weight > 0]
    return [i for _, i in sorted(times)]


def successive(weights: list[float], count: int) -> dict[frozenset[int], float]:
    """The probability of every set that `count` draws without replacement, in proportion to what is left, can give."""
    sets = {frozenset(): 1.0}
    for _ in range(count):
        longer: dict[frozenset[int], float] = {}
        for chosen, probability in sets.items():
            rest = [i for i, weight in enumerate(weights) if i not in chosen and weight > 0]
            total = sum(weights[i] for i in rest)
            for i in rest:
                longer[chosen | {i}] = longer.get(chosen | {i}, 0.0) + probability * weights[i] / total
        sets = longer
    return sets


def random_graph(num_nodes: int, *, seed: int, longest: int = 60, weighted: bool = True) -> CSCGraph:
    """Lists of all lengths: every fifth node has none, some are longer than any fan-out; with repeated edges and loops."""
    rng = np.random.default_rng(seed)
    degrees = np.minimum(rng.zipf(1.5, num_nodes), longest)
    degrees[::5] = 0
    indptr = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64)
    indices = rng.integers(0, num_nodes, indptr[-1]).astype(np.int32)
    for node in range(1, num_nodes, 3):
        if degrees[node]:
            indices[indptr[node]] = node
    weights = np.where(rng.random(len(indices)) < 0.2, 0, rng.exponential(size=len(indices))).astype(np.float32)
    return CSCGraph(indptr, indices, weights if weighted else None)


class ElsewhereGraph:
    """A graph that is no `CSCGraph`, and counts what it is asked."""

    def __init__(self, graph: CSCGraph) -> None:
        self._graph = graph
        self.num_calls = 0

    @property
    def indptr(self) -> np.ndarray:
        return self._graph.indptr

    @property
    def num_nodes(self) -> int:
        return self._graph.num_nodes

    @property
    def num_edges(self) -> int:
        return self._graph.num_edges

    @property
    def is_weighted(self) -> bool:
        return self._graph.is_weighted

    def neighbors_at(self, positions: np.ndarray) -> np.ndarray:
        self.num_calls += 1
        return self._graph.neighbors_at(positions)

    def weights_at(self, positions: np.ndarray) -> np.ndarray:
        return self._graph.weights_at(positions)
