"""`a3 simulate`: queries one by one, the candidate selector cycle by cycle and the pipeline stage by stage."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.table import Table

from a3_jax.cli.configuration import read_hardware, read_workload
from a3_jax.cli.evaluation import AsJson, HardwareFile, StaticEnergy, WorkloadFile
from a3_jax.cli.files import read_array, require_places, to_csv, to_json, write_text
from a3_jax.cli.measuring import Inputs, Measured, measure, random_inputs, read_inputs
from a3_jax.cli.text import percent, result_console, si
from a3_jax.cost.closed_form import performance
from a3_jax.cost.hardware import Hardware, Pipeline
from a3_jax.cost.pipeline import run_cost, simulate
from a3_jax.cost.pipeline_trace import PipelineTrace
from a3_jax.cost.plain import hardware_to_dict
from a3_jax.cost.selector import Fill, SelectorOptions
from a3_jax.cost.workload import Workload
from bandwise_commands.errors import messages, reporting_errors


@reporting_errors
def simulate_command(
    hardware: HardwareFile = None,
    key: Annotated[Path | None, typer.Option(help="Keys, a .npy file n x d; integers are fixed point.")] = None,
    query: Annotated[Path | None, typer.Option(help="Queries on them, a .npy file queries x d.")] = None,
    random: Annotated[int | None, typer.Option(help="So many random queries on --n random keys instead.")] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="Rows, of random keys or of --counts.", show_default="320")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random numbers.")] = 0,
    m: Annotated[
        str | None, typer.Option("--M", help="Iterations: a number, or a fraction such as n/2.", show_default="n/2")
    ] = None,
    t: Annotated[
        float, typer.Option("--T", help="Post-scoring drops rows below so many per cent of the largest weight.")
    ] = 5.0,
    scale: Annotated[float, typer.Option(help="Multiplies queries, 1/sqrt(d) in a transformer.")] = 1.0,
    counts: Annotated[
        Path | None, typer.Option(help="M, C and K of every query instead, a .npy file queries x 3.")
    ] = None,
    workload: WorkloadFile = None,
    pipeline: Annotated[Literal["base", "approximate"], typer.Option(help="Which one.")] = "approximate",
    fill: Annotated[
        Fill, typer.Option(help="Who fills the selector's queues: other modules' multipliers, or its own two.")
    ] = "shared",
    static_energy: StaticEnergy = False,
    as_json: AsJson = False,
    csv: Annotated[Path | None, typer.Option(help="Write a line for every query.")] = None,
    pops: Annotated[Path | None, typer.Option(help="Write a CSV line for everything the selector pops.")] = None,
) -> None:
    """Run queries through the accelerator: real ones (--key, --query), random ones, or known M, C and K."""
    accelerator = read_hardware(hardware)
    require_places([csv, pops])
    given = {"--key": key, "--random": random, "--counts": counts, "--workload": workload}
    chosen = _only_one(given)
    if (query is None) != (key is None):
        raise ValueError("give --key and --query, both or neither")
    measured = None
    if chosen in ("--key", "--random"):
        inputs = _inputs(key, query, random, n, accelerator, seed, scale)
        measured = _measured(inputs, accelerator, m, t, fill)
        work = measured.workload()
    elif pops is not None or m is not None:
        raise ValueError("--pops and --M need queries and keys: --key and --query, or --random")
    elif counts is not None:
        work = _counted(counts, n, accelerator)
    else:
        work = read_workload(workload, {"n": n}, accelerator)
    trace = simulate(accelerator, work, pipeline=pipeline)
    report = _report(accelerator, work, trace, measured, pipeline, static_energy)
    if csv is not None:
        write_text(csv, to_csv(_query_rows(work, trace, measured)))
    if pops is not None and measured is not None:
        write_text(pops, to_csv(_pop_rows(measured)))
    if as_json:
        sys.stdout.write(to_json(report))
    else:
        _print(report)
    for file in (csv, pops):
        if file is not None:
            messages.print(f"wrote {file}", markup=False)


def iterations_of(text: str, n: int, d: int) -> int:
    """M of `160`, or of `n/2` and `3n/4` as the paper writes it; ValueError unless it is from 1 to n d."""
    value = count_of(text, n)
    if value != int(value) and "n" not in text:
        raise ValueError(f"M should be a whole number, got {text}")
    if not 1 <= value <= n * d:
        raise ValueError(f"M should be at least 1 and at most n d = {n * d}, got {text}")
    return int(np.ceil(value))


def count_of(text: str, n: int | float) -> float:
    """The number of `160`, `n`, `n/2`, `3n/4`; ValueError for another text."""
    plain = text.strip()
    try:
        if "n" not in plain or plain.lower() in ("nan", "inf"):
            value = float(plain)
        else:
            factor, _, divisor = plain.partition("/")
            value = float(factor.removesuffix("n") or 1) * n / float(divisor or 1)
            if not factor.endswith("n"):
                raise ValueError
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"a count is a number, or a fraction such as n/2 or 3n/4, got {text!r}") from None
    if not 0 <= value < np.inf:
        raise ValueError(f"a count should be at least 0 and finite, got {text!r}")
    return value


def _only_one(given: Mapping[str, object]) -> str:
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        wanted = "--key and --query, --random, --counts or --workload"
        raise ValueError(f"give one of {wanted}, got {' and '.join(names) or 'none'}")
    return names[0]


def _inputs(
    key: Path | None, query: Path | None, random: int | None, n: int | None, hardware: Hardware, seed: int, scale: float
) -> Inputs:
    if key is not None and query is not None:
        if n is not None:
            raise ValueError("--n is for random keys: a file says itself how many rows it has")
        inputs = read_inputs(key, query, scale=scale)
        if inputs.key.shape[1] > hardware.d:
            raise ValueError(f"{key} has {inputs.key.shape[1]} columns and the hardware d = {hardware.d}")
        return inputs
    assert random is not None
    return random_inputs(random, 320 if n is None else n, hardware.d, seed)


def _measured(inputs: Inputs, hardware: Hardware, m: str | None, threshold: float, fill: Fill) -> Measured:
    n, d = inputs.key.shape
    unit = 1.0 if inputs.key.dtype.kind == "f" else 4.0**-hardware.fraction_bits
    return measure(
        inputs,
        num_iterations=iterations_of(m or "n/2", n, d),
        threshold_percent=threshold,
        options=SelectorOptions.of(hardware, fill=fill),
        unit=unit,
    )


def _counted(file: Path, n: int | None, hardware: Hardware) -> Workload:
    """Rows of M, C, K."""
    array = read_array(file, ndim=2)
    if array.shape[1] != 3:
        raise ValueError(f"{file} should have a row M, C, K for every query, got shape {list(array.shape)}")
    flags = {"n": 320 if n is None else n} | {name: array[:, i].tolist() for i, name in enumerate(("M", "C", "K"))}
    return read_workload(None, flags | {"origin": "measured"}, hardware)


def _report(
    hardware: Hardware,
    work: Workload,
    trace: PipelineTrace,
    measured: Measured | None,
    pipeline: Pipeline,
    static_energy: bool,
) -> dict[str, Any]:
    """What `--json` prints."""
    cost = run_cost(hardware, work, trace, pipeline=pipeline, static_energy=static_energy)
    busy = {name: cycles["busy"] for name, cycles in trace.to_dict()["stage_cycles"].items()}
    time = trace.total_cycles * hardware.units
    known = [name for name in ("n", "M", "C", "K") if getattr(work, name) is not None]
    report: dict[str, Any] = {
        "hardware": hardware_to_dict(hardware),
        "pipeline": pipeline,
        "origin": work.origin,
        "mean": {name: float(work.counts(name).mean()) for name in known},  # pyright: ignore[reportArgumentType]
        "run": trace.to_dict(),
        "utilisation": {
            name: cycles / (time * servers) for (name, cycles), servers in zip(busy.items(), trace.servers, strict=True)
        },
        "closed_form": {"interval": performance(hardware, work, pipeline=pipeline).interval},
        "cost": cost.to_dict(),
    }
    return report | ({"selector": _selector_report(measured)} if measured is not None else {})


def _selector_report(measured: Measured) -> dict[str, Any]:
    trace = measured.trace
    return {
        "iterations": int(trace.iterations.sum()),
        "fill_cycles": int(trace.fill_cycles.sum()),
        "borrowed_cycles": int(trace.borrowed_cycles.sum()),
        "stall_cycles": {
            "max": int(trace.stalls[:, 0].sum()),
            "min": int(trace.stalls[:, 1].sum()),
            "of_a_query_at_most": int(trace.stall_cycles.max()),
        },
        "skipped_minima": int(trace.iterations.sum() - (trace.popped_rows[:, 1] >= 0).sum()),
        "scan_cycles": int(trace.scan_cycles.sum()),
        "total_cycles": int(trace.total_cycles.sum()),
        "queries_without_candidate": int((~trace.candidates.any(1)).sum()),
        "softmax_mass_kept": float(measured.mass.mean()),
    }


def _query_rows(work: Workload, trace: PipelineTrace, measured: Measured | None) -> list[dict[str, Any]]:
    shape = (work.num_queries,)
    columns: dict[str, Any] = {"query": np.arange(work.num_queries), "unit": trace.unit}
    for name in ("n", "M", "C", "K"):
        if getattr(work, name) is not None:
            columns[name] = np.broadcast_to(work.counts(name), shape)
    if measured is not None:
        found = measured.trace
        columns |= {
            "M": found.iterations,
            "stall_cycles": found.stall_cycles,
            "scan_cycles": found.scan_cycles,
            "softmax_mass_kept": measured.mass,
        }
    for stage, name in enumerate(trace.stages):
        columns |= {f"{name}_start": trace.start[:, stage], f"{name}_finish": trace.finish[:, stage]}
    plain = {name: np.asarray(column).tolist() for name, column in columns.items()}
    return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]


def _pop_rows(measured: Measured) -> list[dict[str, Any]]:
    """In the order of time; a minimum that was skipped is not there."""
    trace, rows = measured.trace, []
    for query, iterations in enumerate(trace.iterations.tolist()):
        for iteration in range(iterations):
            for side, name in enumerate(("max", "min")):
                if (row := int(trace.popped_rows[query, side, iteration])) >= 0:
                    rows.append(
                        {
                            "query": query,
                            "cycle": int(trace.pop_cycles[query, iteration]),
                            "iteration": iteration,
                            "side": name,
                            "column": int(trace.popped_columns[query, side, iteration]),
                            "row": row,
                            "product": trace.popped_values[query, side, iteration].item(),
                            "stall_cycles": int(trace.stalls[query, side, iteration]),
                        }
                    )
    return rows


def _print(report: dict[str, Any]) -> None:
    console = result_console()
    run, cost = report["run"], report["cost"]
    counts = ", ".join(f"{name} = {value:.4g}" for name, value in report["mean"].items())
    console.print(f"{run['queries']:,} queries, mean {counts} ({report['origin']})", markup=False)
    console.print(
        f"{run['total_cycles']:,.0f} cycles, {run['total_cycles'] / run['queries']:.1f} a query "
        f"(closed form {report['closed_form']['interval']:.1f}); latency {run['mean_latency_cycles']:.1f}, "
        f"at most {run['max_latency_cycles']:.0f}; {si(cost['seconds'], 's')}, {si(cost['total_energy_joules'], 'J')}",
        markup=False,
    )
    table = Table("stage", "utilisation", *next(iter(run["stage_cycles"].values())), box=None, pad_edge=False)
    for name, cycles in run["stage_cycles"].items():
        table.add_row(name, percent(report["utilisation"][name]), *(f"{value:,.0f}" for value in cycles.values()))
    console.print(table)
    if selector := report.get("selector"):
        stalls = selector["stall_cycles"]
        console.print(
            f"selector: {selector['iterations']:,} iterations, {selector['skipped_minima']:,} without a minimum; stalls "
            f"{stalls['max'] + stalls['min']:,} cycles (max side {stalls['max']:,}, min side {stalls['min']:,}); "
            f"{selector['borrowed_cycles']:,} cycles with the multipliers of other modules; "
            f"{percent(selector['softmax_mass_kept'])} of the softmax kept",
            markup=False,
        )
    if cost["estimated"]:
        console.print(f"estimates, not the paper's: {', '.join(cost['estimated'])}", markup=False)
