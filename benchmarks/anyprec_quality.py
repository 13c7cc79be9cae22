"""Claim: at the same bits, joint codes give a clearly better model than the authors' algorithm, on texts that nobody calibrated on too.
Beside: their algorithm, through the same calibration and the same evaluation of SmolLM2-135M, in and out of domain; several samples of
windows, each with a random seed of theirs.

Every method quantizes SmolLM2-135M from the same weights and what one backward pass measured on the same windows, half of State of the
Union messages and half of WordNet's glosses, and goes through the same evaluation: the address of 2016 (in domain), and
WikiText-2 where a file of it is given (out of domain). Everything is repeated with other windows, and the authors' algorithm with
another random seed each time: means and ranges are shown. A difference of less than about 10 % of KL on one sample decides nothing.
A sample is a quarter of an hour; `--go-on` adds to those of the record.
"""

import argparse
import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from anyprec_jax import Model, load
from anyprec_jax.calibration import mixed_windows, read_text
from anyprec_jax.evaluate import evaluate
from anyprec_jax.sensitivity import Sensitivity
from benchmarks.quality_methods import Method, authors, best, fast, fast_by_column, quantized
from benchmarks.quality_moments import measured_by_loss
from benchmarks.quality_texts import calibration_texts, evaluation_texts, tokenized
from benchmarks.timing import RESULTS, environment, record
from examples.demo.anyprec import MODEL

UPSTREAM = "authors"  # what the others are compared with
Results: TypeAlias = dict[str, list[dict[str, Any]]]  # by method, one entry for every sample
METHODS: Mapping[str, Method] = {UPSTREAM: authors, "fast": fast, "fast, by column": fast_by_column, "best": best}


def main() -> None:
    """Measures, prints the tables, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the demo's data packages")
    parser.add_argument("--wikitext", type=Path, help="a WikiText-2 text file: the out-of-domain column")
    parser.add_argument(
        "--samples", type=int, default=3, help="of calibration windows, and seeds of the authors' algorithm"
    )
    parser.add_argument("--num-sequences", type=int, default=100)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=2048, help="of each text to score")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--go-on", action="store_true", help="after the record's samples, if made with the same settings"
    )
    arguments = parser.parse_args()
    settings = {
        name: value for name, value in vars(arguments).items() if not isinstance(value, Path) and name != "go_on"
    }
    files = evaluation_texts(arguments.data, arguments.wikitext)
    results: Results = recorded(settings, files) if arguments.go_on else {name: [] for name in arguments.methods}

    model = load(arguments.data / MODEL)
    calibration = [tokenized(model, text) for text in calibration_texts(arguments.data).values()]
    texts = {name: tokenized(model, read_text(file))[: arguments.tokens] for name, file in files.items()}
    for sample in range(len(results[arguments.methods[0]]), arguments.samples):
        windows = mixed_windows(
            calibration,
            num_sequences=arguments.num_sequences,
            sequence_length=arguments.sequence_length,
            seed=sample,
        )
        measured = measured_by_loss(model, windows)
        for name in arguments.methods:
            results[name].append(score(model, METHODS[name], measured, sample, texts, arguments.sequence_length))
            print(f"sample {sample}, {name}: {results[name][-1]['quantize_s']:.0f} s to quantize", flush=True)
        for text in texts:
            print_table(results, text)
        # A run that is stopped keeps what it has.
        record("anyprec_quality", settings | {"samples": sample + 1}, results)


def recorded(settings: Mapping[str, Any], texts: Collection[str]) -> Results:
    """The record's samples, each with the commit that it was made by; an error if there are none, or others than these would be."""
    path = RESULTS / "anyprec_quality.json"
    if not path.exists():
        raise SystemExit(f"error: there is no {path} to go on with; leave out --go-on")
    former = json.loads(path.read_text(encoding="utf-8"))
    differing = [
        name for name, value in settings.items() if name != "samples" and former["arguments"].get(name) != value
    ]
    if differing:
        raise SystemExit(f"error: the record has other settings: {', '.join(differing)}; leave out --go-on")
    samples = [sample for of_method in former["results"].values() for sample in of_method]
    scored = {name for sample in samples for name, rows in sample.items() if isinstance(rows, list)}
    if scored != set(texts):
        raise SystemExit(
            f"error: the record is of other texts: {', '.join(sorted(scored))}; give these, or leave out --go-on"
        )
    return {
        name: [{"commit": former["commit"], **sample} for sample in of_method]
        for name, of_method in former["results"].items()
    }


def score(
    model: Model,
    method: Method,
    measured: Mapping[str, Sensitivity],
    sample: int,
    texts: Mapping[str, np.ndarray],
    sequence_length: int,
) -> dict[str, Any]:
    """Quantizes every linear by `method`, and evaluates at every precision on every text."""
    started = time.perf_counter()
    subject = quantized(model, method, measured, sample=sample)
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {"sample": sample, "commit": environment()["commit"], "quantize_s": seconds}
    for text, tokens in texts.items():
        rows = evaluate(subject, tokens, reference=model, sequence_length=sequence_length)
        result[text] = [row._asdict() for row in rows]
    return result


def print_table(results: Results, text: str) -> None:
    """KL of every method and precision, mean (lowest to highest), and its ratio to the authors' mean."""
    precisions = [row["precision"] for row in next(iter(results.values()))[0][text][1:]]
    print(f"\n{text}: KL in nats per token, mean over samples (lowest to highest), ratio to the authors'; perplexity")
    for index, precision in enumerate(precisions, start=1):
        theirs = np.mean(kls(results[UPSTREAM], text, index)) if UPSTREAM in results else np.nan
        for name, samples in results.items():
            values = kls(samples, text, index)
            perplexity = np.mean([sample[text][index]["perplexity"] for sample in samples])
            spread = f"{np.mean(values):.5f} ({min(values):.5f} to {max(values):.5f})"
            print(f"{precision:>2} bits  {name:>16}  {spread:>28}  {np.mean(values) / theirs:5.2f}  {perplexity:8.3f}")


def kls(samples: list[dict[str, Any]], text: str, index: int) -> list[float]:
    """One number for every sample."""
    return [sample[text][index]["kl"] for sample in samples]


if __name__ == "__main__":
    main()
