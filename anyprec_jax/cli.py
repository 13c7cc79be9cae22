"""The `anyprec` command: quantize once, read at any precision."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bandwise_commands.application import end_process, run_application
from bandwise_commands.errors import messages, reporting_errors
from bandwise_commands.interrupts import stopping_when_interrupted

app = typer.Typer(
    name="anyprec",
    help="Quantize a language model once; read it at 3, 4, 5, 6, 7 or 8 bits from the same files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_SECONDS_BETWEEN_LINES = 10.0  # of progress, where it goes to a file

ModelPath = Annotated[
    Path, typer.Argument(help="An artefact, a Hugging Face folder or a GGUF file.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """The `anyprec` command; returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every step of a save
    return run_application(app, "anyprec", arguments)


def run() -> NoReturn:
    """The process: `main`, and its status for the shell."""
    end_process(main)


@app.command(epilog="Example: anyprec quantize SmolLM2.gguf smollm2-anyprec --calibration speeches.txt")
@reporting_errors
def quantize(
    model: ModelPath,
    out: Annotated[Path, typer.Argument(help="The artefact to write: a new folder.", show_default=False)],
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text to measure the weights' sensitivity on; repeat for several, of different kinds if possible."
        ),
    ] = None,
    uniform: Annotated[bool, typer.Option("--uniform", help="No calibration: every weight counts the same.")] = False,
    quality: Annotated[
        Literal["fast", "best"] | None,
        typer.Option(
            help="best optimises the codes of all precisions for what each row makes of its inputs; fast, the paper's way, places every "
            "weight by itself, in less time. Default: best, and fast with --uniform.",
            show_default=False,
        ),
    ] = None,
    num_sequences: Annotated[int, typer.Option(help="Calibration windows, of all texts together.")] = 100,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a calibration window.")] = 512,
    seed_precision: Annotated[int, typer.Option(help="Fewest bits that can be read.")] = 3,
    parent_precision: Annotated[int, typer.Option(help="Most bits that can be read.")] = 8,
    head_precision: Annotated[
        Literal["8", "none"], typer.Option(help="Bits of embedding and output head; none leaves them as they are.")
    ] = "8",
    seed: Annotated[int, typer.Option(help="Seed of the windows' offsets.")] = 0,
) -> None:
    """Quantize every linear of MODEL's layers into OUT. Killed and started again, it continues where it was."""
    from anyprec_jax.config import QuantizeConfig
    from anyprec_jax.model_quantization import Calibration, quantize_model

    if bool(calibration) == uniform:
        raise ValueError("give either --calibration FILE or --uniform")
    settings = None
    if calibration:
        settings = Calibration(
            text=tuple(calibration), num_sequences=num_sequences, sequence_length=sequence_length, seed=seed
        )
    config = QuantizeConfig(seed_precision=seed_precision, parent_precision=parent_precision)
    with progress_bars(messages) as progress:
        quantize_model(
            model,
            out,
            config,
            calibration=settings,
            quality=quality,
            head_precision=None if head_precision == "none" else int(head_precision),
            progress=progress,
        )
    messages.print(f"wrote {out}", markup=False)


@app.command(epilog="Example: anyprec inspect smollm2-anyprec")
@reporting_errors
def inspect(
    out: Annotated[Path, typer.Argument(help="An artefact.", show_default=False)], as_json: AsJson = False
) -> None:
    """Show what an artefact holds: matrices, precisions, bits per weight resident and read, sizes, checksums."""
    from anyprec_jax.inspection import inspect as describe

    report = describe(out)
    if as_json:
        _print_json(report)
    else:
        _print_inspection(report)


@app.command(epilog="Example: anyprec evaluate smollm2-anyprec --text held-out.txt --precision 3 --precision 4")
@reporting_errors
def evaluate(
    model: ModelPath,
    text: Annotated[Path, typer.Option(help="The text to score.", show_default=False)],
    precision: Annotated[list[int] | None, typer.Option(help="Bits to read; repeat for several. Default: all.")] = None,
    reference: Annotated[Path | None, typer.Option(help="The unquantized model, for the KL divergence.")] = None,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a chunk; a chunk's first is not scored.")] = 512,
    max_tokens: Annotated[int | None, typer.Option(help="Score the first N tokens only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity, and KL divergence (nats per token) from the unquantized model, at each precision."""
    from anyprec_jax import evaluate as evaluation
    from anyprec_jax.calibration import read_text
    from anyprec_jax.checkpoint import load

    _note_missing_native_op()
    subject = load(model, precisions=precision)
    if subject.tokenizer is None:
        raise ValueError(f"{model} has no tokenizer, and scoring text needs one")
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"--max-tokens must be at least 2, got {max_tokens}: scoring needs at least 2 tokens")
    tokens = np.asarray(subject.tokenizer.encode(read_text(text), special_tokens=False), np.int32)[:max_tokens]
    baseline = None if reference is None else load(reference)
    with progress_bars(messages) as progress:
        results = evaluation.evaluate(
            subject,
            tokens,
            precisions=precision,
            reference=baseline,
            sequence_length=sequence_length,
            progress=lambda done, total: progress("scoring", done, total),
        )
    report = {"tokens": len(tokens), "results": [result._asdict() for result in results]}
    if as_json:
        _print_json(report)
    else:
        _print_evaluation(report)


@app.command(epilog="Example: anyprec generate smollm2-anyprec --prompt 'Why is the sky blue?' --chat --precision 4")
@reporting_errors
def generate(
    model: ModelPath,
    prompt: Annotated[str, typer.Option(help="The text to continue, or the message to answer.", show_default=False)],
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    precision: Annotated[int | None, typer.Option(help="Bits to read. Default: the most there are.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 picks the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Choose among the K likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among the likeliest that hold this mass.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop what is this much less likely than the best.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; repeat for several.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write text, as it comes."""
    from anyprec_jax import generation
    from anyprec_jax.checkpoint import load

    _note_missing_native_op()
    subject = load(model, precisions=None if precision is None else [precision])
    options: dict[str, Any] = {
        "precision": precision if precision is not None else generation.highest_precision(subject),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "stop": tuple(stop or ()),
        "seed": seed,
        "chat": chat,
    }
    if as_json:
        _print_json(generation.generate(subject, prompt, **options)._asdict())
        return
    for piece in generation.stream(subject, prompt, **options):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command(epilog="Example: anyprec export smollm2-anyprec smollm2-4bit --format huggingface --precision 4")
@reporting_errors
def export(
    out: Annotated[Path, typer.Argument(help="An artefact.", show_default=False)],
    dest: Annotated[Path, typer.Argument(help="The folder to write: a new one.", show_default=False)],
    precision: Annotated[int, typer.Option(help="Bits to read.", show_default=False)],
    target: Annotated[
        Literal["huggingface"], typer.Option("--format", help="huggingface: safetensors that transformers loads.")
    ] = "huggingface",
) -> None:
    """Write the model as `precision` bits represent it, dequantized, for other software to load."""
    from anyprec_jax.checkpoint import load, save
    from anyprec_jax.checkpoint.atomic import require_free
    from anyprec_jax.models.model import dequantized

    require_free(dest)  # before minutes of loading
    save(dest, dequantized(load(out, precisions=[precision]), precision=precision))
    messages.print(f"wrote {dest}", markup=False)


def _note_missing_native_op() -> None:
    from anyprec_jax.ops import cpu

    if (reason := cpu.why_unavailable()) is not None:
        messages.print(f"note: plain XLA is used, several times slower than the native product: {reason}", markup=False)


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `report(phase, done, total)`: a bar a phase with the time that is left, or now and then a line in a log file."""
    if not console.is_terminal:
        yield stopping_when_interrupted(_log_lines(console))
        return
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with contextlib.ExitStack() as stack:
        bars = Progress(*columns, console=console, speed_estimate_period=300)
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            if not tasks:
                stack.enter_context(bars)  # only now: bars that have nothing to show print an empty line
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done)

        yield stopping_when_interrupted(report)


def _log_lines(console: Console) -> Callable[[str, int, int], None]:
    started: dict[str, tuple[float, int]] = {}  # phase -> when, and how much was done then
    printed = 0.0

    def report(phase: str, done: int, total: int) -> None:
        nonlocal printed
        now = time.monotonic()
        since, first = started.setdefault(phase, (now, done))
        if done == total or now - printed >= _SECONDS_BETWEEN_LINES:
            printed = now
            left = f", {(now - since) / (done - first) * (total - done):.0f} s left" if done > first else ""
            console.print(f"{phase} {done}/{total}{left}", markup=False)

    return report


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _print_inspection(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    precisions = [str(w) for w in report["precisions"]]
    console.print("bits per weight, planes and codebooks: resident, and read at each precision")
    table = Table("matrix", "layers", "n", "k", "resident", *precisions, box=None, pad_edge=False)
    for name, matrix in report["matrices"].items():
        size = [str(matrix[key]) for key in ("layers", "n", "k")]
        table.add_row(name.removeprefix("layers/"), *size, *_bits(matrix["bits_per_weight"], precisions))
    table.add_row("all", "", "", "", *_bits(report["bits_per_weight"], precisions))
    for name, head in report["affine"].items():
        bits = f"{head['bits_per_weight']:.2f}"
        table.add_row(name, "", str(head["n"]), str(head["k"]), bits, *[bits] * len(precisions))
    console.print(table)
    sizes = report["bytes"]
    console.print(
        f"{report['quantized_weights']:,} any-precision weights in {sizes['quantized'] / 1e6:.1f} MB, "
        f"{report['affine_weights']:,} affine in {sizes['affine'] / 1e6:.1f} MB, "
        f"{report['unquantized_weights']:,} others in {sizes['unquantized'] / 1e6:.1f} MB",
        soft_wrap=True,
    )
    console.print(f"{sizes['on_disk'] / 1e6:.1f} MB on disk")
    if (made := _how_it_was_made(report["provenance"])) is not None:
        console.print(made, soft_wrap=True, markup=False)
    for name, array in report["arrays"].items():
        shape = "x".join(map(str, array["shape"]))
        console.print(f"{array['sha256'][:16]}  {name}  {array['dtype']} {shape}", soft_wrap=True, markup=False)


def _how_it_was_made(provenance: dict[str, Any]) -> str | None:
    """One line, or nothing where a foreign hand left something else in the manifest."""
    try:
        quality = provenance["quantization"].get("quality", "fast")
        if (calibration := provenance["calibration"]) is None:
            return f"quality {quality}, every weight counted the same"
        texts = ", ".join(map(str, calibration.get("texts") or [calibration.get("text")]))
        return (
            f"quality {quality}, calibrated on {calibration['num_sequences']} sequences of {calibration['sequence_length']} tokens "
            f"of {texts}"
        )
    except (KeyError, TypeError, AttributeError):
        return None


def _bits(bits: dict[str, Any], precisions: Sequence[str]) -> list[str]:
    return [f"{bits['resident']:.2f}", *(f"{bits['read'][w]:.2f}" for w in precisions)]


def _print_evaluation(report: dict[str, Any]) -> None:
    table = Table(
        "precision", "bits per weight read", "perplexity", "KL (nats/token)", title=f"{report['tokens']:,} tokens"
    )
    for row in report["results"]:
        kl = "-" if row["kl"] is None else f"{row['kl']:.5f}"
        bits = "-" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.2f}"
        table.add_row(str(row["precision"]), bits, f"{row['perplexity']:.4f}", kl)
    Console(highlight=False).print(table)
