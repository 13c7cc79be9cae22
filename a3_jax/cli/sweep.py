"""`a3 sweep`: cost at every point of a grid of workloads and accelerators, and which points no other one beats."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from a3_jax.cli.candidate_counts import Counts, GivenCounts, MeasuredCounts, PaperCounts
from a3_jax.cli.configuration import read_hardware, read_workload, require_iterations
from a3_jax.cli.evaluation import AsJson, HardwareFile, StaticEnergy, WorkloadFile
from a3_jax.cli.files import require_place, to_csv, to_json, write_text
from a3_jax.cli.grid import WORKLOAD_NAMES, changed_hardware, parse_axes, points_of
from a3_jax.cli.measuring import read_inputs
from a3_jax.cli.pareto import pareto_front
from a3_jax.cli.plots import draw_sweep, require_plot
from a3_jax.cli.simulation import count_of
from a3_jax.cli.text import result_console
from a3_jax.cost.closed_form import performance
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.published import Task
from a3_jax.cost.reproduction import compared
from bandwise_commands.errors import messages, reporting_errors

# Objective -> the column, and whether more is better.
OBJECTIVES = {
    "throughput": ("throughput", True),
    "latency": ("latency_cycles", False),
    "energy": ("energy_joules", False),
    "area": ("area_m2", False),
    "mass": ("softmax_mass_kept", True),
    "quality": ("quality", True),
}


@reporting_errors
def sweep(
    over: Annotated[
        list[str],
        typer.Option(
            help="M=20:320:20 (first:last:step), M=n/2,n/8, T=5,10, units=1,2,4, clock_ghz=0.5,1 ...; repeat for a grid.",
            show_default=False,
        ),
    ],
    hardware: HardwareFile = None,
    task: Annotated[
        Task | None, typer.Option(help="C and K by M and T from the paper's figures 11 and 12 for this task.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="C and K measured: keys, a .npy file n x d ...")] = None,
    query: Annotated[Path | None, typer.Option(help="... and queries, a .npy file queries x d.")] = None,
    scale: Annotated[float, typer.Option(help="Multiplies queries, 1/sqrt(d) in a transformer.")] = 1.0,
    workload: WorkloadFile = None,
    n: Annotated[float | None, typer.Option("--n", help="Rows of the key.")] = None,
    m: Annotated[
        str | None, typer.Option("--M", help="Where M is not swept.", show_default="n/2, or what --workload has")
    ] = None,
    t: Annotated[float, typer.Option("--T", help="Where T is not swept; per cent.")] = 5.0,
    c: Annotated[float | None, typer.Option("--C", help="Candidates, the same at every point.")] = None,
    k: Annotated[float | None, typer.Option("--K", help="Kept rows, the same at every point.")] = None,
    static_energy: StaticEnergy = False,
    pareto: Annotated[bool, typer.Option("--pareto", help="Show only points that no other one beats.")] = False,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What --pareto looks at: {', '.join(OBJECTIVES)}; repeat for several. The softmax's mass is measured on queries and "
            "keys, quality is the task's in the paper, its losses by M and T added.",
            show_default="throughput, energy, area, and mass or quality where there is one",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write all points to this .csv or .json file.")] = None,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="Draw into this .png or .svg file.")] = None,
) -> None:
    """Compare accelerators and settings. M decides C, and T decides K: say with --task or --key and --query how, or give C and K."""
    axes = parse_axes(over)
    accelerator = read_hardware(hardware)
    if out is not None:
        if out.suffix.lower() not in (".csv", ".json"):
            raise ValueError(f"--out is a .csv or .json file, got {out}")
        require_place(out)
    if plot is not None:
        require_plot(plot)
    if (key is None) != (query is None):
        raise ValueError("give --key and --query, both or neither")
    swept = {axis.name for axis in axes}
    flags = {"n": n, "C": c, "K": k}
    explicit = swept | {name for name, value in (("n", n), ("M", m)) if value is not None}
    counts = _counts(task, key, query, scale, workload, flags, explicit, accelerator)
    fixed = {"n": f"{counts.rows if n is None else n:.17g}", "M": m or "n/2", "T": f"{t:.17g}"}
    rows = [_row(accelerator, fixed, point, counts, static_energy) for point in points_of(axes)]
    objectives = _objectives(objective, rows)
    if pareto:
        front = pareto_front([[_coordinate(row, name) for name in objectives] for row in rows])
        for row, is_on_front in zip(rows, front.tolist(), strict=True):
            row["pareto"] = is_on_front
    report = {"over": [axis.name for axis in axes], "objectives": objectives if pareto else None, "points": rows}
    if plot is not None:
        draw_sweep(report, plot)
    if out is not None:
        write_text(out, to_csv([_flat(row) for row in rows]) if out.suffix.lower() == ".csv" else to_json(report))
    if as_json:
        sys.stdout.write(to_json(report))
    else:
        _print(report)
    for file in (out, plot):
        if file is not None:
            messages.print(f"wrote {file}", markup=False)


def _counts(
    task: Task | None,
    key: Path | None,
    query: Path | None,
    scale: float,
    workload: Path | None,
    flags: Mapping[str, float | None],
    explicit: set[str],
    hardware: Hardware,
) -> Counts:
    given = {
        "--task": task is not None,
        "--key and --query": key is not None,
        "C and K": workload is not None or any(flags[name] is not None or name in explicit for name in ("C", "K")),
    }
    if sum(given.values()) != 1:
        named = [name for name, is_given in given.items() if is_given]
        raise ValueError(
            "C and K depend on M and T: give one of --task, --key with --query, or C and K (--C, --K, --workload), "
            f"got {' and '.join(named) or 'none'}"
        )
    if task is not None:
        return PaperCounts(task)
    if key is not None and query is not None:
        return MeasuredCounts(read_inputs(key, query, scale=scale))
    base = {"n": flags["n"] or (None if workload else float(hardware.n)), "C": flags["C"], "K": flags["K"]}
    work = read_workload(workload, base, hardware)
    if missing := [name for name in ("C", "K") if getattr(work, name) is None and name not in explicit]:
        raise ValueError(f"{missing[0]} is missing: give it with --{missing[0]}, --workload or --over")
    return GivenCounts(work, explicit)


def _row(
    hardware: Hardware, fixed: Mapping[str, str], point: Mapping[str, str], counts: Counts, static_energy: bool
) -> dict[str, Any]:
    """A line of the result."""
    changes = {name: text for name, text in point.items() if name not in WORKLOAD_NAMES}
    hardware = changed_hardware(hardware, changes)
    texts = {**fixed, **point}
    n = count_of(texts["n"], 1.0)
    more = {name: count_of(point[name], n) for name in ("C", "K") if name in point}
    counted = counts.at(hardware, n=n, m=count_of(texts["M"], n), t=count_of(texts["T"], 1.0), **more)
    workload = counted.workload
    require_iterations(workload, hardware)
    found = performance(hardware, workload, pipeline="approximate", static_energy=static_energy)
    means = {name: float(workload.counts(name).mean()) for name in ("n", "M", "C", "K")}  # pyright: ignore[reportArgumentType]
    plain = {name: _number(text) for name, text in changes.items()}
    return {
        **plain,
        **means,
        "T": count_of(texts["T"], 1.0),
        "interval_cycles": found.interval,
        "latency_cycles": found.latency,
        "throughput": found.throughput,
        "energy_joules": found.cost.total_energy,
        "area_m2": found.cost.area,
        "bottleneck": found.bottleneck,
        **compared(hardware, workload, static_energy=static_energy),
        "softmax_mass_kept": counted.mass,
        "quality": counted.quality,
        "estimated": sorted(found.cost.estimated),
        "source": counted.source,
    }


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _coordinate(row: Mapping[str, Any], objective: str) -> float:
    """The smaller the better; what is not known counts as the worst."""
    column, more_is_better = OBJECTIVES[objective]
    value = row[column]
    return math.inf if value is None else -value if more_is_better else value


def _objectives(given: list[str] | None, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [name for name, (column, _) in OBJECTIVES.items() if any(row[column] is not None for row in rows)]
    if given is None:
        return [name for name in known if name != "latency"]
    if unknown := set(given) - set(OBJECTIVES):
        raise ValueError(f"an objective is one of {', '.join(OBJECTIVES)}, got {min(unknown)!r}")
    if "mass" in given and "mass" not in known:
        raise ValueError("the softmax's mass is known where queries and keys are given: --key and --query")
    if "quality" in given and "quality" not in known:
        raise ValueError("quality is known with --task, for M of at least n/8")
    return list(dict.fromkeys(given))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "estimated": " ".join(row["estimated"])}


def _print(report: Mapping[str, Any]) -> None:
    console = result_console()
    rows = [row for row in report["points"] if row.get("pareto", True)]
    own = [name for name in report["over"] if name not in ("n", "M", "C", "K", "T")]
    columns = [
        *own,
        "n",
        "M",
        "T",
        "C",
        "K",
        "interval",
        "nJ a query",
        "mm2",
        "vs base: throughput",
        "energy",
        "bottleneck",
    ]
    merits = [name for name in ("softmax_mass_kept", "quality") if any(row[name] is not None for row in rows)]
    table = Table(*columns, *(name.replace("_", " ") for name in merits), box=None, pad_edge=False)
    for row in rows:
        counts = [f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in own]
        table.add_row(
            *counts,
            *(f"{row[name]:.5g}" for name in ("n", "M", "T", "C", "K", "interval_cycles")),
            f"{row['energy_joules'] * 1e9:.4g}",
            f"{row['area_m2'] * 1e6:.4g}",
            f"{row['throughput_vs_base']:.3f}",
            f"{row['energy_efficiency_vs_base']:.3f}",
            row["bottleneck"],
            *("" if row[name] is None else f"{row[name]:.4f}" for name in merits),
        )
    console.print(table)
    if report["objectives"]:
        of = f"{len(rows)} of {len(report['points'])} points"
        console.print(f"{of} that no other one beats in {', '.join(report['objectives'])}", markup=False)
    console.print(f"C and K: {'; '.join(dict.fromkeys(row['source'] for row in rows))}", markup=False)
    if estimated := sorted({name for row in rows for name in row["estimated"]}):
        console.print(f"estimates, not the paper's, at some points: {', '.join(estimated)}", markup=False)
