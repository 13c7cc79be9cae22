"""`a3 cost`: cycles, energy and area of one workload on one accelerator, by formula."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from a3_jax.cli.configuration import finds_too_many, hardware_text, read_hardware, read_workload
from a3_jax.cli.files import to_json
from a3_jax.cli.text import percent, result_console, si
from a3_jax.cost.closed_form import Performance, performance
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.plain import hardware_to_dict, workload_to_dict
from a3_jax.cost.reproduction import compared, peak_power
from a3_jax.cost.workload import Workload
from bandwise_commands.errors import messages, reporting_errors

HardwareFile = Annotated[
    Path | None, typer.Option("--hardware", help="YAML or JSON: an accelerator.", show_default="the paper's")
]
WorkloadFile = Annotated[
    Path | None, typer.Option("--workload", help="YAML or JSON: n, M, C, K, numbers or lists of one a query.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
StaticEnergy = Annotated[
    bool, typer.Option("--static-energy", help="Add what leaks meanwhile, which the paper leaves out.")
]


@reporting_errors
def cost(
    hardware: HardwareFile = None,
    workload: WorkloadFile = None,
    n: Annotated[float | None, typer.Option("--n", help="Rows of the key; means may be fractions.")] = None,
    m: Annotated[float | None, typer.Option("--M", help="Iterations of candidate selection.")] = None,
    c: Annotated[float | None, typer.Option("--C", help="Candidates.")] = None,
    k: Annotated[float | None, typer.Option("--K", help="Rows kept by post-scoring.")] = None,
    queries_per_key: Annotated[
        float | None,
        typer.Option(help="Queries that share a sort.", show_default="sorted ahead of time"),
    ] = None,
    static_energy: StaticEnergy = False,
    as_json: AsJson = False,
    print_hardware: Annotated[
        bool, typer.Option("--print-hardware", help="Print the accelerator as a file to edit, and nothing else.")
    ] = False,
) -> None:
    """Say what a workload costs, with the base pipeline and, given M, C and K, with the approximate one."""
    accelerator = read_hardware(hardware)
    if print_hardware:
        sys.stdout.write(hardware_text(accelerator))
        return
    flags = {"n": n, "M": m, "C": c, "K": k, "queries_per_key": queries_per_key}
    work = read_workload(workload, flags, accelerator)
    report = cost_report(accelerator, work, static_energy=static_energy)
    if finds_too_many(work):
        messages.print("note: C is above M, and an iteration finds at most one candidate", markup=False)
    if as_json:
        sys.stdout.write(to_json(report))
    else:
        _print(report)


def cost_report(hardware: Hardware, workload: Workload, *, static_energy: bool = False) -> dict[str, Any]:
    """What `--json` prints."""
    if (missing := [name for name in ("M", "C", "K") if getattr(workload, name) is None]) and len(missing) < 3:
        raise ValueError(f"the approximate pipeline needs M, C and K, and the base one none: {missing[0]} is missing")
    base = performance(hardware, workload, pipeline="base", static_energy=static_energy)
    report: dict[str, Any] = {
        "hardware": hardware_to_dict(hardware),
        "workload": workload_to_dict(workload),
        "base": _described(hardware, base),
    }
    if not missing:
        approximate = performance(hardware, workload, pipeline="approximate", static_energy=static_energy)
        report["approximate"] = _described(hardware, approximate)
        report["vs_base"] = compared(hardware, workload, static_energy=static_energy)
        if workload.queries_per_key is None and np.ndim(workload.n) == 0:
            sorting = dataclasses.replace(workload, queries_per_key=float(workload.n))
            report["vs_base_with_sorting"] = compared(hardware, sorting, static_energy=static_energy)
    return report


def _described(hardware: Hardware, found: Performance) -> dict[str, Any]:
    dynamic, static = peak_power(hardware, pipeline=found.pipeline)
    return found.to_dict() | {"peak_dynamic_power_watts": dynamic, "static_power_watts": static}


def _print(report: dict[str, Any]) -> None:
    console = result_console()
    pipelines = [name for name in ("base", "approximate") if name in report]
    table = Table("a query", *pipelines, box=None, pad_edge=False)
    for label, value in _lines():
        table.add_row(label, *(value(report[name]) for name in pipelines))
    modules = dict.fromkeys(module for name in reversed(pipelines) for module in report[name]["cost"]["energy_joules"])
    for module in modules:
        energies = [report[name]["cost"]["energy_joules"].get(module) for name in pipelines]
        table.add_row(f"  {module}", *("" if joules is None else si(joules, "J") for joules in energies))
    console.print(table)
    for metric, value in report.get("vs_base", {}).items():
        with_sorting = report.get("vs_base_with_sorting", {}).get(metric, value)
        note = f"; with a sort of the key for every n queries {with_sorting:.4g}" if with_sorting != value else ""
        console.print(f"{metric.replace('_', ' ')}: {value:.4g}{note}", markup=False)
    estimated = sorted({name for pipeline in pipelines for name in report[pipeline]["cost"]["estimated"]})
    if estimated:
        console.print(f"estimates, not the paper's: {', '.join(estimated)}", markup=False)


def _lines() -> list[tuple[str, Any]]:
    return [
        ("interval, cycles", lambda found: f"{found['interval']:.6g}"),
        ("latency, cycles", lambda found: f"{found['latency']:.6g}"),
        ("queries a second", lambda found: si(found["throughput"], "").strip()),
        ("bottleneck", lambda found: _busiest(found)),
        ("area", lambda found: f"{found['cost']['area_m2'] * 1e6:.4g} mm2"),
        ("energy", lambda found: si(found["cost"]["total_energy_joules"], "J")),
    ]


def _busiest(found: dict[str, Any]) -> str:
    used = max(found["utilisation"].values())
    return f"{found['bottleneck']}, busiest module {percent(used)}"
