"""Claim: the paper's task: a memory network on bAbI loses at most .02 at the conservative setting for n = 50, at half of base's cycles.
Beside: the paper's figures; exact attention in the same network.

A3 on real workloads, accuracy and cost from the same run, beside the paper's figures 11 to 13.

    python -m benchmarks.a3_workloads --babi FOLDER [--seeds 0 1 2] [--parameters FOLDER] [--epochs 60] [--linear-epochs 30]

bAbI: the end-to-end memory network (d = 64, three hops) on all tasks jointly, trained from each seed and then evaluated with every setting
of the figures, by three readings of n: the story's sentences ("story"), the size of the task's memory ("task") and the network's 50
("memory"). What the paper calls n averages 20, as "task" does. C/n and K/n are sums over sums, and means of each query's own fraction.
FOLDER is bAbI's `en-valid`; trained networks are kept in `--parameters`. Numbers are means over seeds, after +- the standard deviation
of one seed. Writes results/a3_workloads.json.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a3_jax.cost.hardware import Hardware
from a3_jax.cost.published import (
    CANDIDATE_FRACTION,
    KEPT_FRACTION,
    M_FRACTION,
    M_FRACTIONS,
    QUALITY_BY_M,
    QUALITY_BY_T,
    THRESHOLDS,
    Config,
    published,
)
from a3_jax.workloads.memory_report import paper_settings
from a3_jax.workloads.memory_run import run
from a3_jax.workloads.memory_training import Epoch, TrainingConfig
from benchmarks.timing import record

_TASK = "memn2n"  # the paper's name of this workload
_MEASURED = (
    "accuracy",
    "loss",
    "n",
    "M",
    "C",
    "K",
    "candidate_fraction",
    "kept_fraction",
    "mean_candidate_fraction",
    "mean_kept_fraction",
    "top_2_kept",
    "cycles",
    "latency_cycles",
    "joules",
    "bytes",
)
_BASE = ("cycles", "latency_cycles", "joules", "bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--babi", type=Path, required=True, help="bAbI's folder en-valid")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parameters", type=Path, help="folder of trained networks, used where they are there")
    parser.add_argument("--linear-epochs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()

    config = TrainingConfig(linear_epochs=arguments.linear_epochs, epochs=arguments.epochs)
    if arguments.parameters is not None:
        arguments.parameters.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in arguments.seeds:
        file = None if arguments.parameters is None else arguments.parameters / f"babi-{seed}.npz"
        start = time.perf_counter()
        runs.append(run(arguments.babi, paper_settings(), config, Hardware(), seed=seed, file=file, on_epoch=tell))
        accuracy = runs[-1]["settings"][0]["accuracy"]
        seconds = time.perf_counter() - start
        print(
            f"seed {seed}: accuracy {accuracy:.4f}, trained in {runs[-1]['training_seconds']:.0f} s, all {seconds:.0f} s",
            file=sys.stderr,
        )
    results = summary(runs)
    record("a3_workloads", vars(arguments), {"babi": results})
    for line in tables(results):
        print(line)


def tell(epoch: Epoch) -> None:
    print(f"epoch {epoch.number}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.4f}", file=sys.stderr, flush=True)


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all seeds share, and of every setting mean and deviation over seeds."""
    shared = ("data", "hops", "questions", "config", "n", "memory_size_by_task", "sentences_by_task")
    settings = [_over_seeds(rows) for rows in zip(*(one["settings"] for one in runs), strict=True)]
    return {name: runs[0][name] for name in shared} | {
        "seeds": [one["seed"] for one in runs],
        "training_seconds": [one["training_seconds"] for one in runs],
        "exact_accuracy": [one["settings"][0]["accuracy"] for one in runs],
        "settings": settings,
    }


def _over_seeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    deviations = {
        name: float(np.std([row[name] for row in rows], ddof=1)) if len(rows) > 1 else None for name in _MEASURED
    }
    tasks = rows[0]["accuracy_by_task"]
    return {
        **{name: rows[0][name] for name in ("rows", "M_over_n", "T")},
        **{name: float(np.mean([row[name] for row in rows])) for name in _MEASURED},
        "base": {name: float(np.mean([row["base"][name] for row in rows])) for name in _BASE},
        "deviation": deviations,
        "accuracy_by_task": {task: [row["accuracy_by_task"][task] for row in rows] for task in tasks},
    }


def tables(results: dict[str, Any]) -> Iterator[str]:
    """Markdown: settings, then tasks."""
    exact = results["settings"][0]
    yield f"exact: {_number(exact, 'accuracy')}; the paper {published(_TASK, 'base', 'quality').value}"
    yield "n: " + "; ".join(
        f"{rows} mean {n['mean']:.1f}, {n['min']:g} to {n['max']:g}" for rows, n in results["n"].items()
    )
    yield ""
    chosen = "C/n | mean | paper | K/n | mean | paper | top 2 | paper"
    yield f"| n | M | T | accuracy | paper | {chosen} | cycles | of base | nJ | of base | bytes | of base |"
    yield "|---|---|---|" + "---:|" * 16
    for row in results["settings"]:
        paper = _paper(row)
        cells = [
            row["rows"],
            "" if row["M_over_n"] is None else f"{row['M_over_n']:g} n",
            "" if row["T"] is None else f"{row['T']:g} %",
            _number(row, "accuracy"),
            paper.get("accuracy", ""),
            f"{row['candidate_fraction']:.3f}",
            f"{row['mean_candidate_fraction']:.3f}",
            paper.get("candidates", ""),
            f"{row['kept_fraction']:.3f}",
            f"{row['mean_kept_fraction']:.3f}",
            paper.get("kept", ""),
            f"{row['top_2_kept']:.3f}",
            paper.get("top", ""),
        ]
        for name, factor in (("cycles", 1), ("joules", 1e9), ("bytes", 1)):
            cells += [f"{row[name] * factor:.3g}", f"{row[name] / row['base'][name]:.2f}"]
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""
    yield from _task_table(results)


def _number(row: dict[str, Any], name: str) -> str:
    deviation = row["deviation"][name]
    return f"{row[name]:.4f}" + ("" if deviation is None else f" +- {deviation:.4f}")


def _paper(row: dict[str, Any]) -> dict[str, float]:
    """The paper's numbers for a setting, whatever the reading of n."""
    m, t = row["M_over_n"], row["T"]
    if m is not None and t is not None:
        config: Config = "conservative" if m == M_FRACTION["conservative"] else "aggressive"
        return {
            "accuracy": published(_TASK, config, "quality").value,
            "top": published(_TASK, config, "largest_rows_kept").value,
        }
    if m is not None:
        place = M_FRACTIONS.index(m)
        return {"accuracy": QUALITY_BY_M[_TASK][place], "candidates": CANDIDATE_FRACTION[_TASK][place]}
    if t is not None:
        place = THRESHOLDS.index(t)
        return {"accuracy": QUALITY_BY_T[_TASK][place], "kept": KEPT_FRACTION[_TASK][place]}
    return {"accuracy": published(_TASK, "base", "quality").value}


def _task_table(results: dict[str, Any]) -> Iterator[str]:
    """Means over seeds, exact and by the paper's two configurations and every reading of n."""
    columns = [results["settings"][0]] + [row for row in results["settings"] if row["M_over_n"] and row["T"]]
    names = ["exact", *(f"{row['M_over_n']:g} n, {row['T']:g} %, {row['rows']}" for row in columns[1:])]
    yield f"| task | memory | sentences | {' | '.join(names)} |"
    yield "|---|---:|---:|" + "---:|" * len(names)
    for task in columns[0]["accuracy_by_task"]:
        values = (f"{np.mean(row['accuracy_by_task'][task]):.3f}" for row in columns)
        yield (
            f"| {task} | {results['memory_size_by_task'][task]} | {results['sentences_by_task'][task]:.1f} | {' | '.join(values)} |"
        )


if __name__ == "__main__":
    main()
