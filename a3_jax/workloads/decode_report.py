"""Accuracy and cost of decoding steps, from the counts of their own queries."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from a3_jax.cost.hardware import Hardware
from a3_jax.workloads.decode import QUALITIES, Decoded, StepRun
from a3_jax.workloads.decode_attention import StepSetting
from a3_jax.workloads.encoder_attention import Setting
from a3_jax.workloads.retrieval_report import AGGRESSIVE, CONSERVATIVE, EXACT, run_costs

SINKS = (0, 1)  # without and with the first row exact


def step_settings(
    chosen: Sequence[Setting] = (CONSERVATIVE, AGGRESSIVE), *, sinks: Sequence[int] = SINKS, window: int = 0
) -> list[StepSetting]:
    """Exact attention, and every selection with each number of exact first rows."""
    return [
        StepSetting(selection=EXACT),
        *(StepSetting(selection=selection, sinks=count, window=window) for selection in chosen for count in sinks),
    ]


def decode_report(decoded: Decoded, hardware: Hardware, *, head_dim: int, top: int) -> dict[str, Any]:
    """For JSON: how peaked exact attention is, and of every setting what it loses and costs."""
    peaked = decoded.concentration
    return {
        "concentration": {
            "rows_of_90_percent": float(np.median(peaked.rows)),
            "rows_of_90_percent_beyond_first": float(np.median(peaked.rows_beyond_first)),
            "weight_of_first_row": float(peaked.first.mean()),
        },
        "top": top,
        "settings": [setting_report(run, decoded.runs[0], hardware, head_dim=head_dim) for run in decoded.runs],
    }


def setting_report(run: StepRun, exact: StepRun, hardware: Hardware, *, head_dim: int) -> dict[str, Any]:
    """Means over queries; those of a layer by themselves too. A sort of a key is shared by the queries of its group.

    `perplexity` and `kl` are there if a model was. `cycles_per_step` and `joules_per_step` are those of all layers and heads, one
    query after the other.
    """
    setting, counts = run.setting, run.counts
    cost = run_costs(counts, setting.selection, hardware, head_dim=head_dim)
    one = cost.performance.cost
    layers = int(run.layer[-1]) + 1
    report = {
        "name": setting.name,
        "M": setting.selection.iterations,
        "T": setting.selection.threshold_percent,
        "sinks": setting.sinks,
        "window": setting.window,
        "queries": len(counts.n),
    }
    if len(run.nll):
        report |= {
            "perplexity": run.perplexity,
            "perplexity_over_exact": run.perplexity / exact.perplexity,
            "kl": float(run.kl.mean()),
            "steps": len(run.nll),
        }
        per_step = len(counts.n) / len(run.nll)
        report |= {
            "cycles_per_step": one.cycles * per_step,
            "joules_per_step": one.total_energy * per_step,
        }
    return report | {
        **{name: float(getattr(run, name).mean()) for name in QUALITIES},
        "mean": {name: float(getattr(counts, name).mean()) for name in ("n", "M", "C", "K")},
        "cycles_per_query": one.cycles,
        "simulated_cycles_of_first_queries": cost.simulated_cycles,
        "closed_form_cycles_of_first_queries": cost.closed_form_cycles,
        "joules_per_query": one.total_energy,
        "dram_joules_per_query": float(one.energy.get("dram", 0.0)),
        "bytes_per_query": cost.bytes,
        "bytes_over_exact": cost.bytes / cost.exact_bytes,
        "bottleneck": cost.performance.bottleneck,
        "estimated": sorted(one.estimated),
        "by_layer": {
            name: _by_layer(values, run.layer, layers)
            for name, values in [
                *((name, getattr(run, name)) for name in QUALITIES),
                *((name, getattr(counts, name)) for name in ("C", "K")),
            ]
        },
    }


def text_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """A header and a line a setting, numbers as people read them."""
    settings = report["settings"]
    has_model = "kl" in settings[0]
    header = ("setting", *(("perplexity", "KL") if has_model else ()), "error", "mass", "beyond first")
    rows: list[tuple[str, ...]] = [
        (*header, f"top {report['top']}", "M/n", "C/n", "K/n", "cycles", "nJ", "bytes", "of exact")
    ]
    for row in settings:
        mean = row["mean"]
        rows.append(
            (
                row["name"],
                *((f"{row['perplexity']:.3f}", f"{row['kl']:.4f}") if has_model else ()),
                *(f"{row[name]:.3f}" for name in ("error", "mass", "mass_beyond_first", "recall")),
                *(f"{mean[name] / mean['n']:.3f}" for name in ("M", "C", "K")),
                f"{row['cycles_per_query']:.0f}",
                f"{1e9 * row['joules_per_query']:.1f}",
                f"{row['bytes_per_query']:,.0f}",
                f"{row['bytes_over_exact']:.3f}",
            )
        )
    return rows


def _by_layer(values: np.ndarray, layer: np.ndarray, layers: int) -> list[float]:
    sums, counts = np.bincount(layer, values, layers), np.bincount(layer, minlength=layers)
    return [float(value) for value in sums / counts]
