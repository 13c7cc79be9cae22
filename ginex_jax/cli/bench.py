"""`ginex bench`: what this machine gives on this dataset, part by part, and what comes out at the end of the pipeline."""

import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bandwise_commands.errors import messages, reporting_errors
from bandwise_commands.interrupts import Report
from ginex_jax.cli.byte_sizes import parse_bytes
from ginex_jax.cli.neighbor_lists import count_uses, graph_within
from ginex_jax.cli.progress import progress_reports
from ginex_jax.cli.run_options import parse_fanouts
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.store.dataset import Dataset

_POLICIES = ("belady", "lru", "static", "none")
_WARM_UP = 0.3  # of the mini-batches
_KINDS = ("busy", "starved", "blocked")
_RING_BATCHES = 4  # of the usual size, beside the largest


@reporting_errors
def bench(
    dataset: Annotated[Path, typer.Argument(help="A dataset with features and training nodes.", show_default=False)],
    cache: Annotated[str, typer.Option(help="Size of the feature cache: 512MiB, 4GB ...")] = "1GiB",
    fanouts: Annotated[
        str, typer.Option(help="Neighbours a node, hop by hop from the seeds; all takes all.")
    ] = "10,10,10",
    batch_size: Annotated[int, typer.Option(help="Seeds a mini-batch.")] = 1000,
    batches: Annotated[int, typer.Option(help="Mini-batches of every run; the first 30 % are not counted.")] = 50,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="belady, lru, static or none: what stays in the cache; repeat to compare.", show_default="all four"
        ),
    ] = None,
    window: Annotated[int, typer.Option(help="Mini-batches that Belady's policy sees ahead.")] = 32,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    memory: Annotated[
        str, typer.Option(help="Most memory for neighbour lists; the others are read from disk.")
    ] = "2GiB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Measure the disk, sampling, planning, and all of them together with a training step that costs nothing."""
    config = SamplerConfig(fanouts=parse_fanouts(fanouts), batch_size=batch_size, seed=seed)
    if batches < 2:
        raise ValueError(f"--batches should be at least 2, got {batches}")
    if window < 1:
        raise ValueError(f"--window should be at least 1, got {window}")
    policies = tuple(dict.fromkeys(policy or _POLICIES))
    if unknown := set(policies) - set(_POLICIES):
        raise ValueError(f"a policy is one of {', '.join(_POLICIES)}, got {min(unknown)!r}")
    question = _Question(parse_bytes(cache), policies, batches, window, parse_bytes(memory))
    with progress_reports(messages) as progress:
        report = _report(dataset, config, question, progress)
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        _print(report)


@dataclasses.dataclass(frozen=True)
class _Question:
    cache_bytes: int
    policies: tuple[str, ...]
    batches: int
    window: int
    memory_bytes: int

    @property
    def warm_up(self) -> int:
        return min(self.batches - 1, int(_WARM_UP * self.batches))


def _report(path: Path, config: SamplerConfig, question: _Question, progress: Report) -> dict[str, Any]:
    """What `--json` prints."""
    from ginex_jax.cli.loaders import features_of, training_nodes
    from ginex_jax.sampling.samplers import NodeSampler
    from ginex_jax.store.dataset import open_dataset
    from ginex_jax.store.disk_rate import measure_disk_rate
    from ginex_jax.store.shards import open_sharded

    dataset = open_dataset(path)
    features_of(dataset)
    nodes = training_nodes(dataset)
    row_bytes = dataset.manifest.arrays["features"].layout.stride
    if question.cache_bytes < row_bytes:
        raise ValueError(f"a cache of {question.cache_bytes:,} bytes holds no row: a row of {path} takes {row_bytes:,}")
    progress("measuring the disk", 0, 1)
    rate, note = measure_disk_rate(open_sharded(dataset.path / "features"), row_bytes=row_bytes)
    progress("measuring the disk", 1, 1)
    wanted = "static" in question.policies
    uses = count_uses(dataset, memory_bytes=question.memory_bytes, wanted=wanted, progress=progress)
    sampler = NodeSampler(graph_within(dataset, question.memory_bytes, uses), nodes, config)
    trace, sampling = _trace(sampler, question, progress)
    capacity = min(question.cache_bytes // row_bytes, dataset.num_nodes)
    results = [
        _measured(policy, dataset, sampler, trace, uses, capacity, question, progress) for policy in question.policies
    ]
    for result in results:
        planning, misses = result["planning_seconds"], result["planned_misses"] / result["batches"]
        result["predicted_seconds"] = max(sampling["seconds"] / result["samplers"], planning, misses / rate)
    return {
        "path": str(path),
        "nodes": dataset.num_nodes,
        "edges": dataset.num_edges,
        "row_bytes": row_bytes,
        "fanouts": ["all" if fanout is None else fanout for fanout in config.fanouts],
        "batch_size": config.batch_size,
        "seed": config.seed,
        "cache_rows": capacity,
        "window": question.window,
        "warm_up": question.warm_up,
        "disk": {"rows_per_second": rate, "note": note},
        "sampling": sampling,
        "results": results,
    }


def _trace(sampler: Any, question: _Question, progress: Report) -> tuple[list[np.ndarray], dict[str, float]]:
    """The ids of all batches that a run will look at, and what sampling them took on this one thread."""
    from ginex_jax.belady.planning import MAX_NODES

    id_type = np.int32 if sampler.num_nodes <= MAX_NODES else np.int64
    count, trace, seconds = question.batches + question.window, [], 0.0
    for number in range(count):
        progress("sampling", number, count)
        start = time.perf_counter()
        batch = sampler.sampled(*divmod(number, sampler.steps_per_epoch))
        seconds += time.perf_counter() - start
        trace.append(batch.node_ids.astype(id_type))
    progress("sampling", count, count)
    nodes = sum(map(len, trace))
    return trace, {"seconds": seconds / count, "nodes_per_second": nodes / seconds, "nodes_per_batch": nodes / count}


def _measured(
    policy: str,
    dataset: Dataset,
    sampler: Any,
    trace: list[np.ndarray],
    uses: np.ndarray | None,
    capacity: int,
    question: _Question,
    progress: Report,
) -> dict[str, Any]:
    """One policy: planned alone, then in the pipeline."""
    from ginex_jax.pipeline.disk_loader import DiskLoader
    from ginex_jax.pipeline.opening import policy_maker
    from ginex_jax.pipeline.trial import run_trial

    make_policy = policy_maker(
        policy,  # pyright: ignore[reportArgumentType]  # checked at the door
        capacity=capacity,
        num_nodes=dataset.num_nodes,
        window=question.window,
        uses=uses,
    )
    for _ in make_policy().steps(trace[:1]):  # compiles
        pass
    start = time.perf_counter()
    planned = [step.num_misses for step in itertools.islice(make_policy().steps(trace), question.batches)]
    planning = time.perf_counter() - start
    features = dataset.open_features()  # of its own: its counts are this run's
    assert features is not None
    sizes = [shape.level_sizes[-1] for shape in sampler.shapes]
    ring_rows = max(sizes[-1], max(map(len, trace))) + _RING_BATCHES * sizes[0]
    loader = DiskLoader(sampler, features, make_policy=make_policy, ring_rows=ring_rows)
    trial = run_trial(
        loader,
        warm_up=question.warm_up,
        batches=question.batches - question.warm_up,
        progress=lambda done: progress(f"running {policy}", done, question.batches),
    )
    found = trial.to_json()
    return {
        "policy": policy,
        "samplers": loader.num_samplers,
        "planned_misses": sum(planned[question.warm_up :]),
        "planning_seconds": planning / question.batches,
        "planning_nodes_per_second": sum(map(len, trace[: question.batches])) / planning,
        "measured_seconds": trial.seconds / trial.batches,
        **{name: found[name] for name in ("batches", "rows", "misses", "hit_rate", "read_bytes", "requests")},
        **{name: found[name] for name in ("seconds", "rows_per_second", "misses_per_second", "stages")},
    }


def _print(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    sampling, disk = report["sampling"], report["disk"]
    console.print(
        f"{report['nodes']:,} nodes, {report['edges']:,} edges; {sampling['nodes_per_batch']:,.0f} rows of "
        f"{report['row_bytes']:,} bytes a mini-batch; cache {report['cache_rows']:,} rows",
        soft_wrap=True,
    )
    note = f" ({disk['note']})" if disk["note"] else ""
    console.print(f"disk: {disk['rows_per_second']:,.0f} random rows/s{note}", markup=False, soft_wrap=True)
    console.print(
        f"sampling: {1e3 * sampling['seconds']:,.1f} ms a mini-batch on one thread, "
        f"{sampling['nodes_per_second']:,.0f} rows/s",
        soft_wrap=True,
    )
    console.print("a mini-batch:")
    console.print(_speeds(report["results"]))
    console.print("time of each stage, % busy/starved/blocked:", markup=False)
    console.print(_stages(report["results"]))


def _speeds(results: list[dict[str, Any]]) -> Table:
    table = Table("policy", box=None, pad_edge=False)
    for column in ("hit rate", "reads", "plan ms", "predicted ms", "measured ms", "rows/s", "MB/s"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            result["policy"],
            f"{100 * result['hit_rate']:.1f} %",
            f"{result['misses'] / result['batches']:,.0f}",
            f"{1e3 * result['planning_seconds']:,.1f}",
            f"{1e3 * result['predicted_seconds']:,.1f}",
            f"{1e3 * result['measured_seconds']:,.1f}",
            f"{result['rows_per_second']:,.0f}",
            f"{result['read_bytes'] / result['seconds'] / 1e6:,.1f}",
        )
    return table


def _stages(results: list[dict[str, Any]]) -> Table:
    """Of each stage the share of the time that it was at work, waited for input, and for room behind it."""
    table = Table("policy", box=None, pad_edge=False)
    names = list(results[0]["stages"])
    for name in names:
        table.add_column(name, justify="right")
    for result in results:
        shares = [
            "/".join(f"{100 * result['stages'][name][kind] / result['seconds']:.0f}" for kind in _KINDS)
            for name in names
        ]
        table.add_row(result["policy"], *shares)
    return table
