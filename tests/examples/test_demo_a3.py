"""The demo's part on A3, on the tiny random model: it draws what the library selects, and prints what `a3 cost` prints."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax import select_candidates, sort_keys
from a3_jax.cli import main
from a3_jax.cost.reproduction import reproduce
from anyprec_jax.models.decoder import embed, layer_forward
from examples.demo import a3
from examples.demo.accelerator_cost import reproduction_table
from examples.demo.approximation import Attended, attend_all
from examples.demo.attention_inputs import AttentionInputs, attention_inputs
from examples.demo.attention_map import map_figure, map_image, median_head, rows_table
from examples.demo.report import FigureBlock, Section, TableBlock, write_report
from tests.anyprec_jax.tiny import tiny_model

ROWS, QUERIES, HEADS, KEY_HEADS = 96, 32, 6, 2
LAYER = 2
WORDS = [f"word {row}" for row in range(ROWS)]
FRACTIONS = {"conservative": 0.5, "aggressive": 0.125}
LABELS = {"rows, n": "n", "iterations, M": "M", "candidates, C": "C", "rows kept, K": "K"}
GAPS = {"conservative": np.log(100 / 5), "aggressive": np.log(100 / 10)}


@pytest.fixture(scope="module")
def inputs() -> AttentionInputs:
    tokens = np.random.default_rng(0).integers(0, 256, ROWS)
    return attention_inputs(tiny_model(), jnp.asarray(tokens), LAYER)


@pytest.fixture(scope="module")
def results(inputs: AttentionInputs) -> dict[str, Attended]:
    return attend_all(inputs, QUERIES)


@pytest.fixture(scope="module")
def demo(inputs: AttentionInputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Section, Path]:
    out = tmp_path_factory.mktemp("demo")
    return a3.section(inputs, WORDS, out, name="a layer", num_queries=QUERIES), out


def weights_by_hand(inputs: AttentionInputs, head: int, position: int) -> np.ndarray:
    """float64 [position + 1]"""
    key = np.asarray(inputs.keys[head // (HEADS // KEY_HEADS)], np.float64)[: position + 1]
    scores = key @ np.asarray(inputs.queries[head, position], np.float64)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def test_the_inputs_are_those_that_the_layer_attends_with(inputs: AttentionInputs) -> None:
    """A layer that is given our attention over these inputs, in place of its own, computes what it computed."""
    model = tiny_model()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, ROWS))
    ours = np.zeros((ROWS, HEADS, inputs.values.shape[2]), np.float32)
    for head in range(HEADS):
        value = np.asarray(inputs.values[head // (HEADS // KEY_HEADS)], np.float64)
        for position in range(ROWS):
            ours[position, head] = weights_by_hand(inputs, head, position) @ value[: position + 1]
    hidden = embed(model.params, tokens[None], model.config)
    layers = [{name: stack[index] for name, stack in model.params["layers"].items()} for index in range(LAYER + 1)]
    for layer in layers[:-1]:
        hidden = layer_forward(layer, hidden, model.config)
    own = layer_forward(layers[-1], hidden, model.config)
    replaced = layer_forward(
        layers[-1], hidden, model.config, attention=lambda query, key, value, mask: jnp.asarray(ours)
    )
    np.testing.assert_allclose(replaced, own, rtol=1e-4, atol=1e-5)


def test_candidates_and_kept_rows_are_those_of_the_algorithm(
    inputs: AttentionInputs, results: dict[str, Attended]
) -> None:
    """Candidates: of `select_candidates`, in another form and with fractions. Kept: the paper's threshold on exact weights, by hand."""
    visible = np.arange(ROWS) <= np.arange(ROWS - QUERIES, ROWS)[:, None]
    for name in FRACTIONS:
        found = results[name]
        pick = jax.jit(
            jax.vmap(
                lambda query, mask, keys, fraction=FRACTIONS[name]: select_candidates(
                    query, keys, num_iterations=fraction, mask=mask
                ),
                (0, 0, None),
            )
        )
        for head in range(HEADS):
            keys = sort_keys(inputs.keys[head // (HEADS // KEY_HEADS)])
            wanted = np.asarray(pick(inputs.queries[head, -QUERIES:], visible, keys))
            some = wanted.any(1)  # others have a fallback
            assert some.sum() > QUERIES // 2
            np.testing.assert_array_equal(found.candidates[head][some], wanted[some])
            for query in range(QUERIES):
                weights = np.zeros(ROWS)
                position = ROWS - QUERIES + query
                weights[: position + 1] = weights_by_hand(inputs, head, position)
                candidates = found.candidates[head, query]
                kept = candidates & (weights >= weights[candidates].max() * np.exp(-GAPS[name]))
                np.testing.assert_array_equal(found.kept[head, query], kept)
                assert found.mass[head, query] == pytest.approx(weights[kept].sum(), rel=1e-4)
                np.testing.assert_allclose(
                    found.weights[head, query], np.where(kept, weights / weights[kept].sum(), 0), atol=1e-5
                )
        assert (found.candidates.sum(2) == found.C).all() and (found.kept.sum(2) == found.K).all()
        assert (np.ceil(FRACTIONS[name] * visible.sum(1)) == found.M).all()


def test_every_row_has_its_colour() -> None:
    weights = np.array([[0.0, 0.0, 1.0, 0.01]])
    candidates = np.array([[False, True, True, True]])
    image = map_image(weights, candidates, np.array([[False, False, True, True]]))
    white, orange, dark, light = image[0]
    assert (white == 1).all()
    assert orange[0] > orange[2]
    assert dark[2] > dark[0] and light[2] > light[0] and dark.sum() < light.sum() < 3


def test_the_table_of_rows_tells_their_fates(results: dict[str, Attended]) -> None:
    table = rows_table(results, 1, [f"${row}" for row in range(ROWS)])
    exact = results["exact"].weights[1, -1]
    rows = [int(cells[0].split()[0]) for cells in table.rows]
    assert rows == sorted(range(ROWS), key=lambda row: (-exact[row], row))[: len(rows)]
    for row, cells in zip(rows, table.rows, strict=True):
        for name, cell in zip(FRACTIONS, cells[3:], strict=True):
            found = results[name]
            is_candidate, is_kept = found.candidates[1, -1, row], found.kept[1, -1, row]
            assert (cell == "not found") == (not is_candidate)
            assert (cell == "dropped") == (is_candidate and not is_kept)
            assert not is_kept or float(cell) == pytest.approx(found.weights[1, -1, row], abs=1e-4)


def test_the_cost_table_is_what_the_command_prints(
    demo: tuple[Section, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    section, out = demo
    table = next(block for block in section.blocks if isinstance(block, TableBlock) and "a query" in block.header[0])
    rows = {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}
    capsys.readouterr()
    for name in FRACTIONS:
        assert main(["cost", "--workload", str(out / "a3" / f"{name}.json")]) == 0
        printed = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
        assert [rows["energy"][column] for column in ("base", name)] == re.findall(r"[\d.]+ [nup]J", printed["energy"])
        assert all(rows["bottleneck"][column] in printed["bottleneck"] for column in ("base", name))
        assert main(["cost", "--json", "--workload", str(out / "a3" / f"{name}.json")]) == 0
        report = json.loads(capsys.readouterr().out)
        for pipeline, column in (("base", "base"), ("approximate", name)):
            found = report[pipeline]
            assert rows["cycles from query to query"][column] == f"{found['interval']:.1f}"
            assert rows["cycles of latency"][column] == f"{found['latency']:.1f}"
            seconds, unit = rows["seconds from query to query"][column].split()
            assert unit == "ns" and float(seconds) == pytest.approx(found["cost"]["seconds"] * 1e9, rel=1e-3)
            assert rows["estimates"][column] == (", ".join(found["cost"]["estimated"]) or "none")
        for metric, ratio in report["vs_base"].items():
            assert rows[metric.replace("_", " ")][name] == f"{ratio:.2f}"
        counts = {count: float(rows[label][name]) for label, count in LABELS.items()}
        for count, mean in counts.items():
            assert mean == pytest.approx(np.mean(report["workload"][count]), abs=0.05)
        assert report["workload"]["queries_per_key"] == QUERIES * HEADS / KEY_HEADS


def test_all_of_the_papers_numbers_are_in_the_report(demo: tuple[Section, Path], tmp_path: Path) -> None:
    section, _ = demo
    rows = [row for row in reproduce() if row.paper is not None]
    table = reproduction_table(reproduce())
    assert len(table.rows) == len(rows) and "unexplained" in table.look_at
    for row, cells in zip(rows, table.rows, strict=True):
        assert cells[1:3] == [row.workload.replace("_", " "), row.config]
        ours, paper = (float(cell.split()[0]) for cell in (cells[5], cells[4]))
        assert ours / paper - 1 == pytest.approx(float(cells[6].split()[0]) / 100, abs=2e-4)
    figures = [block for block in section.blocks if isinstance(block, FigureBlock)]
    assert len(figures) == 5
    html = write_report(tmp_path / "report.html", [section]).read_text(encoding="utf-8")
    assert html.count("<svg") == 5 and "<metadata" not in html
    assert not re.search(
        r"<(script|link|iframe|object|base)\b|(?<!xlink:)\b(src|href)=|xlink:href=\"(?!#|data:image/png)|@import", html
    )


@pytest.mark.slow
def test_the_same_map_is_the_same_markup(demo: tuple[Section, Path], inputs: AttentionInputs) -> None:
    attended = attend_all(inputs, QUERIES)
    again = map_figure(attended, median_head(attended), WORDS)
    assert again.to_html() == demo[0].blocks[0].to_html()


def test_the_data_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make demo"):
        a3.run(tmp_path, tmp_path)
