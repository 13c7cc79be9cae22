"""Claim: sampling keeps pace with a bare kernel that has a table of all nodes, without that table; with the lists on disk, reading them is
nearly all of the time.
Beside: that kernel, NumPy; PyG's `sample_adj` and NeighborLoader.

Neighbour sampling: milliseconds a mini-batch, ours, a bare kernel, NumPy and PyG in turns on the same graph.

    python -m benchmarks.ginex_sample [--nodes 5000000] [--edges 80000000] [--batches 10] [--repeats 7] [--json]

The graph is an RMAT one (a, b, c = 0.57, 0.19, 0.19, vertices scrambled); fan-out 10, 10, 10, 1000 seeds. All draw without replacement and
number the nodes as they are first seen; each hop draws for all nodes so far. The bare kernel is one compiled loop with a table of 4 bytes
for every node of the graph, buffers that are used again, an approximate bound on its draws, and no result that outlives the next call:
the most that such a sampler could do on one thread. NumPy draws by the same algorithm and sorts instead of numbering.

"on disk" samples the same graph from files in `--scratch`, whose lists are read past the page cache in every batch, with none of them
pinned in memory or the most useful 10 % and 50 % of the edges' bytes. PyG's two samplers, where `make bench-peers` has built them, run in
a process of their own: `sample_adj` of torch-sparse does what ours does; NeighborLoader draws in each hop only for the nodes that the hop
before found, fewer edges in all. Prints medians, and ratios of the times to ours (above 1: we are faster). Writes
results/ginex_sample.json.
"""

import argparse
import concurrent.futures
import json
import os
import resource
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llamacpp_build import PeerError
from benchmarks.plain_samplers import bare_sampler, numpy_sample
from benchmarks.pyg_peer import pyg_samplers
from benchmarks.rmat_graph import rmat
from benchmarks.timing import alternate, medians, record
from ginex_jax.batch import Block, MiniBatch
from ginex_jax.features import ReadStats
from ginex_jax.graph import CSCGraph, Graph
from ginex_jax.sampling.neighbors import sample_batch
from ginex_jax.store.stored_graph import StoredGraph
from ginex_jax.store.writer import ArrayWriter

FANOUTS = (10, 10, 10)
BATCH_SIZE = 1000
STORED = {"ours, on disk": 0.0, "ours, 10 % pinned": 0.1, "ours, 50 % pinned": 0.5}  # of the bytes of the edges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=5_000_000)
    parser.add_argument("--edges", type=int, default=80_000_000)
    parser.add_argument("--batches", type=int, default=10, help="mini-batches a round, the same for all")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scratch", type=Path, default=Path(".cache"), help="on the disk to measure")
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    arguments = parser.parse_args()

    graph = rmat(arguments.nodes, arguments.edges, seed=0)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ginex_sample", dir=arguments.scratch) as folder:
        results = compare(Path(folder), graph, num_batches=arguments.batches, repeats=arguments.repeats)
    results["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    record("ginex_sample", vars(arguments), results)
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"{results['edges_per_batch']:.0f} edges and {results['nodes_per_batch']:.0f} nodes a mini-batch")
    for name, row in results["samplers"].items():
        print(f"{name:24} {row['ms']:9.2f} ms {row['edges_per_second'] / 1e6:7.2f} M edges/s {row['ratio']:7.2f}")
    for name, row in results["disk"].items():
        print(
            f"{name:24} {row['requests']:9.0f} requests {row['mb']:7.1f} MB a mini-batch, "
            f"{100 * row['share_of_time']:.0f} % of the time in reads, {row['pinned_mb']:.0f} MB pinned"
        )
    if note := results["note"]:
        print(note)


def compare(folder: Path, graph: CSCGraph, *, num_batches: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a mini-batch, and the ratio to ours on one thread; for two threads, whose mini-batches lie side by side, as well."""
    rng = np.random.default_rng(1)
    reachable = np.flatnonzero(np.diff(graph.indptr))
    size = min(BATCH_SIZE, len(reachable))
    batches = np.stack([rng.choice(reachable, size, replace=False) for _ in range(num_batches)])
    edges, nodes = edges_and_nodes(graph, batches)
    stored = {name: stored_graph(folder, graph, pinned) for name, pinned in STORED.items()}
    with ExitStack() as undo:
        calls = samplers(graph, batches) | {
            name: of_all(batches, ours(on_disk, batches)) for name, on_disk in stored.items()
        }
        drawn, note = {}, ""
        try:
            pyg = undo.enter_context(pyg_samplers(folder, graph, batches, FANOUTS))
            drawn = {f"PyG {name}": pyg.sample(name)[0] / num_batches for name in ("sample_adj", "NeighborLoader")}
            calls |= {f"PyG {name}": lambda name=name: pyg.sample(name) for name in ("sample_adj", "NeighborLoader")}
        except PeerError as error:
            note = f"PyG is left out: {error}"
        before = {name: on_disk.stats for name, on_disk in stored.items()}  # pinning has read too
        found = alternate(calls, repeats=repeats)
    seconds = {name: median / num_batches for name, median in medians(found).items()}
    first = seconds["ours, 1 thread"]
    rows = {
        name: {"ms": 1e3 * each, "edges_per_second": drawn.get(name, edges) / each, "ratio": each / first}
        for name, each in seconds.items()
    }
    rounds = (repeats + 1) * num_batches
    disk = {name: reads(before[name], on_disk, rounds, seconds[name]) for name, on_disk in stored.items()}
    return {"samplers": rows, "disk": disk, "edges_per_batch": edges, "nodes_per_batch": nodes, "note": note}


def ours(graph: Graph, batches: np.ndarray) -> Callable[[int], MiniBatch]:
    return lambda index: sample_batch(graph, batches[index], fanouts=FANOUTS, seed=0, epoch=0, index=index)


def of_all(batches: np.ndarray, sample: Callable[[int], object]) -> Callable[[], object]:
    """Samples one after another and keeps none of them."""

    def run() -> None:
        for index in range(len(batches)):
            sample(index)

    return run


def samplers(graph: CSCGraph, batches: np.ndarray) -> dict[str, Callable[[], object]]:
    """Each samples all batches once, from memory."""
    pool = concurrent.futures.ThreadPoolExecutor(2)
    bare, rng = bare_sampler(graph, BATCH_SIZE, FANOUTS), np.random.default_rng(2)
    return {
        "ours, 1 thread": of_all(batches, ours(graph, batches)),
        "ours, 2 threads": lambda: list(pool.map(ours(graph, batches), range(len(batches)))),
        "bare kernel, 1 thread": of_all(batches, lambda index: bare(batches[index], index)),
        "numpy": of_all(batches, lambda index: numpy_sample(graph, batches[index], FANOUTS, rng)),
    }


def edges_and_nodes(graph: CSCGraph, batches: np.ndarray) -> tuple[float, float]:
    """Of a mini-batch, on average."""
    drawn = [ours(graph, batches)(index) for index in range(len(batches))]
    edges = [sum(int(block.mask.sum()) for block in batch.blocks if isinstance(block, Block)) for batch in drawn]
    return float(np.mean(edges)), float(np.mean([len(batch.node_ids) for batch in drawn]))


def stored_graph(folder: Path, graph: CSCGraph, pinned: float) -> StoredGraph:
    """The graph with its lists in `folder`, written if they are not there, and that share of their bytes in memory."""
    if not (folder / "indices").exists():
        writer = ArrayWriter(folder, "indices", graph.indices.shape, graph.indices.dtype)
        writer.append(graph.indices)
        writer.close()
        os.sync()
    stored = StoredGraph.open(graph.indptr, folder / "indices")
    if pinned:
        stored.pin(int(pinned * graph.indices.nbytes), uses=np.bincount(graph.indices, minlength=graph.num_nodes))
    return stored


def reads(before: ReadStats, graph: StoredGraph, num_batches: int, seconds: float) -> dict[str, float]:
    """What a mini-batch reads, on average, and the reads' share of the time it takes."""
    after = graph.stats
    return {
        "requests": (after.requests - before.requests) / num_batches,
        "mb": (after.bytes - before.bytes) / num_batches / 1e6,
        "share_of_time": (after.seconds - before.seconds) / num_batches / seconds,
        "pinned_mb": graph.pinned_bytes / 1e6,
    }


if __name__ == "__main__":
    main()
