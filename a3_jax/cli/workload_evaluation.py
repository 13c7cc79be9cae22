"""`a3 evaluate`: a task with real inputs, its accuracy under A3's approximation, and what the accelerator takes for it."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from a3_jax.cli.babi import babi_report, print_babi
from a3_jax.cli.configuration import read_hardware
from a3_jax.cli.decode import print_steps, steps_report
from a3_jax.cli.evaluation import AsJson, HardwareFile
from a3_jax.cli.files import to_json
from a3_jax.cli.retrieval import ArithmeticName, print_retrieval, retrieval_report
from a3_jax.cli.simulation import count_of
from bandwise_commands.errors import reporting_errors


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
    common = {"iterations": share_of(m), "threshold_percent": t, "hardware": read_hardware(hardware)}
    match workload:
        case "babi":
            _refuse(workload, of_retrieval | of_decode)
            training = _given(linear_epochs=linear_epochs, epochs=epochs)
            show, found = print_babi, babi_report(data, **common, **training, seed=seed or 0, parameters=parameters)
        case "retrieval":
            _refuse(workload, of_babi | of_decode)
            chosen = _given(arithmetic=arithmetic, fraction_bits=f, num_passages=passages)
            folder = Path(".cache/data") if data is None else data
            show, found = print_retrieval, retrieval_report(folder, **common, **chosen, seed=seed or 0)
        case "decode":
            _refuse(workload, of_babi | of_retrieval | {"--seed": seed})
            chosen = _given(sinks=sinks or None, window=window, top=top)
            show, found = print_steps, steps_report(data, **common, **chosen)
    if as_json:
        sys.stdout.write(to_json(found))
    else:
        show(found)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given: a report's own defaults hold for the others."""
    return {name: value for name, value in options.items() if value is not None}


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
