"""What a head looks at, drawn: exact weights beside those of the accelerators, with the rows that were selected."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from examples.demo.approximation import SETTINGS, Attended
from examples.demo.report import FigureBlock, TableBlock

SHOWN_QUERIES = 24
SHOWN_ROWS = 12  # of the table
SVG: Any = {
    "svg.hashsalt": "demo",
    "svg.fonttype": "none",
}  # the same markup each time; letters as text, to be found and read aloud
LEAST_WEIGHT = 1e-4  # that is told apart from none
CANDIDATE_COLOR = (0.99, 0.87, 0.71)
TITLES = {
    "exact": "exact attention",
    "base": "base accelerator: every row, 9-bit numbers",
    "conservative": "A3 conservative: M = n/2, T = 5 %",
    "aggressive": "A3 aggressive: M = n/8, T = 10 %",
}


def median_head(results: Mapping[str, Attended]) -> int:
    """The head that is neither among the best nor the worst: by softmax mass that the aggressive setting keeps."""
    mass = results["aggressive"].mass.mean(1)
    return int(np.argsort(mass, kind="stable")[len(mass) // 2])


def map_image(weights: np.ndarray, candidates: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """float [queries, n, 3]: blue for kept rows, the darker the heavier on a logarithmic scale; orange for other candidates; else white."""
    depth = 1 - np.log(np.clip(weights, LEAST_WEIGHT, 1)) / np.log(LEAST_WEIGHT)
    blue = 1 - (0.15 + 0.85 * depth[..., None]) * (1 - np.array([0.03, 0.19, 0.42]))
    image = np.ones((*weights.shape, 3))
    image[candidates] = CANDIDATE_COLOR
    return np.where((kept & (weights >= LEAST_WEIGHT))[..., None], blue, image)


def map_figure(results: Mapping[str, Attended], head: int, tokens: Sequence[str]) -> FigureBlock:
    """A panel for each attention: the last queries below each other, every row of the key from left to right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8.5), layout="constrained")
    names = list(TITLES)
    panels = figure.subplots(len(names), 1, sharex=True)
    for axes, name in zip(panels, names, strict=True):
        found = results[name]
        parts = (part[head, -SHOWN_QUERIES:] for part in (found.weights, found.candidates, found.kept))
        marks = map_image(*parts) if name in _selecting() else map_image(*_all_rows(found.weights[head]))
        axes.imshow(marks, aspect="auto", interpolation="none")
        axes.set_title(TITLES[name], fontsize="medium", loc="left")
        queries = range(0, SHOWN_QUERIES, 4)
        axes.set_yticks(queries, [_tick(tokens[len(tokens) - SHOWN_QUERIES + q]) for q in queries], fontsize=9)
    places = range(0, len(tokens), 16)
    panels[-1].set_xticks(places, [f"{_tick(tokens[place])} {place}" for place in places], rotation=90, fontsize=9)
    figure.supylabel("query, every fourth named")
    figure.supxlabel("row of the key: a token of the text and its number")
    return FigureBlock(
        svg=svg_of(figure),
        least_pixels=864,
        description="Four maps of attention weights, queries against rows: exact, base, conservative and aggressive",
        look_at=(
            "Blue: the row has a weight, the darker the larger (white below 0.0001). Orange: a candidate, whose dot product was computed "
            "and found too small. White between them: never looked at, which is what A3 saves; where the exact map is dark there, "
            "it is also what A3 loses."
        ),
    )


def rows_table(results: Mapping[str, Attended], head: int, tokens: Sequence[str]) -> TableBlock:
    """The last query's heaviest rows, with what became of each."""
    weights = results["exact"].weights[head, -1]
    heaviest = np.argsort(-weights, kind="stable")[:SHOWN_ROWS]
    rows = [
        [
            f"{row} {_shown(tokens[int(row)])}",
            f"{weights[row]:.4f}",
            f"{results['base'].weights[head, -1, row]:.4f}",
            *(_fate(results[setting.name], head, int(row)) for setting in SETTINGS),
        ]
        for row in heaviest
    ]
    return TableBlock(
        header=("row and token", "exact weight", "base", *(setting.name for setting in SETTINGS)),
        rows=rows,
        look_at=(
            f"The last line of each map in numbers: the query is {_shown(tokens[-1])}, and these are the {len(rows)} rows that exact "
            "attention gives most weight. A weight: the row was kept. Dropped: a candidate that post-scoring found too small. "
            "Not found: the search gave it no positive score, and its dot product was never computed."
        ),
    )


def _fate(found: Attended, head: int, row: int) -> str:
    if found.kept[head, -1, row]:
        return f"{found.weights[head, -1, row]:.4f}"
    return "dropped" if found.candidates[head, -1, row] else "not found"


def _selecting() -> set[str]:
    return {setting.name for setting in SETTINGS}


def _all_rows(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nothing was selected, so that nothing is marked: weights alone."""
    shown = weights[-SHOWN_QUERIES:]
    return shown, np.zeros(shown.shape, bool), np.ones(shown.shape, bool)


def _shown(token: str) -> str:
    """In quotes, a space or a line's end to be seen too."""
    return repr(token)


def _tick(token: str) -> str:
    """For matplotlib, which would take what is between two dollars for mathematics."""
    return _shown(token).replace("$", r"\$")


def svg_of(figure) -> str:
    """The same markup for the same figure."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(SVG):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=150)
    return without_metadata(buffer.getvalue())


def without_metadata(svg: str) -> str:
    """Without the date of the file, and the program that wrote it."""
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
