"""Claim: with a cache of 5 % of the nodes, Ginex prepares batches 1.3 times as fast as LRU and 4 times as fast as a memory map, at 0.8 of
the disk's rate or more.
Beside: direct I/O with LRU and with a fixed hot set; memory maps with one and two threads; PyG over them; a pool of C threads that reads
the same misses.

The same sampled batches from disk by every way to do it: memory maps, direct I/O with LRU or a fixed hot set, and Ginex.

    python -m benchmarks.ginex_epoch --dataset rmat26 [--shares 0.05 0.02 0.1] [--batches 100] [--warm-up 30] [--json]

Without `--dataset` it generates R-MAT of `--scale` below `--scratch` (scale 26 takes 39 GB, is left there and used again). The graph is
sampled in memory, so that features are all that is read. Ginex, LRU and the static set (the nodes that occur most often as neighbours)
share everything but the policy: sampler, threads, buffers, direct I/O. `--batches` are taken in one stream, and the clock starts after
`--warm-up` of them; all caches start empty. The memory map reads every row through the page cache, which is emptied first and may grow
to all memory that is free; it runs in the same pipeline, with one thread and with two, over `--mmap-batches`. The first half of these
warms it up. PyG's NeighborLoader, where `make bench-peers` has built it, reads through a FeatureStore of its own over the same maps, with
the same seeds; it draws fewer neighbours. The bound is a pool of C threads that reads what the plan misses, and nothing else, between
the other runs.

Each phase is a process of its own, and what it found is kept in `--scratch`: run it again after an interruption, and it goes on. Phases
are `step: none`, where batches are thrown away, and for the first share `step: model`, one of GraphSAGE with 256 hidden features. Writes
results/ginex_epoch.json.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks.epoch_phases import PHASES
from benchmarks.llamacpp_build import PEERS, PeerError
from benchmarks.phases import Phases, run_here, say
from benchmarks.pyg_build import built_python
from benchmarks.timing import record

POLICIES = ("ginex", "lru", "static")
WANTED = {"lru / ginex": 1.3, "mmap / ginex": 4.0, "ginex / C pool": 0.8}


def main() -> None:
    if run_here(PHASES):
        return
    arguments = _arguments()
    scratch: Path = arguments.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    dataset = arguments.dataset or _generated(scratch, arguments.scale)
    try:
        results = Contest(dataset, arguments).run()
    except KeyboardInterrupt:
        raise SystemExit("interrupted: run it again, and it goes on") from None
    path = record("ginex_epoch", vars(arguments), results)
    if arguments.json:
        print(json.dumps(results))
        return
    _print(results)
    print(path)
    if not arguments.keep:
        shutil.rmtree(scratch / "phases", ignore_errors=True)


class Contest:
    """All phases, in turns."""

    def __init__(self, dataset: Path, arguments: argparse.Namespace) -> None:
        self._dataset, self._arguments = str(dataset), arguments
        self._scratch = str(arguments.scratch)
        self._phases = Phases("benchmarks.ginex_epoch", arguments.scratch / "phases")
        self._plan = {"window": arguments.window, "commit": arguments.commit}
        self._turns = 0
        self._pools: dict[float, list[dict[str, Any]]] = {}

    def run(self) -> dict[str, Any]:
        arguments = self._arguments
        common = {"fanouts": arguments.fanouts, "batch_size": arguments.batch_size}
        graph = self._run("prepare", "prepare", **common, shares=arguments.shares)
        plans = {share: self._planned(share) for share in arguments.shares}
        rows = [row for share in arguments.shares for row in self._policies(share, plans[share])]
        rows += self._mapped(model=False)
        pyg = self._pyg(common)
        if arguments.model_batches:
            rows += [self._direct(name, arguments.shares[0], 0, model=True) for name in POLICIES]
            rows += self._mapped(model=True, threads=[_best_threads(rows)])
        return {
            "graph": graph,
            "plans": {str(share): plan for share, plan in plans.items()},
            "runs": rows,
            "pyg": pyg,
            "pool": {str(share): _pool_rates(found) for share, found in self._pools.items()},
            "ratios": ratios(rows, pyg, {share: _pool_rates(found) for share, found in self._pools.items()}),
        }

    def _run(self, title: str, phase: str, /, **arguments: Any) -> dict[str, Any]:
        return self._phases.run(title, phase, dataset=self._dataset, scratch=self._scratch, **arguments)

    def _planned(self, share: float) -> dict[str, Any]:
        counts = {"warm_up": self._arguments.warm_up, "batches": self._arguments.batches - self._arguments.warm_up}
        return self._run(f"plan-{share}", "plan", share=share, **counts, **self._plan)

    def _policies(self, share: float, plan: dict[str, Any]) -> list[dict[str, Any]]:
        """Each policy once a round, and the pool after each."""
        rows = []
        for number in range(self._arguments.rounds):
            for name in POLICIES:
                row = self._direct(name, share, number, model=False)
                if name == "ginex" and row["misses_of"] != plan["misses_of"]:
                    raise SystemExit(f"error: other rows were read than planned for a cache of {share:.0%}")
                rows.append(row)
                self._pools.setdefault(share, []).append(self._pool(share))
        return rows

    def _direct(self, name: str, share: float, number: int, *, model: bool) -> dict[str, Any]:
        arguments = self._arguments
        batches = arguments.model_batches if model else arguments.batches
        warm_up = batches * 3 // 10 if model else arguments.warm_up
        counts = {"warm_up": warm_up, "batches": batches - warm_up}
        kind = "model" if model else "none"
        title = f"{name}-{share}-{kind}-{number}"
        found = self._run(title, "direct", name=name, share=share, **counts, **self._plan, model=model)
        return {"name": name, "share": share, "step": kind, "round": number, **found}

    def _pool(self, share: float) -> dict[str, Any]:
        self._turns += 1
        sizes = {"threads": self._arguments.pool_threads, "max_rows": self._arguments.pool_rows}
        return self._run(f"pool-{share}-{self._turns}", "pool", share=share, turn=self._turns, **sizes)

    def _mapped(self, *, model: bool, threads: list[int] | None = None) -> list[dict[str, Any]]:
        batches, rows = self._arguments.mmap_batches, []
        kind = "model" if model else "none"
        for count in threads or self._arguments.mmap_threads:
            counts = {"threads": count, "warm_up": batches // 2, "batches": batches - batches // 2}
            limit = self._arguments.mmap_seconds
            found = self._run(f"mmap-{count}-{kind}", "mapped", **counts, max_seconds=limit, model=model)
            rows.append({"name": "mmap", "threads": count, "share": None, "step": kind, "round": 0, **found})
        return rows

    def _pyg(self, common: dict[str, Any]) -> dict[str, Any]:
        try:
            python = str(built_python(self._arguments.peers))
        except PeerError as error:
            say(f"PyG is left out: {error}")
            return {"note": str(error)}
        counts = {"batches": self._arguments.mmap_batches, "workers": self._arguments.pyg_workers, "python": python}
        try:
            return self._run("pyg", "pyg", **common, **counts, max_seconds=self._arguments.mmap_seconds)
        except SystemExit as error:
            say(f"PyG is left out: {error}")
            return {"note": str(error)}


def ratios(rows: list[dict[str, Any]], pyg: dict[str, Any], pools: dict[float, dict[str, float]]) -> dict[str, float]:
    """Data preparation, seconds for each row that a batch asks for; of several rounds the medians."""
    found = {}

    def cost(name: str, share: float | None, step: str = "none") -> float | None:
        costs = [
            r["timed_seconds"] / r["rows"] for r in rows if (r["name"], r["share"], r["step"]) == (name, share, step)
        ]
        return (min if name == "mmap" else statistics.median)(costs) if costs else None

    for share, pool in pools.items():
        ours = cost("ginex", share)
        assert ours is not None
        for name in ("lru", "static"):
            if (other := cost(name, share)) is not None:
                found[f"{name} / ginex, {share:.0%}"] = other / ours
        if (mapped := cost("mmap", None)) is not None:
            found[f"mmap / ginex, {share:.0%}"] = mapped / ours
        if "seconds_per_row" in pyg:
            found[f"PyG / ginex, {share:.0%}"] = pyg["seconds_per_row"] / ours
        rates = [r["misses_per_second"] for r in rows if (r["name"], r["share"], r["step"]) == ("ginex", share, "none")]
        for order, rate in pool.items():
            title = "C pool" if order == "as they come" else f"C pool {order}"
            found[f"ginex / {title}, {share:.0%}"] = statistics.median(rates) / rate
        if (ours := cost("ginex", share, "model")) is not None:
            for name, of in (("lru", share), ("static", share), ("mmap", None)):
                if (other := cost(name, of, "model")) is not None:
                    found[f"{name} / ginex with a model step, {share:.0%}"] = other / ours
    return found


def _pool_rates(found: list[dict[str, Any]]) -> dict[str, float]:
    """Median rows a second in each order."""
    rates = {}
    for order in found[0]["rows_per_second"]:
        if seen := [one["rows_per_second"][order] for one in found if one["rows_per_second"][order]]:
            rates[order] = statistics.median(seen)
    return rates


def _best_threads(rows: list[dict[str, Any]]) -> int:
    mapped = [row for row in rows if row["name"] == "mmap"]
    return min(mapped, key=lambda row: row["timed_seconds"] / row["rows"])["threads"]


def _generated(scratch: Path, scale: int) -> Path:
    from ginex_jax.ingest.rmat_dataset import RmatOptions, generate_rmat

    path = scratch / f"rmat{scale}"
    if not path.exists():
        say(f"generating {path} ...")
        options = RmatOptions(scale=scale, edge_factor=16, feature_dim=128, classes=16)
        generate_rmat(path, options, progress=lambda phase, done, total: None)
    return path


def _print(results: dict[str, Any]) -> None:
    header = f"{'':16}{'cache':>6}{'step':>7}{'s/batch':>9}{'rows/s':>11}{'read/s':>10}{'hits':>7}{'GB read':>9}{'peak MB':>9}"
    print(header + "  stages: busy / starved / blocked, % of the time")
    for row in results["runs"]:
        name = row["name"] + (f", {row['threads']} threads" if "threads" in row else "")
        share = "" if row["share"] is None else f"{row['share']:.0%}"
        stages = ", ".join(
            f"{stage} "
            + "/".join(f"{100 * times[kind] / row['timed_seconds']:.0f}" for kind in ("busy", "starved", "blocked"))
            for stage, times in row["stages"].items()
        )
        print(
            f"{name:16}{share:>6}{row['step']:>7}{row['timed_seconds'] / row['batches']:9.3f}{row['rows_per_second']:11,.0f}"
            f"{row['misses_per_second']:10,.0f}{row['hit_rate']:7.1%}{row['read_bytes'] / 1e9:9.2f}{row['peak_mb']:9,.0f}  {stages}"
        )
        if "resident_bytes_after" in row:
            print(f"{'':16}page cache: {row['resident_bytes_after'] / 1e9:.2f} GB of the features at the end")
    if "seconds_per_row" in results["pyg"]:
        pyg = results["pyg"]
        print(f"PyG: {1 / pyg['seconds_per_row']:,.0f} rows/s; page cache {pyg['resident_bytes_after'] / 1e9:.2f} GB")
    else:
        print(f"PyG is left out: {results['pyg']['note']}")
    for share, rates in results["pool"].items():
        told = ", ".join(f"{rate:,.0f} rows/s {order}" for order, rate in rates.items())
        print(f"C pool, misses at {float(share):.0%}: {told}")
    for name, ratio in results["ratios"].items():
        wanted = WANTED.get(name.partition(",")[0])
        print(f"{name:40} {ratio:6.2f}" + (f"   (wanted: {wanted})" if wanted else ""))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="with features, labels and training nodes; only read")
    parser.add_argument("--scale", type=int, default=26, help="of the graph that is generated without --dataset")
    parser.add_argument("--scratch", type=Path, default=Path(".cache/ginex_epoch"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.02, 0.1], help="cache sizes, of the nodes")
    parser.add_argument("--fanouts", type=int, nargs="+", default=[10, 10, 10])
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=100, help="warm-up included")
    parser.add_argument("--warm-up", type=int, default=30)
    parser.add_argument("--window", type=int, default=64, help="batches that Ginex sees ahead")
    parser.add_argument("--commit", type=int, default=1, help="batches that its view moves on by")
    parser.add_argument("--rounds", type=int, default=1, help="runs of every policy")
    parser.add_argument("--mmap-batches", type=int, default=20)
    parser.add_argument("--mmap-threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--mmap-seconds", type=float, default=900.0, help="a run of the memory map ends after these")
    parser.add_argument("--model-batches", type=int, default=40, help="with a model's step, 30 %% warm-up; 0 for none")
    parser.add_argument("--pool-threads", type=int, default=64)
    parser.add_argument("--pool-rows", type=int, default=3_000_000, help="that the C pool reads each time")
    parser.add_argument("--pyg-workers", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=PEERS)
    parser.add_argument("--keep", action="store_true", help="leave the phases' results in --scratch")
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    arguments = parser.parse_args()
    if not 0 <= arguments.warm_up < arguments.batches:
        parser.error("--warm-up should be less than --batches")
    return arguments


if __name__ == "__main__":
    main()
