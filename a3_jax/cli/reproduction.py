"""`a3 reproduce`: the paper's figures beside ours."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from a3_jax.cli.configuration import read_hardware
from a3_jax.cli.evaluation import AsJson, HardwareFile
from a3_jax.cli.files import to_json
from a3_jax.cli.plots import draw_reproduction, require_matplotlib
from a3_jax.cli.text import result_console
from a3_jax.cost.reproduction import Row
from a3_jax.cost.reproduction import reproduce as reproduced
from bandwise_commands.errors import messages, reporting_errors


@reporting_errors
def reproduce(
    hardware: HardwareFile = None,
    as_json: AsJson = False,
    plots: Annotated[Path | None, typer.Option(help="Draw the figures into this folder, as PNG and SVG.")] = None,
) -> None:
    """Print what the paper reports and what this model says, with the error and how independent it is."""
    rows = [_with_file(row, hardware) for row in reproduced(read_hardware(hardware))]
    if plots is not None:
        require_matplotlib()
        for file in draw_reproduction(rows, plots):
            messages.print(f"wrote {file}", markup=False)
    if as_json:
        sys.stdout.write(to_json([row.to_dict() for row in rows]))
    else:
        _print(rows)


def _with_file(row: Row, hardware: Path | None) -> Row:
    """Its command prints the same number only on the same hardware."""
    if hardware is None or "command" not in row.inputs:
        return row
    command = f"{row.inputs['command']} --hardware {shlex.quote(str(hardware))}"
    return dataclasses.replace(row, inputs={**row.inputs, "command": command})


def _print(rows: Sequence[Row]) -> None:
    console = result_console()
    table = Table("figure", "workload", "config", "metric", "paper", "ours", "error", "kind", box=None, pad_edge=False)
    for row in rows:
        if row.metric.startswith("energy_share_"):
            continue
        source = row.inputs["sources"].get("K", "") if row.metric == "energy_efficiency_vs_base" else ""
        scale, unit = {"area": (1e6, " mm2"), "power": (1e3, " mW")}.get(row.metric, (1, ""))
        table.add_row(
            row.figure,
            row.workload,
            row.config,
            row.metric,
            "" if row.paper is None else f"{row.paper * scale:.5g}{unit}",
            f"{row.ours * scale:.5g}{unit}",
            "" if row.error is None else f"{100 * row.error:+.2f} %",
            row.kind + (", K by latency" if source.startswith("the latency") else ""),
        )
    console.print(table)
    _print_shares(console, rows)
    for note in dict.fromkeys(
        f"{row.workload}: {row.inputs['note']}" for row in rows if row.workload == "memn2n" and "note" in row.inputs
    ):
        console.print(note, markup=False)


def _print_shares(console: Console, rows: Sequence[Row]) -> None:
    shares = [row for row in rows if row.metric.startswith("energy_share_")]
    names = list(dict.fromkeys(row.metric for row in sorted(shares, key=lambda row: row.config == "base")))
    places = list(dict.fromkeys((row.workload, row.config) for row in shares))
    found = {(row.workload, row.config, row.metric): row.ours for row in shares}
    titles = [name.removeprefix("energy_share_").replace("_", " ") for name in names]
    table = Table("energy, %, ours", "", *titles, box=None, pad_edge=False)
    for task, config in places:
        cells = [found.get((task, config, name)) for name in names]
        table.add_row(task, config, *("" if share is None else f"{100 * share:.1f}" for share in cells))
    console.print(table)
