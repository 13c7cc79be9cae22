"""`a3 evaluate`: a task with real inputs, its accuracy under A3's approximation, and what the accelerator takes for it."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.table import Table

from a3_jax.cli.configuration import read_hardware
from a3_jax.cli.decode import print_steps, steps_report
from a3_jax.cli.evaluation import AsJson, HardwareFile
from a3_jax.cli.files import to_json
from a3_jax.cli.retrieval import ArithmeticName, print_retrieval, retrieval_report
from a3_jax.cli.simulation import count_of
from a3_jax.cli.text import result_console, si
from bandwise_commands.errors import messages, reporting_errors


@reporting_errors
def evaluate(
    workload: Annotated[
        Literal["babi", "retrieval", "decode"],
        typer.Option(
            help="babi: a memory network answers questions about stories. retrieval: MiniLM finds passages of speeches. "
            "decode: queries, keys and values of a language model's last positions, from a file."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="babi: folder with qa1_train.txt and so on. retrieval: folder of MiniLM and speeches. decode: an .npz file "
            "with queries, keys and values, or a folder of them, as `python -m examples.a3_in_anyprec --save-arrays` writes.",
            show_default="made-up stories; .cache/data; none",
        ),
    ] = None,
    m: Annotated[
        str | None,
        typer.Option(
            "--M", help="Iterations: a number, or a fraction such as n/2.", show_default="the paper's settings"
        ),
    ] = None,
    t: Annotated[
        float | None, typer.Option("--T", help="Post-scoring drops rows below so many per cent of the largest weight.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="babi: of training, and of made-up stories. retrieval: of the choice of speeches.", show_default="0"
        ),
    ] = None,
    parameters: Annotated[
        Path | None, typer.Option(help="babi: an .npz file to keep the trained network in; used if it is there.")
    ] = None,
    linear_epochs: Annotated[
        int | None, typer.Option(help="babi: epochs of training without softmax.", show_default="30")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="babi: epochs of training after these.", show_default="60")] = None,
    passages: Annotated[
        int | None, typer.Option(help="retrieval: how many, and as many sentences.", show_default="200")
    ] = None,
    arithmetic: Annotated[
        ArithmeticName | None,
        typer.Option(
            help="retrieval: float32; inputs rounded to i = 4 and f bits, then float32; or A3's integers.",
            show_default="float",
        ),
    ] = None,
    f: Annotated[int | None, typer.Option("--f", help="retrieval: fraction bits.", show_default="4")] = None,
    sinks: Annotated[
        list[int] | None,
        typer.Option(help="decode: so many first rows are attended to exactly; may be repeated.", show_default="0, 1"),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="decode: so many last rows are attended to exactly.", show_default="0"),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="decode: rows with the largest weights to look for.", show_default="5")
    ] = None,
    hardware: HardwareFile = None,
    as_json: AsJson = False,
) -> None:
    """Do a task with exact attention and with A3's, and count what that takes; for babi train (or load) a network first.

    For decode the task is the attention alone. A language model goes on with A3's errors in `python -m examples.a3_in_anyprec`.
    """
    of_babi = {"--parameters": parameters, "--linear-epochs": linear_epochs, "--epochs": epochs}
    of_retrieval = {"--passages": passages, "--arithmetic": arithmetic, "--f": f}
    of_decode = {"--sinks": sinks or None, "--window": window, "--top": top}
    if workload == "decode":
        _refuse(workload, of_babi | of_retrieval | {"--seed": seed})
        found = steps_report(
            data,
            iterations=share_of(m),
            threshold_percent=t,
            sinks=sinks or None,
            window=0 if window is None else window,
            top=5 if top is None else top,
            hardware=read_hardware(hardware),
        )
        if as_json:
            sys.stdout.write(to_json(found))
        else:
            print_steps(found)
        return
    _refuse(workload, of_decode)
    seed = 0 if seed is None else seed
    if workload == "retrieval":
        _refuse(workload, of_babi)
        found = retrieval_report(
            Path(".cache/data") if data is None else data,
            iterations=share_of(m),
            threshold_percent=t,
            arithmetic="float" if arithmetic is None else arithmetic,
            fraction_bits=4 if f is None else f,
            num_passages=200 if passages is None else passages,
            seed=seed,
            hardware=read_hardware(hardware),
        )
        if as_json:
            sys.stdout.write(to_json(found))
        else:
            print_retrieval(found)
        return
    _refuse(workload, of_retrieval)
    # JAX and flax take seconds to load, which the other commands do without.
    from a3_jax.workloads.memory_evaluation import ROW_COUNTS, Setting
    from a3_jax.workloads.memory_report import paper_settings
    from a3_jax.workloads.memory_run import run
    from a3_jax.workloads.memory_training import TrainingConfig

    accelerator = read_hardware(hardware)
    settings = paper_settings()
    if m is not None or t is not None:
        chosen = [Setting(share_of(m), t, rows) for rows in (ROW_COUNTS if m is not None else ROW_COUNTS[:1])]
        settings = [Setting(None, None), *chosen]
    config = TrainingConfig(
        linear_epochs=30 if linear_epochs is None else linear_epochs, epochs=60 if epochs is None else epochs
    )

    def tell(epoch: Any) -> None:
        messages.print(
            f"epoch {epoch.number} of {config.linear_epochs + config.epochs}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.3f}",
            markup=False,
        )

    report = run(data, settings, config, accelerator, seed=seed, file=parameters, on_epoch=tell)
    if as_json:
        sys.stdout.write(to_json(report))
    else:
        _print(report)


def _refuse(workload: str, options: dict[str, Any]) -> None:
    """ValueError if one of the options is given, which are other workloads'."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"{given[0]} is no option of --workload {workload}: leave it out")


def share_of(text: str | None) -> int | float | None:
    """M of a command line: a float, a fraction of n, where there is an n in the text.

    ValueError for another text, and numbers that are not whole.
    """
    if text is None:
        return None
    value = count_of(text, 1.0)
    if "n" in text:
        return value
    if value != int(value) or value < 1:
        raise ValueError(f"M should be a whole number of at least 1, or a fraction such as n/2, got {text}")
    return int(value)


def _print(report: dict[str, Any]) -> None:
    console = result_console()
    console.print(
        f"{report['data']}: {report['questions']['training']} questions trained on (seed {report['seed']}), "
        f"{report['questions']['test']} asked, {report['hops']} queries each; mean n of {_means(report)}",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for name in (
        "n",
        "M",
        "T",
        "accuracy",
        "loss",
        "C/n",
        "K/n",
        "top 2",
        "cycles",
        "energy",
        "bytes",
        "base: cycles",
        "energy",
        "bytes",
    ):
        table.add_column(name, justify="left" if name == "n" else "right")
    for row in report["settings"]:
        table.add_row(
            row["rows"],
            _iterations(row),
            "" if row["T"] is None else f"{row['T']:g} %",
            *(f"{row[name]:.4f}" for name in ("accuracy", "loss")),
            *(f"{row[name]:.3f}" for name in ("candidate_fraction", "kept_fraction", "top_2_kept")),
            *_costs(row),
            *_costs(row["base"]),
        )
    console.print(table)
    by_task = report["settings"][0]["accuracy_by_task"]
    console.print(
        "exact, by task: " + ", ".join(f"{task} {value:.3f}" for task, value in by_task.items()), markup=False
    )


def _means(report: dict[str, Any]) -> str:
    return ", ".join(f"{rows} {counts['mean']:.1f}" for rows, counts in report["n"].items())


def _iterations(row: dict[str, Any]) -> str:
    if row["M_over_n"] is not None:
        return f"{row['M_over_n']:g} n"
    return f"{row['M']:g}" if row["M"] else ""


def _costs(row: dict[str, Any]) -> tuple[str, str, str]:
    return f"{row['cycles']:.4g}", si(row["joules"], "J"), f"{np.round(row['bytes']):g}"
