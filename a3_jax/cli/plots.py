"""Plots of sweeps and of the paper's figures."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from a3_jax.cli.files import partial_file, require_place
from a3_jax.cost.reproduction import Row

_SUFFIXES = (".png", ".svg")
_MOST_LINES = 10
# Okabe and Ito's, which people who take red for green tell apart too; black last.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def require_plot(file: Path) -> None:
    """Raises for what would be a pity to learn after the work: ValueError, or ModuleNotFoundError without matplotlib."""
    require_matplotlib()
    if file.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"a plot is a {' or '.join(_SUFFIXES)} file, got {file}")
    require_place(file)


def require_matplotlib() -> None:
    """ModuleNotFoundError without it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("no matplotlib", name="matplotlib")


def draw_sweep(report: Mapping[str, Any], file: Path) -> None:
    """Throughput and energy against what is swept first, a line for each combination of the others; or, where that would be too many
    lines or no numbers, one against the other."""
    from matplotlib.figure import Figure

    first, *others = report["over"]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in report["points"]:
        lines.setdefault(", ".join(f"{name} = {_short(row[name])}" for name in others), []).append(row)
    figure = Figure(figsize=(9, 4), layout="constrained")
    if len(lines) <= _MOST_LINES and all(isinstance(row[first], float) for row in report["points"]):
        left, right = figure.subplots(1, 2)
        for label, rows in lines.items():
            ordered = sorted(rows, key=lambda row: row[first])
            x = [row[first] for row in ordered]
            left.plot(x, [row["throughput"] / 1e6 for row in ordered], marker=".", label=label)
            right.plot(x, [row["energy_joules"] * 1e9 for row in ordered], marker=".", label=label)
        left.set(xlabel=first, ylabel="million queries a second", ylim=(0, None))
        right.set(xlabel=first, ylabel="nJ a query", ylim=(0, None))
        if others:
            left.legend(fontsize="small")
    else:
        axes = figure.add_subplot()
        axes.scatter(*_cloud(report["points"]), s=12)
        axes.set(xlabel="million queries a second", ylabel="nJ a query", xlim=(0, None), ylim=(0, None))
    front = [row for row in report["points"] if row.get("pareto")]
    for axes in figure.axes if front else ():
        x, y = _cloud(front)
        if len(figure.axes) == 2:
            x, y = [row[first] for row in front], (x if axes is figure.axes[0] else y)
        axes.scatter(x, y, s=60, facecolors="none", edgecolors="black", zorder=3)
    _save(figure, file)


def draw_reproduction(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Bars of the paper and ours by metric, and where the energy goes, each as PNG and SVG; the files, in order.

    OSError if the folder cannot be made.
    """
    from matplotlib import rc_context
    from matplotlib.rcsetup import cycler

    with rc_context({"axes.prop_cycle": cycler(color=COLORS)}):
        return _draw_reproduction(rows, folder)


def _draw_reproduction(rows: Sequence[Row], folder: Path) -> list[Path]:
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for metric in ("throughput_vs_base", "latency_vs_base", "energy_efficiency_vs_base"):
        figure = Figure(figsize=(9, 4), layout="constrained")
        _bars(figure.add_subplot(), [row for row in rows if row.metric == metric], metric)
        files += _save_both(figure, folder / metric)
    figure = Figure(figsize=(9, 4), layout="constrained")
    _shares(figure.add_subplot(), rows)
    return files + _save_both(figure, folder / "energy_share")


def _bars(axes: Any, rows: Sequence[Row], metric: str) -> None:
    for offset, label, values in (
        (-0.2, "paper", [row.paper for row in rows]),
        (0.2, "ours", [row.ours for row in rows]),
    ):
        axes.bar([place + offset for place in range(len(rows))], values, 0.4, label=label)
    axes.set_xlim(-0.6, len(rows) - 0.4)  # little room at the sides, more for the names
    labels = [f"{_words(row.workload)}\n{row.config}\n{row.kind}" for row in rows]
    axes.set_xticks(range(len(rows)), labels, fontsize=9)
    axes.set_ylabel(_words(metric).replace("vs base", "over the base accelerator's"))
    axes.legend()


def _shares(axes: Any, rows: Sequence[Row]) -> None:
    shares = [row for row in rows if row.metric.startswith("energy_share_")]
    places = list(dict.fromkeys((row.workload, row.config) for row in shares))
    bottoms = [0.0] * len(places)
    for metric in dict.fromkeys(row.metric for row in shares):
        found = {(row.workload, row.config): row.ours for row in shares if row.metric == metric}
        heights = [found.get(place, 0.0) for place in places]
        axes.bar(range(len(places)), heights, bottom=bottoms, label=_words(metric.removeprefix("energy_share_")))
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.set_xticks(range(len(places)), [f"{_words(task)}\n{config}" for task, config in places], fontsize=9)
    axes.set_ylabel("share of a query's energy, ours")
    axes.set_xlim(-0.6, len(places) - 0.4)  # little room at the sides, more for the names
    axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cloud(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["throughput"] / 1e6 for row in rows], [row["energy_joules"] * 1e9 for row in rows]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _save_both(figure: Any, stem: Path) -> list[Path]:
    files = [stem.with_suffix(suffix) for suffix in _SUFFIXES]
    for file in files:
        _save(figure, file)
    return files


def _save(figure: Any, file: Path) -> None:
    with partial_file(file) as partial:
        figure.savefig(partial, dpi=150)
