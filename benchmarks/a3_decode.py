"""Claim: what A3 inside a language model's decoding does to the next tokens' probabilities, and what it costs.
Beside: exact attention in the same model.

SmolLM2 with A3 inside every layer at the last 128 positions of State of the Union addresses: what that loses and what it costs.

    python -m benchmarks.a3_decode --data .cache/data [--length 1024 8192] [--only NAME ...] [--keep FOLDER] [--json]

Four contexts of 1,024 tokens and one of 8,192. All before the last 128 positions is read exactly. Exact attention, the paper's two
settings without and with the first row held exact, and, at 1,024 tokens, what tells their parts from each other. Perplexity and KL are
of the 128 next tokens of every context; cycles, joules and bytes follow from M, C and K of every query of every head in the same run, for
the paper's hardware, whose memories hold 320 rows, and for one whose memories hold all. `--only` takes settings by their names. `--keep`
keeps what is done in a folder, so that a run that was interrupted goes on from there; remove it when the code has changed. Results go to
results/a3_decode.json when a length is done; settings that are there stay. There are no times in it. Minutes at 1,024 tokens and some
ten at 8,192 on two cores.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from a3_jax.cost.hardware import Hardware
from a3_jax.workloads.decode import QUALITIES, StepRun, Text, TextRun, decode_text, joined
from a3_jax.workloads.decode_attention import StepSetting
from a3_jax.workloads.decode_inputs import Concentration
from a3_jax.workloads.decode_report import decode_report, step_settings, text_rows
from a3_jax.workloads.encoder_attention import Setting
from a3_jax.workloads.retrieval import QueryCounts
from a3_jax.workloads.retrieval_report import CONSERVATIVE
from anyprec_jax import Model, load
from anyprec_jax.models import KVCache
from benchmarks.timing import RESULTS, record
from examples.a3_in_anyprec import model_steps, prefill, read_contexts, table
from examples.demo.anyprec import MODEL, SPEECHES

NAME = "a3_decode"
STEPS, TOP = 128, 5
FILES = {
    1024: ("2013-Obama-1.txt", "2014-Obama-1.txt", "2015-Obama-1.txt", "2016-Obama-1.txt"),
    8192: ("2000-Clinton-1.txt",),
}
RUN = ("layer", *QUALITIES, "nll", "kl")
COSTS = ("cycles_per_query", "joules_per_query", "bottleneck", "estimated")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".cache/data"))
    parser.add_argument("--length", type=int, nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--only", nargs="+", help="names of settings, as the table has them")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no tables")
    arguments = parser.parse_args()
    model = load(arguments.data / MODEL)
    for length in arguments.length:
        files = [arguments.data / SPEECHES / name for name in FILES[length]]
        contexts = read_contexts(model, files, length=length, count=len(files))
        chosen = [s for s in settings(length) if s.is_exact or arguments.only is None or s.name in arguments.only]
        of_texts = [
            found
            for number, context in enumerate(contexts)
            for found in runs_of(model, context, chosen, place(arguments.keep, length, number))
        ]
        decoded = joined(of_texts, len(chosen))
        report = decode_report(decoded, Hardware(), head_dim=model.config.head_dim, top=TOP)
        on_chip = decode_report(decoded, Hardware(n=length), head_dim=model.config.head_dim, top=TOP)
        for row, other in zip(report["settings"], on_chip["settings"], strict=True):
            row["memories_for_all_rows"] = {name: other[name] for name in COSTS}
        results = merged(earlier(), length, report)
        record(NAME, {"steps": STEPS, "files": {str(n): FILES[n] for n in FILES}}, results)
        print(json.dumps(results[str(length)]) if arguments.json else f"{length} tokens\n{table(text_rows(report))}")


def settings(length: int) -> list[StepSetting]:
    """Exact attention first."""
    chosen = step_settings()
    if length == 1024:
        parts = [
            Setting(name=f"M = {name}", iterations=share) for name, share in (("n", 1.0), ("n/2", 0.5), ("n/8", 0.125))
        ]
        parts += [Setting(name=f"T = {percent} %", threshold_percent=percent) for percent in (1, 5, 10)]
        chosen += step_settings(parts, sinks=[0])[1:]
        chosen += step_settings([CONSERVATIVE], sinks=[4], window=64)[1:]
        chosen += step_settings([Setting(name="M = 8 n", iterations=8.0)], sinks=[1])[1:]
    return chosen


def place(keep: Path | None, length: int, number: int) -> Path | None:
    """The folder of one context."""
    return None if keep is None else keep / f"{length}-{number}"


def runs_of(model: Model, context: np.ndarray, chosen: Sequence[StepSetting], folder: Path | None) -> Iterator[TextRun]:
    """One context with every setting, in the order of these; what is in the folder is not done again."""
    before, last = context[: -1 - STEPS], context[-1 - STEPS : -1]
    text = None
    exact = None
    for setting in chosen:
        file = None if folder is None else folder / f"{setting.name.replace('/', ' of ')}.npz"
        found = None if file is None else read_run(file, setting, context)
        if found is None:
            if text is None:
                print(f"{len(context) - 1} tokens ...", file=sys.stderr, flush=True)
                cache = kept(model, before, None if folder is None else folder / "prompt.npz")
                text = Text(model_steps(model, last, cache, precision=None), context[-STEPS:])
            print(f"  {setting.name}", file=sys.stderr, flush=True)
            found = decode_text(text, setting, exact=exact, top=TOP)
            if file is not None:
                write_run(file, found, context)
        exact = found if exact is None else exact
        yield found


def kept(model: Model, tokens: np.ndarray, file: Path | None) -> KVCache:
    """The cache of these tokens, from the file if it is theirs, or else read now and put there."""
    if file is not None and file.exists():
        with np.load(file) as contents:
            if np.array_equal(contents["tokens"], tokens):
                return KVCache(*(jnp.asarray(contents[name]) for name in KVCache._fields))
    cache = prefill(model, tokens, precision=None)
    if file is not None:
        write_arrays(file, {"tokens": tokens, **{name: np.asarray(leaf) for name, leaf in cache._asdict().items()}})
    return cache


def write_run(file: Path, found: TextRun, context: np.ndarray) -> None:
    arrays = {name: getattr(found.run, name) for name in RUN} | found.run.counts._asdict()
    if found.concentration is not None:
        arrays |= found.concentration._asdict() | {"log_probabilities": found.log_probabilities}
    write_arrays(file, arrays | {"context": context})


def read_run(file: Path, setting: StepSetting, context: np.ndarray) -> TextRun | None:
    """None unless the file is there and of this context. Of approximate runs log-probabilities are not kept."""
    if not file.exists():
        return None
    with np.load(file) as contents:
        arrays = dict(contents)
    if not np.array_equal(arrays["context"], context):
        return None
    counts = QueryCounts(*(arrays[name] for name in QueryCounts._fields[:4]), keys=int(arrays["keys"]))
    run = StepRun(setting=setting, counts=counts, **{name: arrays[name] for name in RUN})
    if "rows" not in arrays:
        return TextRun(run, np.zeros((0, 0)), None)
    return TextRun(run, arrays["log_probabilities"], Concentration(*(arrays[name] for name in Concentration._fields)))


def write_arrays(file: Path, arrays: dict[str, Any]) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(stream, **arrays)
    partial.replace(file)


def earlier() -> dict[str, Any]:
    """What the record has."""
    try:
        return json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))["results"]
    except (OSError, ValueError, KeyError):
        return {}


def merged(results: dict[str, Any], length: int, report: dict[str, Any]) -> dict[str, Any]:
    """With the settings of the report in the place of those of the same names."""
    rows = {row["name"]: row for row in results.get(str(length), {}).get("settings", [])}
    rows |= {row["name"]: row for row in report["settings"]}
    names = [setting.name for setting in settings(length)]
    whole = report | {"settings": sorted(rows.values(), key=lambda row: names.index(row["name"]))}
    return results | {str(length): whole}


if __name__ == "__main__":
    main()
