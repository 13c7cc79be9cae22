"""The checker of pages: what it runs and in what order, what it compares, and that nothing slips past it. On pages made up here."""

import functools
from pathlib import Path

import pytest

from tests.documentation import check
from tests.documentation.commands import complaint
from tests.documentation.pages import ROOT, blocks, pages, steps


def page_of(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text.replace("'''", "```"), encoding="utf-8")
    return page


def run(page: Path, folder: Path) -> list[str]:
    """What fails of a page that is run in `folder`."""
    return list(check.run_pages([[page]], folder, folder))


def test_steps_are_the_commands_and_the_python_in_order(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        "# T\n'''\na --b  # why\n# nothing\nc \\\n    --d\n'''\nprose\n'''python\nx = 1\n\ny = 2\n'''\n'''text\nout\n'''\n",
    )
    found = [(step.line, step.text) for block in blocks(page) for step in steps(block)]
    assert found == [(3, "a --b"), (5, "c --d"), (10, "x = 1\n\ny = 2")]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("'''bash\nrm x\n'''\n", "page.md:1: a block should be one of"),
        ("'''console\n$ x\n'''\n", "page.md:1"),
        ("one\n'''text\nprinted\n'''\n", "page.md:3: `text` is what the block before it printed"),
        ("'''\nnever ends\n", "page.md:1: this block does not end"),
    ],
)
def test_a_block_that_would_not_be_checked_is_refused(tmp_path: Path, text: str, wrong: str) -> None:
    assert wrong in next(check.unchecked([page_of(tmp_path, text)]))


def test_a_command_that_fails_is_named_with_page_and_line(tmp_path: Path) -> None:
    page = page_of(
        tmp_path, "'''\necho one > file\ncat file\n'''\n\n'''\ncat missing  # not there\necho later > later\n'''\n"
    )
    (failure,) = run(page, tmp_path / "scratch")
    assert failure.startswith(f"{page}:7: cat missing\n  ended with status 1:")
    assert "missing: No such file" in failure


def test_python_that_fails_is_named_with_the_line_of_the_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, "text\n\n'''python\nx = 1\nassert x == 2\n'''\n")
    (failure,) = run(page, tmp_path / "scratch")
    assert failure.startswith(f"{page}:4: x = 1")
    assert "line 5" in failure and "AssertionError" in failure


def test_a_page_runs_in_a_folder_of_its_own_with_the_data(tmp_path: Path) -> None:
    page = page_of(tmp_path, "'''\npwd\nls -A\nls .cache/data\n'''\n'''text\n.cache\nmarker\n'''\n")
    data = tmp_path / "data"
    data.mkdir()
    (data / "marker").touch()
    assert list(check.run_pages([[page]], tmp_path / "scratch", data)) == []


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        ("3 rows in  0.5 s\nend", None),  # numbers and blanks may differ
        ("12 rows in 1e-3 s\n...\nend", None),
        ("between\nend", None),  # both outputs, as on a terminal
        ("end\n1 rows in 2 s", "1 rows in 2 s"),  # in order
        ("1 columns in 2 s", "1 columns in 2 s"),
    ],
)
def test_output_is_compared_but_for_numbers(tmp_path: Path, shown: str, missing: str | None) -> None:
    printed = "'''\necho '7 rows in 1.25 s'\necho between >&2\necho end\n'''\n"
    failures = run(page_of(tmp_path, f"{printed}'''text\n{shown}\n'''\n"), tmp_path / "scratch")
    assert [failure.partition(": ")[2].splitlines()[-1] for failure in failures] == (
        [f"  is not what the block before it prints: {missing!r}"] if missing else []
    )


def test_names_of_the_table_stand_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(data: Path, path: Path) -> None:
        made.append(path.name)
        path.write_text("real", encoding="utf-8")

    table = {name: functools.partial(make) for name in ("MODEL", "text.txt", "model")}
    monkeypatch.setattr(check, "FILES", table)
    commands = "'''\ntest $(cat MODEL) = real\necho --model x.MODEL my-model\n'''\n"
    python = "'''python\nmodel = open('text.txt')\nassert open(\"text.txt\").read() == 'real'\n'''\n"
    assert run(page_of(tmp_path, commands + python), tmp_path / "scratch") == []
    assert made == ["MODEL", "text.txt"]


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("make test", None),
        ("make bench-quality WIKITEXT=FILE", None),
        ("make tset", "tset"),
        ("make test FILE=x", "FILE"),
        ("pip install '.[ingest]'", None),
        ("pip install '.[nonsense]'", "nonsense"),
        ("anyprec evaluate OUT --text x", None),
        ("anyprec evalute OUT", "evalute"),
        ("ginex generate rmat graph --scale 16", None),
        ("ginex generate rmat graph --scal=16", "--scal"),
        ("a3", "no command"),
        ("rm -rf /", "nothing is known of rm"),
    ],
)
def test_commands_that_are_not_run_must_exist(command: str, wrong: str | None) -> None:
    found = complaint(command)
    assert found is None if wrong is None else wrong in str(found)


def test_commands_that_are_not_run_have_a_reason_and_are_on_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(check.unchecked(pages())) == []
    monkeypatch.setitem(check.NOT_RUN, "make nothing", "it was on a page once")
    assert list(check.unchecked(pages())) == ["bindings.py: no page has `make nothing`, which NOT_RUN lists"]


def test_a_page_that_goes_on_runs_after_the_one_before_it() -> None:
    quantize, serve, graph = (ROOT / "docs" / "howto" / f"{name}.md" for name in ("quantize", "serve", "graph"))
    assert check.with_those_before([graph, serve]) == [[graph], [quantize, serve]]
    assert check.with_those_before([quantize, serve, graph]) == [[quantize, serve], [graph]]
