"""Claim: some 20 M accesses a second are planned on one thread; a window of 60 mini-batches reads at most 3 % more rows than the whole
trace.
Beside: libCacheSim's Belady; `plan_cache` on the whole trace.

Cache plans: accesses planned a second beside libCacheSim's Belady in turns, and how far a window is from the whole trace.

    python -m benchmarks.ginex_plan [--nodes 20000000] [--batches 60] [--batch-nodes 150000] [--repeats 5] [--json]

One thread. All take turns; then `plan_cache` is called again and again by itself. The trace is made of mini-batches of distinct ids whose
popularity falls with a power of the rank. `plan_cache` returns every step's slots; `RollingPlanner` yields them, and moves on by half a
window; libCacheSim, which decides after every request, answers hit or miss, is told the time of each next access beforehand, which is not
counted, and gets the first `--peer-accesses` of the trace, because it is called from Python once a request. The second table is rows
read, filling included, over accesses, on a trace where windows matter. Writes results/ginex_plan.json.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import alternate, medians, record
from ginex_jax.belady.planning import plan_cache
from ginex_jax.belady.rolling import RollingPlanner
from ginex_jax.belady.simulation import simulate

SHARES = (0.02, 0.1)
WINDOW = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20_000_000)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--batch-nodes", type=int, default=150_000)
    parser.add_argument("--peer-accesses", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    arguments = parser.parse_args()

    trace = steep_trace(arguments.nodes, arguments.batches, arguments.batch_nodes)
    results = {
        "planners": {str(share): speeds(trace, arguments.nodes, share, arguments) for share in SHARES},
        "windows": windows(),
    }
    record("ginex_plan", vars(arguments), results)
    if arguments.json:
        print(json.dumps(results))
        return
    for share, rows in results["planners"].items():
        for name, row in rows.items():
            print(f"cache {100 * float(share):3.0f} % {name:30} {row['accesses_per_second'] / 1e6:8.2f} M accesses/s")
    print("rows read over accesses: cache, window, rolling, whole trace, distance")
    for row in results["windows"]:
        print("{share:6.0%} {window:5} {rolling:9.4f} {whole:9.4f} {distance:8.2%}".format(**row))


def steep_trace(num_nodes: int, num_batches: int, batch_nodes: int) -> list[np.ndarray]:
    """Node number r of the order of popularity is drawn with a density that falls as r ** (-2/3)."""
    rng, trace = np.random.default_rng(0), []
    names = rng.permutation(num_nodes).astype(np.int32)
    for _ in range(num_batches):
        ranks = np.unique((num_nodes * rng.random(2 * batch_nodes) ** 3).astype(np.int64))
        trace.append(names[rng.permutation(ranks)[:batch_nodes]])
    return trace


def speeds(
    trace: list[np.ndarray], num_nodes: int, share: float, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Accesses a second of each planner for a cache of that share of the nodes."""
    capacity, accesses = int(share * num_nodes), sum(map(len, trace))
    rolling = RollingPlanner(capacity=capacity, num_nodes=num_nodes, window=WINDOW, commit=WINDOW // 2)

    def roll() -> None:
        for _ in rolling.steps(trace):
            pass

    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "plan_cache": (accesses, lambda: plan_cache(trace, capacity=capacity, num_nodes=num_nodes)),
        f"RollingPlanner, window {WINDOW}": (accesses, roll),
    }
    try:
        calls["libCacheSim Belady"] = libcachesim_belady(trace, capacity, arguments.peer_accesses)
    except ImportError as error:
        print(f"libCacheSim is left out: {error}")
    times = medians(alternate({name: call for name, (_, call) in calls.items()}, repeats=arguments.repeats))
    # Other planners leave nothing of its tables in the caches, nor of its memory with the process.
    alone = "plan_cache, again and again"
    calls[alone] = calls["plan_cache"]
    times |= medians(alternate({alone: calls[alone][1]}, repeats=arguments.repeats))
    return {
        name: {"seconds": times[name], "accesses_per_second": count / times[name]} for name, (count, _) in calls.items()
    }


def libcachesim_belady(trace: list[np.ndarray], capacity: int, count: int) -> tuple[int, Callable[[], object]]:
    import libcachesim  # pyright: ignore[reportMissingImports]

    ids = np.concatenate(trace)[:count].tolist()
    next_access, last = [1 << 62] * len(ids), {}
    for time in reversed(range(len(ids))):
        next_access[time] = last.get(ids[time], 1 << 62)
        last[ids[time]] = time
    requests = [
        libcachesim.Request(obj_id=node, obj_size=1, next_access_vtime=time)  # pyright: ignore[reportCallIssue]
        for node, time in zip(ids, next_access, strict=True)
    ]

    def run() -> int:
        cache = libcachesim.Belady(cache_size=capacity)
        return sum(cache.get(request) for request in requests)

    return len(ids), run


def windows(*, num_nodes: int = 200_000, num_batches: int = 240, draws: int = 10_000) -> list[dict[str, Any]]:
    """A flatter trace (Zipf, exponent 0.8) of some 7,700 distinct ids a batch; all caches start empty."""
    rng, trace = np.random.default_rng(0), []
    popularity = np.cumsum(np.arange(1, num_nodes + 1) ** -0.8)
    names = rng.permutation(num_nodes).astype(np.int32)
    for _ in range(num_batches):
        ranks = np.unique(np.searchsorted(popularity, rng.random(draws) * popularity[-1]))
        trace.append(names[rng.permutation(ranks)])
    accesses, rows = sum(map(len, trace)), []
    for share in (0.05, 0.1, 0.2):
        capacity = int(share * num_nodes)
        whole = simulate(trace, capacity=capacity, num_nodes=num_nodes, policy="belady").sum() / accesses
        for window in (15, 30, 60):
            misses = simulate(trace, capacity=capacity, num_nodes=num_nodes, policy="belady", window=window).sum()
            rolling = misses / accesses
            row = {
                "share": share,
                "window": window,
                "rolling": rolling,
                "whole": whole,
                "distance": rolling / whole - 1,
            }
            rows.append({name: float(value) if name != "window" else value for name, value in row.items()})
    return rows


if __name__ == "__main__":
    main()
