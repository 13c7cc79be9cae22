"""Claim: time and memory grow no faster than the edges, from 17 M to a billion.
Beside: the scale before.

What it costs when the graph grows: seconds and memory of generate, plan and gather at several scales, by edge.

    python -m benchmarks.ginex_growth [--scales 20 22 24 26] [--dataset-folder FOLDER] [--json]

R-MAT graphs of 16 edges a node with 128 float32 features, each 4 times as large as the one before. "generate" is `ginex generate rmat`;
"plan" opens the dataset, counts uses, samples `--batches` mini-batches and plans a cache of 5 % of the nodes for them; "gather" reads
every `--gather-share`-th row at random, past the page cache. Compiling is not counted. Growth is the exponent of the seconds between two
scales: 1 is linear. A dataset that `--dataset-folder` holds already (`rmat20`, `rmat22` ...) is only read, and its generation is taken
from results/ginex_billion.json if that has it; others are made in `--scratch` and deleted again. Writes results/ginex_growth.json.
"""

import argparse
import itertools
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ginex_billion import generate
from benchmarks.phases import Phases, run_here, say
from benchmarks.timing import RESULTS, record

SHARE, WINDOW = 0.05, 64
_GATHER_AT_ONCE = 1 << 17


def generate_counted(dataset: str, scale: int, memory: str) -> dict[str, Any]:
    """Compiles on a tiny graph first."""
    tiny(dataset)
    start = time.perf_counter()
    found = generate(dataset, scale, memory)
    return {**found, "seconds": time.perf_counter() - start}


def plan(dataset: str, scratch: str, batches: int, fanouts: list[int], batch_size: int) -> dict[str, Any]:
    """Compiles on a tiny graph first."""
    _plan(tiny(f"{scratch}/plan"), batches, fanouts, batch_size)
    start = time.perf_counter()
    found = _plan(dataset, batches, fanouts, batch_size)
    return {**found, "seconds": time.perf_counter() - start}


def tiny(beside: str) -> str:
    """A dataset of 256 nodes."""
    path = f"{beside}-tiny"
    generate(path, 8, "64MiB")
    return path


def _plan(dataset: str, batches: int, fanouts: list[int], batch_size: int) -> dict[str, Any]:
    from ginex_jax.belady.rolling import RollingPlanner
    from ginex_jax.sampling.config import SamplerConfig
    from ginex_jax.sampling.samplers import sampled
    from ginex_jax.store.dataset import open_dataset

    opened = open_dataset(dataset)
    assert opened.train is not None
    clock = [time.perf_counter()]
    opened.graph.count_uses()
    clock.append(time.perf_counter())
    graph = opened.load_graph()
    clock.append(time.perf_counter())
    config = SamplerConfig(fanouts=tuple(fanouts), batch_size=batch_size)
    per_epoch = -(-len(opened.train) // batch_size)
    trace = [sampled(graph, opened.train, config, *divmod(index, per_epoch)).node_ids for index in range(batches)]
    clock.append(time.perf_counter())
    capacity = max(1, int(SHARE * opened.num_nodes))
    policy = RollingPlanner(capacity=capacity, num_nodes=opened.num_nodes, window=WINDOW, commit=WINDOW // 2)
    misses = sum(step.num_misses for step in policy.steps(trace))
    clock.append(time.perf_counter())
    parts = zip(("count", "load", "sample", "plan"), np.diff(clock).tolist(), strict=True)
    return {"parts": dict(parts), "accesses": sum(map(len, trace)), "misses": misses, "edges": opened.num_edges}


def gather(dataset: str, every: int) -> dict[str, Any]:
    from ginex_jax.store.dataset import open_dataset
    from ginex_jax.store.direct_features import DirectFeatures

    opened = open_dataset(dataset)
    num_rows = max(1, opened.num_nodes // every)
    store, rng = DirectFeatures(opened.path / "features"), np.random.default_rng(0)
    out = store.empty(min(num_rows, _GATHER_AT_ONCE))
    store.read_rows(rng.integers(0, opened.num_nodes, len(out)), out=out)  # compiles, and starts the threads
    start = time.perf_counter()
    for first in range(0, num_rows, len(out)):
        ids = rng.integers(0, opened.num_nodes, min(len(out), num_rows - first))
        store.read_rows(ids, out=out)
    elapsed = time.perf_counter() - start
    return {"rows": num_rows, "seconds": elapsed, "rows_per_second": num_rows / elapsed, "note": store.note}


PHASES = {"generate": generate_counted, "plan": plan, "gather": gather}


def main() -> None:
    if run_here(PHASES):
        return
    arguments = _arguments()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    phases = Phases("benchmarks.ginex_growth", arguments.scratch / "phases")
    rows = [at_scale(scale, phases, arguments) for scale in arguments.scales]
    results = {"scales": rows, "growth": growth(rows)}
    path = record("ginex_growth", vars(arguments), results)
    shutil.rmtree(arguments.scratch / "phases", ignore_errors=True)
    if arguments.json:
        print(json.dumps(results))
        return
    _print(results)
    print(path)


def at_scale(scale: int, phases: Phases, arguments: argparse.Namespace) -> dict[str, Any]:
    """Generate, plan, gather; what was made here is deleted."""
    existing = arguments.dataset_folder / f"rmat{scale}" if arguments.dataset_folder else None
    is_ours = existing is None or not existing.is_dir()
    dataset = arguments.scratch / f"rmat{scale}" if is_ours or existing is None else existing
    row: dict[str, Any] = {"scale": scale}
    needs_it = not all(phases.is_done(f"{name}-{scale}") for name in ("generate", "plan", "gather"))
    if is_ours:
        if needs_it and not dataset.is_dir():
            phases.forget(f"generate-{scale}")  # whatever it found, it has to be made again
        task = {"dataset": str(dataset), "scale": scale, "memory": arguments.memory}
        row["generate"] = phases.run(f"generate-{scale}", "generate", **task)
    else:
        say(f"{dataset} is there already")
        row["generate"] = _recorded_generation(scale)
    task = {
        "scratch": str(arguments.scratch),
        "batches": arguments.batches,
        "fanouts": arguments.fanouts,
        "batch_size": arguments.batch_size,
    }
    row["plan"] = phases.run(f"plan-{scale}", "plan", dataset=str(dataset), **task)
    row["gather"] = phases.run(f"gather-{scale}", "gather", dataset=str(dataset), every=arguments.gather_share)
    if is_ours:
        shutil.rmtree(dataset, ignore_errors=True)
    for made in (f"{dataset.name}-tiny", "plan-tiny"):
        shutil.rmtree(arguments.scratch / made, ignore_errors=True)
    return row | {"edges": row["plan"]["edges"]}


def growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each step from scale to scale: log(ratio of seconds) / log(ratio of edges)."""
    steps = []
    for before, after in itertools.pairwise(rows):
        edges = math.log(after["edges"] / before["edges"])
        step: dict[str, Any] = {"from": before["scale"], "to": after["scale"]}
        for name in ("generate", "plan", "gather"):
            if before[name] and after[name]:
                step[name] = math.log(after[name]["seconds"] / before[name]["seconds"]) / edges
        steps.append(step)
    return steps


def _recorded_generation(scale: int) -> dict[str, Any] | None:
    """Of the record of the billion-edge run, if that was of this scale."""
    try:
        recorded = json.loads((RESULTS / "ginex_billion.json").read_text(encoding="utf-8"))
        if recorded["arguments"]["scale"] != scale:
            return None
        return recorded["results"]["phases"]["generate"] | {"from": "ginex_billion.json"}
    except (OSError, ValueError, KeyError):
        return None


def _print(results: dict[str, Any]) -> None:
    print(f"{'scale':>5}{'M edges':>9}" + "".join(f"{name + ' s':>12}{'ns/edge':>9}{'peak MB':>9}" for name in PHASES))
    for row in results["scales"]:
        line = f"{row['scale']:5}{row['edges'] / 1e6:9,.1f}"
        for name in PHASES:
            if row[name] is None:
                line += f"{'there':>12}{'':18}"
                continue
            seconds = row[name]["seconds"]
            line += f"{seconds:12.2f}{1e9 * seconds / row['edges']:9.2f}{row[name]['peak_mb']:9,.0f}"
        print(line)
    for step in results["growth"]:
        told = ", ".join(f"{name} {step[name]:.2f}" for name in PHASES if name in step)
        print(f"growth from {step['from']} to {step['to']}: {told} (1 is linear in edges)")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=int, nargs="+", default=[20, 22, 24, 26])
    parser.add_argument("--dataset-folder", type=Path, help="where some of the datasets are already; only read")
    parser.add_argument("--memory", default="2GiB", help="that generate may take")
    parser.add_argument("--batches", type=int, default=40, help="mini-batches to plan for")
    parser.add_argument("--fanouts", type=int, nargs="+", default=[10, 10, 10])
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--gather-share", type=int, default=32, help="one of so many rows is read")
    parser.add_argument("--scratch", type=Path, default=Path(".cache/ginex_growth"))
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
