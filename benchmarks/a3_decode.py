"""SmolLM2 with A3 inside every layer at the last 128 positions of State of the Union addresses: what that loses and what it costs.

    python -m benchmarks.a3_decode --data .cache/data [--length 1024 8192] [--only NAME ...] [--keep FOLDER] [--json]

Four contexts of 1,024 tokens and one of 8,192. All before the last 128 positions is read exactly. Exact attention, the paper's two
settings without and with the first row held exact, and, at 1,024 tokens, what tells their parts from each other. Perplexity and KL are
of the 128 next tokens of every context; cycles, joules and bytes follow from M, C and K of every query of every head in the same run, for
the paper's hardware, whose memories hold 320 rows, and for one whose memories hold all. `--only` takes settings by their names,
and `--keep` keeps what was read exactly in a folder, so that the next run need not. Results go to results/a3_decode.json when a
length is done; settings that are there stay. There are no times in it. Minutes at 1,024 tokens and some ten at 8,192 on two cores.
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
from a3_jax.workloads.decode import Text, decode_texts
from a3_jax.workloads.decode_attention import StepSetting
from a3_jax.workloads.decode_report import decode_report, step_settings, text_rows
from a3_jax.workloads.encoder_attention import Setting
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
        decoded = decode_texts(
            texts(model, contexts, arguments.keep),
            chosen,
            top=TOP,
            progress=lambda name: print(f"  {name}", file=sys.stderr, flush=True),
        )
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


def texts(model: Model, contexts: Sequence[np.ndarray], keep: Path | None) -> Iterator[Text]:
    for number, context in enumerate(contexts):
        print(f"context {number + 1} of {len(contexts)}, {len(context) - 1} tokens ...", file=sys.stderr, flush=True)
        before, last = context[: -1 - STEPS], context[-1 - STEPS : -1]
        file = None if keep is None else keep / f"{len(context) - 1}-{number}.npz"
        yield Text(model_steps(model, last, kept(model, before, file), precision=None), context[-STEPS:])


def kept(model: Model, tokens: np.ndarray, file: Path | None) -> KVCache:
    """The cache of these tokens, from the file if it is theirs, or else read now and put there."""
    if file is not None and file.exists():
        with np.load(file) as contents:
            if np.array_equal(contents["tokens"], tokens):
                return KVCache(*(jnp.asarray(contents[name]) for name in KVCache._fields))
    cache = prefill(model, tokens, precision=None)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in cache._asdict().items()}
        np.savez(partial, tokens=tokens, **arrays)
        partial.replace(file)
    return cache


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
