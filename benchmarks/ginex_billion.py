"""Claim: a graph of a billion edges is generated, planned and trained on within 8 GiB.
Beside: the budget, and 600 MB for the process; 48 GiB of disk.

A graph of a billion edges, from nothing to a trained model on one machine: generate, plan, train, each within one budget of memory.

    python -m benchmarks.ginex_billion [--scale 26] [--memory 8GiB] [--batches 300] [--dataset GRAPH] [--json]

R-MAT of scale 26 and 16 edges a node has 67 M nodes and 1.07 G edges; with 128 float32 features it takes 39 GB of disk, which is checked
first, and 48 GiB at most while it is made. "plan" is `ginex plan` for several sizes of cache on `--plan-batches` mini-batches; "train" is
`ginex train`'s own path, GraphSAGE with `--fanouts` and `--batch-size`, stopped after `--batches` steps, without evaluation. Each is
a process of its own, whose peak resident memory is compared with the budget and 600 MB for the process itself. Phases that are done are
not repeated after an interruption. The dataset stays in `--scratch` if `--keep` is given. Writes results/ginex_billion.json.
"""

import argparse
import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.phases import Phases, bytes_on_disk, run_here, say
from benchmarks.timing import record
from ginex_jax.cli.byte_sizes import parse_bytes

EDGE_FACTOR, FEATURE_DIM, CLASSES = 16, 128, 16
MOST_DISK_BYTES = 48 << 30  # at scale 26
PROCESS_BYTES = 600_000_000  # of interpreter and libraries, beside the budget
PLAN_LISTS = 0.55  # of the budget: `ginex plan --memory` is for neighbour lists alone


def generate(dataset: str, scale: int, memory: str) -> dict[str, Any]:
    shutil.rmtree(dataset, ignore_errors=True)  # of a run that was interrupted
    options = ["--edge-factor", EDGE_FACTOR, "--feature-dim", FEATURE_DIM, "--classes", CLASSES, "--memory", memory]
    ginex("generate", "rmat", dataset, "--scale", scale, *options)
    return {"dataset_bytes": bytes_on_disk(Path(dataset))}


def plan(
    dataset: str, memory: str, batches: int, window: int, caches: list[str], fanouts: str, batch_size: int
) -> dict[str, Any]:
    lists = int(PLAN_LISTS * parse_bytes(memory))
    sizes = [argument for cache in caches for argument in ("--cache", cache)]
    sizes += ["--fanouts", fanouts, "--batch-size", str(batch_size)]
    options = ["--batches", batches, "--window", window, "--memory", lists, "--json"]
    return {"plan": json.loads(ginex("plan", dataset, *sizes, *options))}


def train(dataset: str, out: str, memory: str, batches: int, fanouts: str, batch_size: int) -> dict[str, Any]:
    """Stops as Ctrl-C would stop it."""
    from ginex_jax.cli.run_options import RunOptions, write_options
    from ginex_jax.cli.training_run import TrainingRun
    from ginex_jax.store.dataset import open_dataset
    from ginex_jax.train.loop import Update

    shutil.rmtree(out, ignore_errors=True)
    opened = open_dataset(dataset)
    assert opened.train is not None
    epochs = -(-batches // -(-len(opened.train) // batch_size))
    options = RunOptions(
        memory=memory,
        epochs=epochs,
        fanouts=fanouts,
        batch_size=batch_size,
        eval_every=0,
        log_every=min(20, batches),
    )
    run = TrainingRun(opened, Path(out), options)
    say("train: opened")
    steps = [0]

    def report(update: Update) -> None:
        steps[0] = update.step
        if update.step % options.log_every == 0 and update.loss is not None and update.rows_per_second is not None:
            rate = f"{update.rows_per_second:,.0f} rows/s"
            say(f"train: step {update.step}, loss {update.loss:.4f}, {rate}, hit rate {update.hit_rate:.3f}")

    with run.folder.lock():
        run.folder.check()
        write_options(Path(out) / "config.yaml", options)
        result = run.fit(report, lambda: steps[0] >= batches)
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["kind"] == "step"]
    late = lines[len(lines) // 3 :] or lines
    return {
        "steps": result.step,
        "description": run.description(),
        "pipeline": None if result.pipeline is None else result.pipeline.to_json(),
        "first_loss": lines[0]["loss"] if lines else None,
        "last_loss": lines[-1]["loss"] if lines else None,
        "last_score": lines[-1]["score"] if lines else None,
        "rows_per_second": sum(line["rows_per_second"] for line in late) / len(late) if late else None,
        "hit_rate": 1 - sum(line["misses"] for line in late) / sum(line["rows"] for line in late) if late else None,
        "log": lines,
    }


PHASES = {"generate": generate, "plan": plan, "train": train}


def ginex(*arguments: object) -> str:
    """What the command prints on its standard output; its messages go where they always go.

    Raises:
      SystemExit: the command failed.
    """
    from ginex_jax.cli import main as command

    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = command([str(argument) for argument in arguments])
    if status != 0:
        raise SystemExit(status)
    return out.getvalue()


def main() -> None:
    if run_here(PHASES):
        return
    arguments = _arguments()
    scratch: Path = arguments.scratch
    dataset: Path = arguments.dataset or scratch / f"rmat{arguments.scale}"
    scratch.mkdir(parents=True, exist_ok=True)
    if arguments.dataset is None and not dataset.exists():
        _require_room(scratch, arguments.scale)
    phases = Phases("benchmarks.ginex_billion", scratch / "phases", watch=scratch)
    found: dict[str, dict[str, Any]] = {}
    if arguments.dataset is None:
        task = {"dataset": str(dataset), "scale": arguments.scale, "memory": arguments.memory}
        if not dataset.exists():
            (scratch / "phases" / "generate.json").unlink(missing_ok=True)
        found["generate"] = phases.run("generate", "generate", **task)
    sampling = {"fanouts": arguments.fanouts, "batch_size": arguments.batch_size}
    task = {"batches": arguments.plan_batches, "window": arguments.window, "caches": arguments.caches}
    found["plan"] = phases.run("plan", "plan", dataset=str(dataset), memory=arguments.memory, **task, **sampling)
    task = {"out": str(scratch / "run"), "memory": arguments.memory, "batches": arguments.batches}
    found["train"] = phases.run("train", "train", dataset=str(dataset), **task, **sampling)
    results = summary(found, dataset, parse_bytes(arguments.memory))
    path = record("ginex_billion", vars(arguments), results)
    shutil.rmtree(scratch / "run", ignore_errors=True)
    if not arguments.keep:
        for folder in (scratch / "phases", scratch / f"rmat{arguments.scale}"):
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        print(json.dumps(results))
        return
    _print(results)
    print(path)


def summary(found: dict[str, dict[str, Any]], dataset: Path, memory_bytes: int) -> dict[str, Any]:
    """The table, and whether every phase kept to the budget."""
    from ginex_jax.store.dataset import open_dataset

    opened = open_dataset(dataset)
    most_mb = (memory_bytes + PROCESS_BYTES) / 2**20
    return {
        "nodes": opened.num_nodes,
        "edges": opened.num_edges,
        "feature_bytes": opened.manifest.arrays["features"].layout.nbytes,
        "most_peak_mb": most_mb,
        "within_memory": all(phase["peak_mb"] <= most_mb for phase in found.values()),
        "within_disk": max(phase.get("folder_peak_bytes", 0) for phase in found.values()) <= MOST_DISK_BYTES,
        "phases": found,
    }


def _require_room(scratch: Path, scale: int) -> None:
    wanted, free = int(MOST_DISK_BYTES * 2.0 ** (scale - 26)), shutil.disk_usage(scratch).free
    if free < wanted:
        raise SystemExit(f"error: {wanted:,} bytes of disk are wanted below {scratch}, and {free:,} are free")


def _print(results: dict[str, Any]) -> None:
    print(
        f"{results['nodes']:,} nodes, {results['edges']:,} edges, {results['feature_bytes'] / 1e9:.1f} GB of features"
    )
    print(f"{'':10}{'seconds':>9}{'peak MB':>9}{'GB read':>9}{'GB written':>11}{'disk, GB':>9}")
    for name, phase in results["phases"].items():
        read, written = (phase[f"disk_{kind}_bytes"] or 0 for kind in ("read", "written"))
        print(
            f"{name:10}{phase['seconds']:9.1f}{phase['peak_mb']:9,.0f}{read / 1e9:9.2f}{written / 1e9:11.2f}"
            f"{phase.get('folder_peak_bytes', 0) / 1e9:9.1f}"
        )
    kept = "yes" if results["within_memory"] else "NO"
    print(f"at most {results['most_peak_mb']:,.0f} MB in every phase: {kept}")
    if results["phases"].get("plan"):
        for row in results["phases"]["plan"]["plan"]["results"]:
            size = f"{row['cache_bytes'] / 2**30:.2f} GiB"
            print(
                f"plan: {size:>9} {row['policy']:7} {row['hit_rate']:6.1%} {row['seconds_per_epoch']:8,.0f} s an epoch"
            )
    train = results["phases"]["train"]
    if train["last_loss"] is not None:
        print(
            f"train: {train['steps']} steps, loss {train['first_loss']:.3f} -> {train['last_loss']:.3f}, "
            f"{train['rows_per_second']:,.0f} rows/s, hit rate {train['hit_rate']:.3f}"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=int, default=26, help="2**scale nodes")
    parser.add_argument("--dataset", type=Path, help="one that is there; it is only read, and generate is left out")
    parser.add_argument("--memory", default="8GiB", help="of every phase")
    parser.add_argument("--batches", type=int, default=300, help="steps of training")
    parser.add_argument("--fanouts", default="10,10,10")
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--plan-batches", type=int, default=100)
    parser.add_argument("--window", type=int, default=64, help="batches that the plan sees ahead")
    parser.add_argument("--caches", nargs="+", default=["1GiB", "2GiB", "4GiB"], help="sizes to plan for")
    parser.add_argument("--scratch", type=Path, default=Path(".cache/ginex_billion"))
    parser.add_argument("--keep", action="store_true", help="leave the dataset in --scratch")
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
