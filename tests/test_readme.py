"""The README and the how-to pages do as they say, in the small: every snippet runs as it stands, on tiny models, and every flag exists.

`make check-docs` runs everything, the commands and the tutorials too, on real data.
"""

import re
from pathlib import Path

import pytest

from tests.documentation.commands import PROGRAMS, complaint
from tests.documentation.pages import ROOT, blocks, pages, snippets, steps

NUMBER = r"[0-9.e+-]+"


def run(page: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What each snippet of a page prints, run one after the other in the current folder."""
    printed = []
    for snippet in snippets(ROOT / page):
        exec(compile(snippet, page, "exec"), {"__name__": "page"})
        printed.append(capsys.readouterr().out)
    return printed


@pytest.fixture
def with_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder but for two texts and two models of the names that pages use."""
    from tests.anyprec_jax.tiny import TEXT, save_tiny_model

    monkeypatch.chdir(tmp_path)
    for name in ("text.txt", "held-out.txt"):
        Path(name).write_text(40 * TEXT, encoding="utf-8")
    for name in ("model", "model.gguf"):
        save_tiny_model(tmp_path / name)


@pytest.mark.usefixtures("with_models")
def test_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    model, graph, attention = run("README.md", capsys)
    assert len(model.splitlines()) >= 2
    assert len(graph.splitlines()) == 12  # four batches of 500 of 2,000 nodes, three times
    assert re.match(r"\(\d+, 64\) \[\(\d+, 10\), \(500, 10\)\]", graph)
    assert re.fullmatch(r"\d+ of 320 rows looked at, \d+ kept, error 0\.\d+\n", attention)


def test_examples_of_the_readme_are_short() -> None:
    assert [len(snippet.splitlines()) <= 15 for snippet in snippets(ROOT / "README.md")] == [True] * 3


@pytest.mark.usefixtures("with_models")
def test_quantizing_and_serving(capsys: pytest.CaptureFixture[str]) -> None:
    model, matrix = run("docs/howto/quantize.md", capsys)
    assert [line.split()[0] for line in model.splitlines()] == ["reference", "3", "4", "5", "6", "7", "8"]
    errors = [float(line.split()[1]) for line in matrix.splitlines()]
    assert errors == sorted(errors, reverse=True)
    text, logits, mixed = run("docs/howto/serve.md", capsys)
    assert text
    assert logits == "(1, 19, 260)\n"  # a token for every byte
    assert re.fullmatch(rf"\(3, 512\) {NUMBER}\n", mixed)


def test_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    sampled, loaded = run("docs/howto/graph.md", capsys)
    assert re.match(r"\(\d+, 64\) \[\(\d+, 10\), \(500, 10\)\]", sampled)
    assert re.match(r"\d+% of the rows were in the cache MemorySplit", loaded)


def test_an_accelerator(capsys: pytest.CaptureFixture[str]) -> None:
    (printed,) = run("docs/howto/accelerator.md", capsys)
    assert re.fullmatch(r"\d+ of 320 rows looked at, \d+ kept, error 0\.\d+\n\d+ \d+ \(64,\)\n", printed)


@pytest.mark.parametrize("program", PROGRAMS)
def test_flags_of_the_commands_exist(program: str) -> None:
    """Every command of a program names a subcommand and flags that there are."""
    commands = [step for page in pages() for block in blocks(page) for step in steps(block) if step.kind == "commands"]
    own = [step for step in commands if step.text.startswith(f"{program} ")]
    assert len(own) > 4
    for step in own:
        assert complaint(step.text) is None, step
