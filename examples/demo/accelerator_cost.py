"""What the queries just measured would cost on A3, and the paper's own figures from the same model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from a3_jax import bytes_touched
from a3_jax.cli.files import to_json
from a3_jax.cli.plots import draw_reproduction
from a3_jax.cli.text import si
from a3_jax.cost.closed_form import Performance, performance
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.plain import workload_to_dict
from a3_jax.cost.reproduction import Row, compared
from a3_jax.cost.workload import Workload
from examples.demo.approximation import SETTINGS, Attended
from examples.demo.attention_map import SVG, without_metadata
from examples.demo.report import FigureBlock, TableBlock

_COUNTS: tuple[Literal["n", "M", "C", "K"], ...] = ("n", "M", "C", "K")
NUMBER_BYTES = 9 / 8  # four integer bits, four fraction bits and a sign; so many bits count 320 rows, too
FIGURES = {
    "throughput_vs_base": "Queries a second, over the base accelerator's (figure 14a).",
    "latency_vs_base": "The time of one query, the base accelerator's over ours (figure 14b).",
    "energy_efficiency_vs_base": "Queries a joule, over the base accelerator's (figure 15a); twice where K was read off two figures.",
    "energy_share": "Where the energy of a query goes, ours (the paper draws these shares in figure 15b).",
}


def write_workloads(results: Mapping[str, Attended], queries_per_key: int, folder: Path) -> dict[str, Workload]:
    """By setting: every query with the rows that it may see, and its own M, C and K. Also as files for `a3 cost --workload FILE`."""
    folder.mkdir(parents=True, exist_ok=True)
    workloads = {}
    for name, *_ in SETTINGS:
        rows, found = results["exact"].K, results[name]
        n, iterations, candidates, kept = (np.ravel(count) for count in (rows, found.M, found.C, found.K))
        workloads[name] = Workload(
            n=n, M=iterations, C=candidates, K=kept, queries_per_key=queries_per_key, origin="measured"
        )
    for name, workload in workloads.items():
        (folder / f"{name}.json").write_text(to_json(workload_to_dict(workload)), encoding="utf-8")
    return workloads


def cost_table(workloads: Mapping[str, Workload], width: int, folder: Path) -> TableBlock:
    """A column for the base accelerator and each setting; `width` is that of keys and values."""
    hardware, any_workload = Hardware(), next(iter(workloads.values()))
    columns = {"base": _column(performance(hardware, any_workload, pipeline="base"), _base_counts(any_workload), width)}
    for name, workload in workloads.items():
        found = performance(hardware, workload, pipeline="approximate")
        ratios = {_words(metric): f"{ratio:.2f}" for metric, ratio in compared(hardware, workload).items()}
        columns[name] = _column(found, workload, width) | ratios
    labels = dict.fromkeys(label for column in reversed(columns.values()) for label in column)
    rows = [[label, *(column.get(label, "") for column in columns.values())] for label in labels]
    files = ", ".join(f"`a3 cost --workload {folder / name}.json`" for name in workloads)
    return TableBlock(
        header=("a query, mean", *columns),
        rows=rows,
        look_at=(
            f"One unit of the paper's hardware (40 nm, 1 GHz, 320 rows), its cost by formula. {files} print the same numbers; so will "
            "other hardware with --hardware FILE. Bottleneck: the stage that sets the pace. Energy leaves out what leaks, as the paper "
            "does; bytes are in 9-bit numbers. Estimates do not follow from the paper: its host sorts keys of 320 "
            "rows, and the time for fewer is scaled from that."
        ),
    )


def _base_counts(workload: Workload) -> Workload:
    return Workload(n=workload.n, M=0, C=workload.n, K=workload.n)


def _column(found: Performance, workload: Workload, width: int) -> dict[str, str]:
    n, iterations, candidates, kept = (workload.counts(name) for name in _COUNTS)
    sizes = {"key_dim": width, "value_dim": width, "element_bytes": NUMBER_BYTES, "id_bytes": NUMBER_BYTES}
    read = bytes_touched(iterations, candidates, kept, **sizes)
    named = {"rows, n": n, "iterations, M": iterations, "candidates, C": candidates, "rows kept, K": kept}
    counts = {label: f"{count.mean():.1f}" for label, count in named.items()}
    return counts | {
        "cycles from query to query": f"{found.interval:.1f}",
        "of these, share of sorting": f"{found.preprocessing:.1f}",
        "cycles of latency": f"{found.latency:.1f}",
        "seconds from query to query": si(found.cost.seconds, "s"),
        "energy": si(found.cost.total_energy, "J"),
        **{f"  {_words(name)}": si(joules, "J") for name, joules in found.cost.energy.items()},
        "bytes touched": f"{np.mean(read):,.0f}",
        "bottleneck": _words(found.bottleneck),
        "estimates": ", ".join(sorted(map(_words, found.cost.estimated))) or "none",
    }


def _words(name: str) -> str:
    return name.replace("_", " ")


def reproduction_table(rows: Sequence[Row]) -> TableBlock:
    """The paper's numbers and ours, with how independent ours is."""
    scales = {"area": (1e6, " mm2"), "power": (1e3, " mW")}
    cells = []
    for row in rows:
        if row.paper is None or row.error is None:
            continue
        scale, unit = scales.get(row.metric, (1, ""))
        by_latency = row.inputs["sources"].get("K", "").startswith("the latency")
        cells.append(
            [
                row.figure,
                _words(row.workload),
                row.config,
                _words(row.metric),
                f"{row.paper * scale:.5g}{unit}",
                f"{row.ours * scale:.5g}{unit}",
                f"{100 * row.error:+.2f} %",
                row.kind + (", K by latency" if by_latency else ""),
            ]
        )
    note = next(row.inputs["note"] for row in rows if row.workload == "memn2n" and "note" in row.inputs)
    return TableBlock(
        header=("figure", "workload", "configuration", "metric", "paper", "ours", "error", "kind"),
        rows=cells,
        look_at=(
            "`a3 reproduce`: exact is the paper's own formula or table; predicted comes from numbers other than this one; calibrated has "
            f"an input that was read off the same bar. memn2n: {note}."
        ),
    )


def reproduction_figures(rows: Sequence[Row], folder: Path) -> list[FigureBlock]:
    """The files that `a3 reproduce --plots` draws, left in the folder."""
    from matplotlib import rc_context

    with rc_context(SVG):
        files = draw_reproduction(rows, folder)
    drawn = {file.stem: file for file in files if file.suffix == ".svg"}
    return [
        FigureBlock(
            svg=without_metadata(drawn[name].read_text(encoding="utf-8")),
            description=f"Bars: {_words(name)}, by workload and configuration",
            look_at=look_at,
            least_pixels=864,
        )
        for name, look_at in FIGURES.items()
    ]
