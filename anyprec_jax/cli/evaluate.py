"""`anyprec evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from anyprec_jax.cli.arguments import AsJson, Devices, ModelPath, load_model, note_missing_native_op, print_json
from anyprec_jax.cli.progress import progress_bars
from bandwise_commands.errors import messages, reporting_errors


@reporting_errors
def evaluate(
    model: ModelPath,
    text: Annotated[Path, typer.Option(help="The text to score.", show_default=False)],
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="Bits to read, on average where they are no whole number; 3,3.5,4 or repeated for several. Default: all whole ones.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="The unquantized model, for the KL divergence.")] = None,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a chunk; a chunk's first is not scored.")] = 512,
    max_tokens: Annotated[int | None, typer.Option(help="Score the first N tokens only. Default: all.")] = None,
    devices: Devices = None,
    as_json: AsJson = False,
) -> None:
    """Perplexity, and with the unquantized model KL divergence from it (nats per token) and top-1 agreement, at each precision."""
    from anyprec_jax import evaluate as evaluation
    from anyprec_jax.calibration import read_text
    from anyprec_jax.checkpoint import load, precision_for

    asked = None if precision is None else _numbers(precision)
    note_missing_native_op()
    precisions = None if asked is None else [precision_for(model, bits) for bits in asked]
    subject = load_model(model, precisions, devices)
    if subject.tokenizer is None:
        raise ValueError(f"{model} has no tokenizer, and scoring text needs one")
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"--max-tokens must be at least 2, got {max_tokens}: scoring needs at least 2 tokens")
    tokens = np.asarray(subject.tokenizer.encode(read_text(text), special_tokens=False), np.int32)[:max_tokens]
    if len(tokens) < 2:
        raise ValueError(f"{text} has {len(tokens)} tokens, and scoring needs at least 2: give a longer text")
    baseline = None if reference is None else load(reference)
    with progress_bars(messages) as progress:
        results = evaluation.evaluate(
            subject,
            tokens,
            precisions=precisions,
            reference=baseline,
            sequence_length=sequence_length,
            progress=lambda done, total: progress("scoring", done, total),
        )
    bits_of: dict[Any, Any] = dict(
        zip(precisions or (), asked or (), strict=True)
    )  # a map is told by what was asked for
    rows = [result._asdict() | {"precision": bits_of.get(result.precision, result.precision)} for result in results]
    report = {"tokens": len(tokens), "results": rows}
    if as_json:
        print_json(report)
    else:
        _print_evaluation(report)


def _numbers(texts: list[str]) -> list[int | float]:
    """The numbers of some options, each of which may have several."""
    numbers: list[int | float] = []
    for part in ",".join(texts).split(","):
        try:
            bits = float(part)
        except ValueError:
            raise ValueError(f"'--precision': wanted numbers of bits such as 4 or 3,3.5,4, got {part!r}") from None
        numbers.append(int(bits) if bits.is_integer() else bits)
    return numbers


def _print_evaluation(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['tokens']:,} tokens")
    table.add_column("precision", no_wrap=True)  # at 80 columns it is a header that becomes two lines
    for column in ("bits per weight read", "perplexity", "KL (nats/token)", "top-1"):
        table.add_column(column)
    for row in report["results"]:
        kl = "-" if row["kl"] is None else f"{row['kl']:.5f}"
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1%}"
        bits = "-" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.2f}"
        precision = row["precision"]
        if isinstance(precision, float):
            precision = f"{precision:g} (average {row['mean_precision']:.4f})"
        table.add_row(str(precision), bits, f"{row['perplexity']:.4f}", kl, top1)
    Console(highlight=False).print(table)
