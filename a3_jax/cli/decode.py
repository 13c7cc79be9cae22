"""`a3 evaluate --workload decode`: attention of a language model's last positions, from files of queries, keys and values."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from a3_jax.cli.text import result_console
from a3_jax.cost.hardware import Hardware
from bandwise_commands.errors import messages

if TYPE_CHECKING:
    from a3_jax.workloads.decode_inputs import StepInputs


def steps_report(
    data: Path | None,
    *,
    iterations: int | float | None,
    threshold_percent: float | None,
    sinks: Sequence[int] | None = None,
    window: int = 0,
    top: int = 5,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """What `--json` prints: exact attention, and the selection that was asked for or the paper's two, by number of exact first rows.

    Args:
      data: a file of `write_steps`, or a folder of such files, a text each.
      sinks: None for none and for one.
      top: rows with the largest weights that are looked for.

    Raises:
      ValueError and OSError, a line, for files that are missing or damaged, and for settings that there are not.
    """
    # JAX and numba take seconds to load, which the other commands do without.
    from a3_jax.workloads.decode import measure_steps
    from a3_jax.workloads.decode_files import find_files, read_steps
    from a3_jax.workloads.decode_report import SINKS, decode_report, step_settings
    from a3_jax.workloads.retrieval_report import AGGRESSIVE, CONSERVATIVE, named_setting

    if data is None:
        raise ValueError(
            "--workload decode needs --data, an .npz file with queries, keys and values: "
            "`python -m examples.a3_in_anyprec --save-arrays FOLDER` writes some"
        )
    if top < 1:
        raise ValueError(f"--top should be at least 1, got {top}")
    is_chosen = iterations is not None or threshold_percent is not None
    selections = [named_setting(iterations, threshold_percent)] if is_chosen else [CONSERVATIVE, AGGRESSIVE]
    settings = step_settings(selections, sinks=SINKS if sinks is None else sinks, window=window)
    shapes = []

    def texts() -> Iterator[list["StepInputs"]]:
        for file in find_files(data):
            layers = read_steps(file)
            shapes.append((file.name, len(layers), layers[0]))
            if len({shape[2].query.shape[2] for shape in shapes}) > 1:
                raise ValueError(f"{file}: its heads are not as wide as those of {shapes[0][0]}")
            messages.print(f"{file.name} ({len(settings)} settings, {len(layers)} layers) ...", markup=False)
            yield layers

    measured = measure_steps(texts(), settings, top=top)
    head_dim = shapes[0][2].query.shape[2]
    accelerator = Hardware() if hardware is None else hardware
    return {
        "texts": [
            {
                "file": name,
                "layers": num_layers,
                "heads": len(first.query),
                "kv_heads": len(first.key),
                "rows": first.key.shape[1],
                "steps": first.query.shape[1],
                "head_dim": head_dim,
            }
            for name, num_layers, first in shapes
        ],
        **decode_report(measured, accelerator, head_dim=head_dim, top=top),
    }


def print_steps(report: dict[str, Any]) -> None:
    """A line a setting."""
    from a3_jax.workloads.decode_report import text_rows

    console = result_console()
    for text in report["texts"]:
        console.print(
            f"{text['file']}: the last {text['steps']} of {text['rows']} positions, {text['layers']} layers, "
            f"{text['heads']} heads of {text['head_dim']}, {text['kv_heads']} of keys",
            markup=False,
        )
    peaked = report["concentration"]
    console.print(
        f"90 % of the exact weight lies on {peaked['rows_of_90_percent']:g} rows, and without the first row on "
        f"{peaked['rows_of_90_percent_beyond_first']:g} (medians of queries); the first row has {peaked['weight_of_first_row']:.3f}. "
        "Means and cost of a query of one head:",
        markup=False,
    )
    header, *rows = text_rows(report)
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if estimated := sorted({name for row in report["settings"] for name in row["estimated"]}):
        console.print(f"estimates, not the paper's: {', '.join(estimated)}", markup=False)
