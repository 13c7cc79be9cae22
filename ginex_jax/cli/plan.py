"""`ginex plan`: how many rows an epoch would read, by cache size and policy."""

import dataclasses
import importlib.util
import json
import math
import sys
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
from ginex_jax.graph import Graph
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.store.dataset import Dataset

_POLICIES = ("belady", "lru", "static")


@reporting_errors
def plan(
    dataset: Annotated[Path, typer.Argument(help="A dataset with features and training nodes.", show_default=False)],
    cache: Annotated[list[str], typer.Option(help="Size of the feature cache: 512MiB, 4GB ...; repeat to compare.")],
    fanouts: Annotated[
        str, typer.Option(help="Neighbours a node, hop by hop from the seeds; all takes all.")
    ] = "10,10,10",
    batch_size: Annotated[int, typer.Option(help="Seeds a mini-batch.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of sampling; the run with the same seed has these mini-batches.")] = 0,
    epoch: Annotated[int, typer.Option(help="The epoch to sample.")] = 0,
    batches: Annotated[
        int | None, typer.Option(help="Sample only so many mini-batches, and scale up.", show_default="all")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Mini-batches that Belady's policy sees ahead.", show_default="the whole epoch"),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="belady, lru or static: what stays in the cache; repeat to compare.", show_default="all three"
        ),
    ] = None,
    disk_rate: Annotated[
        float | None, typer.Option(help="Rows a second that the disk gives.", show_default="measured")
    ] = None,
    memory: Annotated[
        str, typer.Option(help="Most memory for neighbour lists; the others are read from disk.")
    ] = "2GiB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw misses against cache size into this PNG, SVG or PDF file.")
    ] = None,
) -> None:
    """Say what a feature cache would save: misses, bytes and seconds an epoch. Reads no feature."""
    config = SamplerConfig(fanouts=parse_fanouts(fanouts), batch_size=batch_size, seed=seed)
    for name, value in (("--batches", batches), ("--window", window), ("--disk-rate", disk_rate)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} should be more than 0 and finite, got {value}")
    if not 0 <= epoch < 2**63:
        raise ValueError(f"--epoch should be in [0, 2**63), got {epoch}")
    policies = tuple(dict.fromkeys(policy or _POLICIES))
    if unknown := set(policies) - set(_POLICIES):
        raise ValueError(f"a policy is one of {', '.join(_POLICIES)}, got {min(unknown)!r}")
    sizes, memory_bytes = [parse_bytes(size) for size in cache], parse_bytes(memory)
    if plot is not None:
        _require_plot(plot)
    with progress_reports(messages) as progress:
        report = _report(
            dataset,
            config,
            _Question(sizes, policies, epoch, batches, window, disk_rate, memory_bytes),
            progress,
        )
    if plot is not None:
        _draw(report, plot)
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        _print(report)


@dataclasses.dataclass(frozen=True)
class _Question:
    cache_bytes: list[int]
    policies: tuple[str, ...]
    epoch: int
    batches: int | None
    window: int | None
    disk_rate: float | None
    memory_bytes: int


def _report(path: Path, config: SamplerConfig, question: _Question, progress: Report) -> dict[str, Any]:
    """What `--json` prints."""
    from ginex_jax.store.dataset import open_dataset

    dataset = open_dataset(path)
    if "features" not in dataset.manifest.arrays:
        raise ValueError(f"{path} has no features, so that there is nothing to cache")
    nodes = dataset.train
    if nodes is None or len(nodes) == 0:
        raise ValueError(f"{path} has no training nodes: ingest it with --train")
    row_bytes = dataset.manifest.arrays["features"].layout.stride
    for size in question.cache_bytes:
        if size < row_bytes:
            raise ValueError(f"a cache of {size:,} bytes holds no row: a row of {path} takes {row_bytes:,}")
    num_batches = -(-len(nodes) // config.batch_size)
    num_sampled = min(num_batches, question.batches or num_batches)
    wanted = "static" in question.policies
    uses = count_uses(dataset, memory_bytes=question.memory_bytes, wanted=wanted, progress=progress)
    graph = graph_within(dataset, question.memory_bytes, uses)
    trace = _trace(graph, nodes, config, question.epoch, num_sampled, progress)
    accesses = sum(len(ids) for ids in trace)
    rate, measured_on = _disk_rate(dataset, question.disk_rate, row_bytes)
    results = [
        {
            "cache_bytes": size,
            "cache_rows": min(size // row_bytes, dataset.num_nodes),
            "policy": policy,
            "misses": misses,
            "hit_rate": 1 - misses / accesses,
            "bytes": misses * row_bytes,
            "seconds_per_epoch": misses * num_batches / num_sampled / rate,
        }
        for size, policy, misses in _simulated(trace, dataset.num_nodes, row_bytes, uses, question, progress)
    ]
    return {
        "path": str(path),
        "fanouts": ["all" if fanout is None else fanout for fanout in config.fanouts],
        "batch_size": config.batch_size,
        "seed": config.seed,
        "epoch": question.epoch,
        "batches_per_epoch": num_batches,
        "batches": num_sampled,
        "window": question.window,
        "rows": accesses,
        "row_bytes": row_bytes,
        "rows_per_second": rate,
        "rate_measured_on": measured_on,
        "results": results,
    }


def _trace(
    graph: Graph, nodes: np.ndarray, config: SamplerConfig, epoch: int, num_batches: int, progress: Report
) -> list[np.ndarray]:
    from ginex_jax.belady.planning import MAX_NODES
    from ginex_jax.sampling.samplers import sampled

    id_type, trace = np.int32 if graph.num_nodes <= MAX_NODES else np.int64, []
    for index in range(num_batches):
        progress("sampling", index, num_batches)
        trace.append(sampled(graph, nodes, config, epoch, index).node_ids.astype(id_type))
    progress("sampling", num_batches, num_batches)
    return trace


def _simulated(
    trace: list[np.ndarray],
    num_nodes: int,
    row_bytes: int,
    uses: np.ndarray | None,
    question: _Question,
    progress: Report,
) -> list[tuple[int, str, int]]:
    """Size, policy and misses."""
    from ginex_jax.belady.simulation import simulate
    from ginex_jax.store.uses import most_used

    cases = [(size, policy) for size in question.cache_bytes for policy in question.policies]
    results = []
    for done, (size, policy) in enumerate(cases):
        progress("planning", done, len(cases))
        capacity = min(size // row_bytes, num_nodes)
        misses = simulate(
            trace,
            capacity=capacity,
            policy=policy,  # pyright: ignore[reportArgumentType]
            num_nodes=num_nodes,
            hot_ids=most_used(uses, capacity) if policy == "static" and uses is not None else None,
            window=question.window if policy == "belady" else None,
        )
        results.append((size, policy, int(misses.sum())))
    progress("planning", len(cases), len(cases))
    return results


def _disk_rate(dataset: Dataset, given: float | None, row_bytes: int) -> tuple[float, str]:
    """Rows a second, and where they were measured."""
    if given is not None:
        return given, "given"
    from ginex_jax.store.disk_rate import measure_disk_rate
    from ginex_jax.store.shards import open_sharded

    rate, note = measure_disk_rate(open_sharded(dataset.path / "indices"), row_bytes=row_bytes)
    return rate, f"random reads of {row_bytes} bytes of {dataset.path / 'indices'}" + (f"; {note}" if note else "")


def _print(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    batches, whole = report["batches"], report["batches_per_epoch"]
    part = "" if batches == whole else f"; seconds are for all {whole:,}"
    console.print(
        f"{batches:,} mini-batches, {report['rows']:,} rows of {report['row_bytes']:,} bytes{part}", markup=False
    )
    columns = ("policy", "misses", "hit rate", "MB read", "s an epoch")
    table = Table("cache", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "policy" else "right")
    for result in report["results"]:
        table.add_row(
            f"{result['cache_bytes'] / 1e6:,.1f} MB, {result['cache_rows']:,} rows",
            _title(report, result["policy"]),
            f"{result['misses']:,}",
            f"{100 * result['hit_rate']:.1f} %",
            f"{result['bytes'] / 1e6:,.1f}",
            f"{result['seconds_per_epoch']:,.1f}",
        )
    console.print(table)
    console.print(
        f"disk: {report['rows_per_second']:,.0f} rows/s ({report['rate_measured_on']})", markup=False, soft_wrap=True
    )


def _title(report: dict[str, Any], policy: str) -> str:
    return f"{policy}, window {report['window']}" if policy == "belady" and report["window"] else policy


def _require_plot(file: Path) -> None:
    """Raises for what would be a pity to learn after an hour of sampling."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("no matplotlib", name="matplotlib")
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"a plot is a .png, .svg or .pdf file, got {file}")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {file.absolute().parent} for the plot")


def _draw(report: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for policy in dict.fromkeys(result["policy"] for result in report["results"]):
        points = sorted((r["cache_bytes"] / 1e9, r["misses"] / 1e6) for r in report["results"] if r["policy"] == policy)
        axes.plot(*zip(*points, strict=True), marker="o", label=_title(report, policy))
    axes.axhline(report["rows"] / 1e6, color="gray", linestyle=":", label="no cache")
    axes.set(xlabel="cache, GB", ylabel=f"rows read in {report['batches']:,} mini-batches, millions", ylim=(0, None))
    axes.set_title(Path(report["path"]).name)
    axes.legend()
    figure.savefig(file, dpi=150)
