"""The figure of `anyprec_peers`: KL against bits read, a panel for each model and text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "anyprec_peers.svg"
_STYLES: Mapping[str, dict[str, Any]] = {
    "best": {"marker": "o", "color": "tab:blue", "linewidth": 2.5},
    "fast": {"marker": "o", "color": "tab:cyan"},
    "authors": {"marker": "s", "color": "tab:gray"},
    "k-means, each alone": {"marker": "^", "color": "tab:green", "linestyle": "--"},
    "GPTQ": {"marker": "v", "color": "tab:orange", "linestyle": "--"},
    "round to nearest": {"marker": "x", "color": "tab:brown", "linestyle": ":"},
    "llama.cpp": {"marker": "+", "color": "tab:red", "linestyle": "--"},
    "llama.cpp, imatrix": {"marker": "D", "color": "tab:red"},
}
_NAMES = {"smollm2": "SmolLM2-135M (Q4_1 once)", "glassllm": "glassllm 0.85M", "gemma3": "Gemma 3 270M (Q4_K_M once)"}


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Rows of panels are texts, columns models; both axes are shared within a column."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    models = [model for model in _NAMES if model in results]
    texts = list(dict.fromkeys(text for model in models for text in results[model]["rows"][0]["texts"]))
    # Text stays text, and the same numbers give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bandwise"}):
        figure = Figure(figsize=(5 * len(models), 3.6 * len(texts)), layout="constrained")
        panels = figure.subplots(len(texts), len(models), sharex="col", sharey="col", squeeze=False)
        for column, model in zip(panels.T, models, strict=True):
            for axes, text in zip(column, texts, strict=True):
                for method, style in _STYLES.items():
                    if own := curve(results[model]["rows"], method, text):
                        axes.plot(*zip(*own, strict=True), label=method, **style)
                axes.set(title=f"{_NAMES[model]}, {text}", yscale="log")
                axes.grid(visible=True, alpha=0.3)
            column[-1].set_xlabel("bits read per weight of the linears")
        for row in panels:
            row[0].set_ylabel("KL, nats per token")
        panels[0, -1].legend(fontsize="small")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


def curve(rows: list[dict[str, Any]], method: str, text: str) -> list[tuple[float, float]]:
    """(bits read, KL) of a method, by bits; left out is what has no divergence that a logarithm takes, and what reads more than float16."""
    own = [
        (row["bits_read"], row["texts"][text]["kl"])
        for row in rows
        if row["method"] == method and row["bits_read"] <= 16 and row["texts"].get(text, {"kl": 0})["kl"] > 0
    ]
    return sorted(own)
