"""Claim: an edge list of 200 M edges becomes a graph no slower than 1.3 times reading it and sorting it by counting.
Beside: a bucketed counting sort in numba, and reading the Parquet alone.

An edge list in Parquet to a dataset: ours, beside reading the file and a bucketed counting sort that does nothing else.

    python -m benchmarks.ginex_ingest [--scale 24] [--edge-factor 12] [--memory-mib 2048] [--repeats 3] [--json]

The graph is Graph500's R-MAT, 201 M edges by default. "read" only reads the two columns of the Parquet file. "counting sort" reads the
same edges from a file of plain int32 numbers, in pieces; spreads them over 16 files by target; and counts each of these into lists, in
the order of arrival, on one thread: no list is sorted, nothing is checked, and what comes out are files of plain numbers. "ours" is the
whole of `ginex ingest`, on two threads: read, checked, sorted, written as zarr with checksums, and described in the manifest. Each runs
in a process of its own, in turns; compilation is not counted, and the files are in the page cache. Prints medians, and the ratio of
ours to the sum of the two others. Writes results/ginex_ingest.json. Needs 24 bytes of disk an edge in `--folder`, and removes what it
made.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np

from benchmarks.timing import record

_NUM_BUCKETS = 16
_EDGES_AT_ONCE = 8_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=24, help="2**scale nodes")
    parser.add_argument("--edge-factor", type=int, default=12, help="edges a node")
    parser.add_argument("--memory-mib", type=int, default=2048, help="budget of ours")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; a temporary folder by default")
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    parser.add_argument("--only", choices=list(METHODS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measured(arguments)))
        return

    folder = Path(tempfile.mkdtemp(prefix="ginex_ingest", dir=arguments.folder))
    try:
        results = compare(folder, arguments)
    finally:
        shutil.rmtree(folder)
    told = {key: value for key, value in vars(arguments).items() if key not in ("only", "folder")}
    record("ginex_ingest", told, results)
    if arguments.json:
        print(json.dumps(results))
        return
    for name, row in results["methods"].items():
        print(
            f"{name:14} {row['seconds']:7.2f} s {row['ns_per_edge']:7.1f} ns an edge {row['peak_mb']:7.0f} MB at most, "
            f"{row['peak_mb'] - row['imports_mb']:6.0f} of them beside the libraries"
        )
    print(f"ours takes {results['ratio']:.2f} times as long as reading and counting sort together")


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians of the repeats, each method in its turn."""
    from ginex_jax.ingest.rmat import write_edge_list

    write_edge_list(folder / "edges.parquet", arguments.scale, arguments.edge_factor, seed=0)
    write_plain_numbers(folder)
    num_edges = arguments.edge_factor << arguments.scale
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for _ in range(arguments.repeats):
        for name, found in runs.items():
            command = [sys.executable, "-m", "benchmarks.ginex_ingest", "--only", name, "--folder", str(folder)]
            command += ["--scale", str(arguments.scale), "--memory-mib", str(arguments.memory_mib)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    methods = {}
    for name, found in runs.items():
        seconds = statistics.median(run["seconds"] for run in found)
        methods[name] = {
            "seconds": seconds,
            "each_run_s": [run["seconds"] for run in found],
            "ns_per_edge": 1e9 * seconds / num_edges,
            "peak_mb": max(run["peak_mb"] for run in found),
            "imports_mb": statistics.median(run["imports_mb"] for run in found),
        }
    others = methods["read"]["seconds"] + methods["counting sort"]["seconds"]
    return {"num_edges": num_edges, "methods": methods, "ratio": methods["ours"]["seconds"] / others}


def measured(arguments: argparse.Namespace) -> dict[str, float]:
    """One run of one method in this process."""
    run = METHODS[arguments.only](arguments.folder, arguments)
    imports_mb = peak_mb()
    start = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb(), "imports_mb": imports_mb}


def peak_mb() -> float:
    """Of this process; `getrusage` would count what its parent had before this one was started in its place."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def reading(folder: Path, arguments: argparse.Namespace) -> Callable[[], object]:
    from ginex_jax.ingest.edge_files import read_edges

    def run() -> int:
        return sum(len(block.sources) + len(block.targets) for block in read_edges([folder / "edges.parquet"]))

    list(read_edges([]))
    import pyarrow.parquet  # noqa: F401

    return run


def counting_sort(folder: Path, arguments: argparse.Namespace) -> Callable[[], object]:
    """Compiles, and returns the sort."""
    out = folder / "counted"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    few = np.zeros(4, np.int32)
    count(few, np.zeros(4, np.int64))
    spread(few, few, 2, np.zeros(1, np.int64), few.copy(), few.copy())
    scatter(few, few, 0, np.zeros(4, np.int64), few.copy())

    def run() -> None:
        num_nodes = 1 << arguments.scale
        shift = max(0, arguments.scale - _NUM_BUCKETS.bit_length() + 1)
        degrees, lengths = spread_over_files(folder, out, num_nodes, shift)
        np.save(out / "indptr.npy", np.concatenate([[0], np.cumsum(degrees)]))
        with (out / "indices").open("wb") as stream:
            for bucket, pieces in enumerate(lengths):
                first = bucket << shift
                of_bucket = degrees[first : first + (1 << shift)]
                places = np.cumsum(of_bucket) - of_bucket
                lists = np.empty(int(of_bucket.sum()), np.int32)
                with (out / str(bucket)).open("rb") as spilled:
                    for length in pieces:
                        sources, targets = (
                            np.fromfile(spilled, np.int32, length),
                            np.fromfile(spilled, np.int32, length),
                        )
                        scatter(sources, targets, first, places, lists)
                (out / str(bucket)).unlink()
                lists.tofile(stream)

    return run


def spread_over_files(folder: Path, out: Path, num_nodes: int, shift: int) -> tuple[np.ndarray, list[list[int]]]:
    """In-degrees of all nodes, and how long the pieces of each file are."""
    degrees = np.zeros(num_nodes, np.int64)
    lengths: list[list[int]] = [[] for _ in range(((num_nodes - 1) >> shift) + 1)]
    files = [(out / str(bucket)).open("wb") for bucket in range(len(lengths))]
    for sources, targets in plain_numbers(folder):
        count(targets, degrees)
        sizes = np.bincount(targets >> shift, minlength=len(lengths))
        ends = np.cumsum(sizes)
        ordered_sources, ordered_targets = np.empty_like(sources), np.empty_like(targets)
        spread(sources, targets, shift, ends - sizes, ordered_sources, ordered_targets)
        for bucket, end in enumerate(ends.tolist()):
            part = slice(end - int(sizes[bucket]), end)
            ordered_sources[part].tofile(files[bucket])
            ordered_targets[part].tofile(files[bucket])
            lengths[bucket].append(int(sizes[bucket]))
    for file in files:
        file.close()
    return degrees, lengths


def ours(folder: Path, arguments: argparse.Namespace) -> Callable[[], object]:
    """Ingests a graph of a few edges, so that everything is imported and compiled, and returns the rest."""
    from ginex_jax.ingest.dataset_build import IngestOptions, build_dataset
    from ginex_jax.ingest.sources import array_source, open_source

    options = IngestOptions(num_nodes=1 << arguments.scale, memory_bytes=arguments.memory_mib << 20)
    for name in ("few", "dataset"):
        shutil.rmtree(folder / name, ignore_errors=True)
    nodes = np.arange(5)
    build_dataset(folder / "few", array_source(nodes, nodes), IngestOptions(), progress=silent)
    import pyarrow.parquet  # noqa: F401

    def run() -> None:
        source = open_source(edges=[folder / "edges.parquet"])
        build_dataset(folder / "dataset", source, options, progress=silent)

    return run


def silent(phase: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def write_plain_numbers(folder: Path) -> None:
    """The edges of the Parquet file as int32: a piece of sources, a piece of targets, and so on."""
    from ginex_jax.ingest.edge_files import read_edges

    with (folder / "edges.i32").open("wb") as stream:
        for block in read_edges([folder / "edges.parquet"], edges_per_block=_EDGES_AT_ONCE):
            for column in (block.sources, block.targets):
                column.astype(np.int32).tofile(stream)
            (folder / "edges.lengths").open("a").write(f"{len(block.sources)}\n")


def plain_numbers(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with (folder / "edges.i32").open("rb") as stream:
        for length in map(int, (folder / "edges.lengths").read_text().split()):
            yield np.fromfile(stream, np.int32, length), np.fromfile(stream, np.int32, length)


@numba.njit(cache=True)
def count(targets, degrees):
    for target in targets:
        degrees[target] += 1


@numba.njit(cache=True)
def spread(sources, targets, shift, places, ordered_sources, ordered_targets):
    """Puts edges in the order of their buckets."""
    for i in range(len(targets)):
        bucket = targets[i] >> shift
        place = places[bucket]
        places[bucket] = place + 1
        ordered_sources[place] = sources[i]
        ordered_targets[place] = targets[i]


@numba.njit(cache=True)
def scatter(sources, targets, first, places, lists):
    for i in range(len(targets)):
        place = places[targets[i] - first]
        places[targets[i] - first] = place + 1
        lists[place] = sources[i]


METHODS = {"read": reading, "counting sort": counting_sort, "ours": ours}


if __name__ == "__main__":
    main()
