"""Claim: bits shared out among the matrices of a model give a better one than the same bits in layers that take turns.
Beside: every matrix at the same precision; layers that alternate between two, beginning with either.

Reads one artefact of SmolLM2-135M, made with calibration texts (here, if none is given: minutes), at averages of 3 to 6 bits: every
matrix at the same precision where that is whole, bits shared out by `allocate`, and layers that alternate between two precisions,
beginning with either. KL from the
unquantized model, on the address of 2016 (in domain) and on WikiText-2 where a file of it is given (out of domain).

Writes results/anyprec_allocation.json and docs/figures/anyprec_allocation.svg.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anyprec_jax import Calibration, Model, Precision, PrecisionMap, QuantizeConfig, allocate, load, quantize_model
from anyprec_jax.calibration import read_text
from anyprec_jax.evaluate import evaluate
from anyprec_jax.models.fusion import LINEARS, unfused
from benchmarks.quality_texts import calibration_texts, evaluation_texts
from benchmarks.timing import record
from examples.demo.anyprec import MODEL

FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "anyprec_allocation.svg"
UNIFORM, SHARED, APART, ALTERNATING = "one for all", "shared out", "shared out, seven apart", "alternating layers"
APART_AT = (3.5, 4.5)  # where query, key, value, gate and up are allowed to differ: what fusing them costs


def main() -> None:
    """Measures, prints a table, writes the record and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the demo's data packages")
    parser.add_argument("--artefact", type=Path, help="SmolLM2, quantized with a calibration text")
    parser.add_argument(
        "--scratch", type=Path, default=Path(".cache/allocation"), help="where to make one, and keep it"
    )
    parser.add_argument("--wikitext", type=Path, help="a WikiText-2 text file: the out-of-domain column")
    parser.add_argument("--lowest", type=int, default=3)
    parser.add_argument("--highest", type=int, default=6)
    parser.add_argument("--step", type=float, default=0.25)
    parser.add_argument("--tokens", type=int, default=2048, help="of each text to score")
    parser.add_argument("--sequence-length", type=int, default=512)
    arguments = parser.parse_args()

    reference = load(arguments.data / MODEL)
    model = load(arguments.artefact or quantized(arguments.data, arguments.scratch))
    assert model.tokenizer is not None
    texts = {
        name: np.asarray(model.tokenizer.encode(read_text(file), special_tokens=False), np.int32)[: arguments.tokens]
        for name, file in evaluation_texts(arguments.data, arguments.wikitext).items()
    }
    averages = np.arange(arguments.lowest, arguments.highest + arguments.step / 2, arguments.step).tolist()
    cases = list(choices(model, averages))
    apart = dataclasses.replace(model, params=model.params | {"layers": unfused(model.params["layers"])})
    free = [(APART, average, allocate(apart, average)) for average in APART_AT if average in averages]
    results: list[dict[str, Any]] = []
    for subject, some in ((model, cases), (apart, free)):
        scored = {
            text: evaluate(
                subject,
                tokens,
                precisions=[precision for *_, precision in some],
                reference=reference,
                sequence_length=arguments.sequence_length,
                progress=lambda done, total: print(f"{done}/{total}", end="\r", flush=True),
            )[1:]
            for text, tokens in texts.items()
        }
        for index, (choice, average, precision) in enumerate(some):
            rows = {text: found[index] for text, found in scored.items()}
            results.append(described(choice, average, precision, rows))
    print_table(results, list(texts))
    draw(results, list(texts), FIGURE)
    record("anyprec_allocation", vars(arguments), results)


def quantized(data: Path, scratch: Path) -> Path:
    """The artefact of `anyprec quantize` with two texts of different kinds, made once."""
    scratch.mkdir(parents=True, exist_ok=True)
    texts = []
    for number, text in enumerate(calibration_texts(data).values()):
        texts.append(scratch / f"calibration-{number}.txt")
        texts[-1].write_text(text, encoding="utf-8")
    out = scratch / "smollm2-best"
    quantize_model(
        data / MODEL,
        out,
        QuantizeConfig(seed_precision=3, parent_precision=8),
        calibration=Calibration(text=tuple(texts)),
        progress=lambda phase, done, total: print(f"{phase} {done}/{total}", end="\r", flush=True),
    )
    return out


def choices(model: Model, averages: Sequence[float]) -> Iterator[tuple[str, float, Precision]]:
    """How to read the model at each average."""
    for average in averages:
        if float(average).is_integer():
            yield UNIFORM, average, int(average)
        if averages[0] < average < averages[-1]:
            yield SHARED, average, allocate(model, average)
        if average % 1 == 0.5:
            for first in (0, 1):
                yield ALTERNATING, average, alternating(model, int(average), first)


def alternating(model: Model, fewer: int, first: int) -> PrecisionMap:
    """`fewer` bits in every second layer and one more in the others; the first layer has `fewer + first`."""
    layers = tuple(fewer + (layer + first) % 2 for layer in range(model.config.num_layers))
    return PrecisionMap(dict.fromkeys(LINEARS, layers))


def described(choice: str, average: float, precision: Precision, rows: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the record."""
    any_row = next(iter(rows.values()))
    maps = (
        {name: list(layers) for name, layers in precision.linears.items()}
        if isinstance(precision, PrecisionMap)
        else None
    )
    return {
        "choice": choice,
        "average_bits": average,
        "mean_precision": any_row.mean_precision,
        "bits_per_weight": any_row.bits_per_weight,
        "kl": {text: row.kl for text, row in rows.items()},
        "perplexity": {text: row.perplexity for text, row in rows.items()},
        "map": maps,
    }


def print_table(results: Sequence[dict[str, Any]], texts: Sequence[str]) -> None:
    """Markdown: a line a choice and average."""
    print(f"| average | choice | bits read, with codebooks | {' | '.join(f'KL, {text}' for text in texts)} |")
    print("|---|---|---|" + "---|" * len(texts))
    for row in sorted(results, key=lambda row: row["average_bits"]):
        kls = " | ".join(f"{row['kl'][text]:.5f}" for text in texts)
        print(f"| {row['average_bits']:g} | {row['choice']} | {row['bits_per_weight']:.2f} | {kls} |")


def draw(results: Sequence[dict[str, Any]], texts: Sequence[str], file: Path) -> None:
    """KL against average bits, a panel for each text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    styles = {
        SHARED: {"marker": ".", "linewidth": 2},
        UNIFORM: {"marker": "o", "linestyle": "none"},
        ALTERNATING: {"marker": "x", "linestyle": "none"},
    }
    # Text stays text, and the same numbers give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bandwise"}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        panels = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
        for axes, text in zip(panels, texts, strict=True):
            for choice, style in styles.items():
                own = sorted((row["average_bits"], row["kl"][text]) for row in results if row["choice"] == choice)
                axes.plot(*zip(*own, strict=True), label=choice, **style)
            axes.set(title=text, xlabel="average bits of code per weight", yscale="log")
            axes.grid(visible=True, alpha=0.3)
        panels[0].set(ylabel="KL from the unquantized model, nats per token")
        panels[-1].legend()
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
