"""Neighbour sampling: milliseconds a mini-batch, ours, a bare kernel, NumPy and torch-sparse in turns on the same graph.

    python -m benchmarks.ginex_sample [--nodes 5000000] [--edges 80000000] [--batches 10] [--repeats 7] [--json]

The graph is an RMAT one (a, b, c = 0.57, 0.19, 0.19, vertices scrambled); fan-out 10, 10, 10, 1000 seeds. All draw without replacement and
number the nodes as they are first seen; each hop draws for all nodes so far. The bare kernel is one compiled loop with a table of 4 bytes
for every node of the graph, buffers that are used again, an approximate bound on its draws, and no result that outlives the next call:
the most that such a sampler could do on one thread. NumPy draws by the same algorithm and sorts instead of numbering. torch-sparse is
`sample_adj`, where it is installed. Prints medians, and ratios of the times to ours (above 1: we are faster). Writes
results/ginex_sample.json.
"""

import argparse
import concurrent.futures
import json
import resource
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from benchmarks.timing import alternate, medians, record
from ginex_jax.batch import Block
from ginex_jax.graph import CSCGraph
from ginex_jax.sampling.neighbors import sample_batch

FANOUTS = (10, 10, 10)
BATCH_SIZE = 1000
_QUADRANTS = np.cumsum([0.57, 0.19, 0.19]).astype(np.float32)
_EDGES_AT_ONCE = 1 << 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=5_000_000)
    parser.add_argument("--edges", type=int, default=80_000_000)
    parser.add_argument("--batches", type=int, default=10, help="mini-batches a round, the same for all")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    arguments = parser.parse_args()

    graph = rmat(arguments.nodes, arguments.edges, seed=0)
    results = compare(graph, num_batches=arguments.batches, repeats=arguments.repeats)
    results["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    record("ginex_sample", vars(arguments), results)
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{results['edges_per_batch']:.0f} edges and {results['nodes_per_batch']:.0f} nodes a mini-batch")
    for name, row in results["samplers"].items():
        print(f"{name:24} {row['ms']:9.2f} ms {row['edges_per_second'] / 1e6:7.2f} M edges/s {row['ratio']:7.2f}")
    if note := results["note"]:
        print(note)


def compare(graph: CSCGraph, *, num_batches: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a mini-batch, and the ratio to ours on one thread; for two threads, whose mini-batches lie side by side, as well."""
    rng = np.random.default_rng(1)
    reachable = np.flatnonzero(np.diff(graph.indptr))
    batches = [rng.choice(reachable, min(BATCH_SIZE, len(reachable)), replace=False) for _ in range(num_batches)]
    calls, note = samplers(graph, batches)
    first = [sample_batch(graph, nodes, fanouts=FANOUTS, seed=0, epoch=0, index=i) for i, nodes in enumerate(batches)]
    edges = float(
        np.mean([sum(int(block.mask.sum()) for block in batch.blocks if isinstance(block, Block)) for batch in first])
    )
    nodes = float(np.mean([len(batch.node_ids) for batch in first]))
    del first
    seconds = {name: median / num_batches for name, median in medians(alternate(calls, repeats=repeats)).items()}
    rows = {
        name: {"ms": 1e3 * each, "edges_per_second": edges / each, "ratio": each / seconds["ours, 1 thread"]}
        for name, each in seconds.items()
    }
    return {"samplers": rows, "edges_per_batch": edges, "nodes_per_batch": nodes, "note": note}


def samplers(graph: CSCGraph, batches: list[np.ndarray]) -> tuple[dict[str, Callable[[], object]], str]:
    """Each samples all batches once; and a note on what is missing."""

    def ours(index: int) -> None:
        sample_batch(graph, batches[index], fanouts=FANOUTS, seed=0, epoch=0, index=index)

    def all_of(sample: Callable[[int], Any]) -> Callable[[], object]:
        return lambda: [sample(index) for index in range(len(batches))]

    pool = concurrent.futures.ThreadPoolExecutor(2)
    bare, rng = bare_sampler(graph), np.random.default_rng(2)
    calls = {
        "ours, 1 thread": all_of(ours),
        "ours, 2 threads": lambda: list(pool.map(ours, range(len(batches)))),
        "bare kernel, 1 thread": all_of(lambda index: bare(batches[index], index)),
        "numpy": all_of(lambda index: numpy_sample(graph, batches[index], rng)),
    }
    try:
        theirs = torch_sparse_sampler(graph)
    except ImportError as error:
        return calls, f"torch-sparse is left out: {error}"
    return calls | {"torch-sparse sample_adj": all_of(lambda index: theirs(batches[index]))}, ""


def rmat(num_nodes: int, num_edges: int, *, seed: int) -> CSCGraph:
    """Recursive quadrants (Chakrabarti, Zhan, Faloutsos, 2004), repeated edges kept. 16 bytes an edge at most."""
    rng = np.random.default_rng(seed)
    scrambled = rng.permutation(num_nodes).astype(np.int64)
    keys = np.empty(num_edges, np.int64)  # destination and source in one number, so that one sort in place does it
    for start in range(0, num_edges, _EDGES_AT_ONCE):
        piece = keys[start : start + _EDGES_AT_ONCE]
        ends = np.zeros((2, len(piece)), np.int64)
        for _ in range((num_nodes - 1).bit_length()):
            quadrant = np.searchsorted(_QUADRANTS, rng.random(len(piece), np.float32), side="right")
            ends = 2 * ends + (quadrant >> 1, quadrant & 1)
        destinations, sources = scrambled[ends % num_nodes]
        piece[:] = destinations << 32 | sources
    keys.sort()
    indptr = np.searchsorted(keys, np.arange(num_nodes + 1) << 32)
    return CSCGraph(indptr, (keys & 0xFFFFFFFF).astype(np.int32))


def bare_sampler(graph: CSCGraph) -> Callable[[np.ndarray, int], tuple[int, int]]:
    capacity = min(graph.num_nodes, BATCH_SIZE * int(np.prod([1 + fanout for fanout in FANOUTS])))
    table, node_ids = np.full(graph.num_nodes, -1, np.int32), np.empty(capacity, np.int32)
    neighbors, local = (np.empty((capacity, FANOUTS[0]), np.int32) for _ in range(2))
    counts = np.empty(capacity, np.int32)

    def sample(seeds: np.ndarray, index: int) -> tuple[int, int]:
        return _bare_batch(*graph[:2], seeds, len(FANOUTS), index, table, node_ids, neighbors, counts, local)

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


def numpy_sample(graph: CSCGraph, seeds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole hops at a time; the nodes it reached, sorted."""
    nodes = seeds
    for fanout in FANOUTS:
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


def torch_sparse_sampler(graph: CSCGraph) -> Callable[[np.ndarray], Any]:
    import torch  # pyright: ignore[reportMissingImports]
    import torch_sparse  # pyright: ignore[reportMissingImports]

    rowptr, col = torch.from_numpy(graph.indptr), torch.from_numpy(graph.indices.astype(np.int64))
    adjacency = torch_sparse.SparseTensor(rowptr=rowptr, col=col, sparse_sizes=(graph.num_nodes,) * 2, is_sorted=True)

    def sample(seeds: np.ndarray) -> Any:
        nodes = torch.from_numpy(seeds)
        for fanout in FANOUTS:
            _, nodes = adjacency.sample_adj(nodes, fanout, replace=False)
        return nodes

    return sample


if __name__ == "__main__":
    main()
