"""`a3 evaluate --workload babi`: the paper's task, a memory network that answers questions about stories."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from a3_jax.cli.text import result_console, si
from a3_jax.cost.hardware import Hardware
from bandwise_commands.errors import messages

if TYPE_CHECKING:
    from a3_jax.workloads.memory_evaluation import Setting


def babi_report(
    folder: Path | None,
    *,
    iterations: int | float | None,
    threshold_percent: float | None,
    linear_epochs: int = 30,
    epochs: int = 60,
    seed: int = 0,
    parameters: Path | None = None,
    hardware: Hardware,
) -> dict[str, Any]:
    """What `--json` prints: exact attention, and the setting that was asked for or, without M and T, the paper's.

    Args:
      folder: of bAbI's en-valid; None for made-up stories.
      parameters: a file to keep the trained network in; used if it is there.

    Raises:
      ValueError and OSError, a line, for data that are missing or damaged and options out of range.
    """
    # JAX and flax take seconds to load, which the other commands do without.
    from a3_jax.workloads.memory_run import run
    from a3_jax.workloads.memory_training import TrainingConfig

    config = TrainingConfig(linear_epochs=linear_epochs, epochs=epochs)

    def tell(epoch: Any) -> None:
        messages.print(
            f"epoch {epoch.number} of {linear_epochs + epochs}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.3f}",
            markup=False,
        )

    settings = _settings(iterations, threshold_percent)
    return run(folder, settings, config, hardware, seed=seed, file=parameters, on_epoch=tell)


def _settings(iterations: int | float | None, threshold_percent: float | None) -> "list[Setting]":
    from a3_jax.workloads.memory_evaluation import ROW_COUNTS, Setting
    from a3_jax.workloads.memory_report import paper_settings

    if iterations is None and threshold_percent is None:
        return paper_settings()
    # A fraction of n depends on what counts as n; without iterations all readings are one.
    readings = ROW_COUNTS if iterations is not None else ROW_COUNTS[:1]
    return [Setting(None, None), *(Setting(iterations, threshold_percent, rows) for rows in readings)]


def print_babi(report: dict[str, Any]) -> None:
    """A line a setting, and exact attention's accuracy by task."""
    console = result_console()
    console.print(
        f"{report['data']}: {report['questions']['training']} questions trained on (seed {report['seed']}), "
        f"{report['questions']['test']} asked, {report['hops']} queries each; mean n of {_means(report)}",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for name in (
        "n",
        "M",
        "T",
        "accuracy",
        "loss",
        "C/n",
        "K/n",
        "top 2",
        "cycles",
        "energy",
        "bytes",
        "base: cycles",
        "energy",
        "bytes",
    ):
        table.add_column(name, justify="left" if name == "n" else "right")
    for row in report["settings"]:
        table.add_row(
            row["rows"],
            _iterations(row),
            "" if row["T"] is None else f"{row['T']:g} %",
            *(f"{row[name]:.4f}" for name in ("accuracy", "loss")),
            *(f"{row[name]:.3f}" for name in ("candidate_fraction", "kept_fraction", "top_2_kept")),
            *_costs(row),
            *_costs(row["base"]),
        )
    console.print(table)
    by_task = report["settings"][0]["accuracy_by_task"]
    console.print(
        "exact, by task: " + ", ".join(f"{task} {value:.3f}" for task, value in by_task.items()), markup=False
    )


def _means(report: dict[str, Any]) -> str:
    return ", ".join(f"{rows} {counts['mean']:.1f}" for rows, counts in report["n"].items())


def _iterations(row: dict[str, Any]) -> str:
    if row["M_over_n"] is not None:
        return f"{row['M_over_n']:g} n"
    return f"{row['M']:g}" if row["M"] else ""


def _costs(row: dict[str, Any]) -> tuple[str, str, str]:
    return f"{row['cycles']:.4g}", si(row["joules"], "J"), f"{np.round(row['bytes']):g}"
