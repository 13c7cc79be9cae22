"""What the site is made from: every public name and every record is on a page, and the maps from papers to code lead somewhere."""

import importlib
import inspect
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.documentation.commands import complaint

ROOT = Path(__file__).parents[1]
PACKAGES = ("anyprec_jax", "ginex_jax", "a3_jax")


RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def hook(name: str) -> ModuleType:
    """A module of `docs/`, which is no part of a package: with its neighbours in reach, as mkdocs loads it."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_page_has_every_public_name(package: str) -> None:
    module = importlib.import_module(package)
    public = {
        name for name, value in vars(module).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    lines = [
        line.removeprefix("::: ") for line in hook("api_pages").page(package).splitlines() if line.startswith("::: ")
    ]
    assert {line.rsplit(".", 1)[1] for line in lines} == public
    for line in lines:
        where, name = line.rsplit(".", 1)
        assert getattr(importlib.import_module(where), name) is getattr(module, name)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_function_and_class_is_described(package: str) -> None:
    module = importlib.import_module(package)
    for name, value in vars(module).items():
        if inspect.isfunction(value) or inspect.isclass(value):
            text = value.__doc__ or ""
            assert text and not text.startswith(f"{name}("), f"{package}.{name} has no docstring"  # a dataclass's own


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in menu


def numbers(value: Any, *, rows: int, values: int) -> Iterator[float]:
    """All numbers of a record but those that the page may cut: entries and values of a list beyond the first so many."""
    if isinstance(value, dict):
        for child in list(value.values())[:rows]:
            yield from numbers(child, rows=rows, values=values)
    elif isinstance(value, list):
        for child in value[: rows if any(isinstance(x, dict | list) for x in value) else values]:
            yield from numbers(child, rows=rows, values=values)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield value


def digits(number: float) -> float:
    """A number without its sign and its factor of a power of 1,000, in which a page may write it."""
    return abs(number) / 1000.0 ** math.floor(math.log(abs(number), 1000)) if number else 0.0


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_page_has_every_number_of_its_record(record: Path) -> None:
    pages = hook("benchmark_pages")
    contents, page = json.loads(record.read_text(encoding="utf-8")), pages.page(record)
    assert f"`{contents['commit']}`" in page
    assert contents["time"] in page
    assert contents["machine"]["processor"] in page
    assert contents["versions"]["jax"] in page
    assert all(name in page for name in contents["arguments"])
    assert ("Made from a changed tree" in page) == contents["commit"].endswith("-dirty")
    words = re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", page.split("## Numbers", 1)[1])
    shown = [digits(float(word.replace(",", ""))) for word in words]
    wanted = list(numbers(contents["results"], rows=pages.MAX_ROWS, values=pages.MAX_VALUES))
    assert len(wanted) <= len(shown)
    for number in wanted:  # four digits: half of a unit of the last one, and 999.96 may be written 1,000
        candidates = (digits(number), 1000 * digits(number), digits(number) / 1000)
        assert any(abs(x - c) <= 5.1e-4 * c + 1e-12 for x in shown for c in candidates), number


def test_every_benchmark_says_what_it_claims_and_has_a_command_that_there_is() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for benchmark in hook("benchmark_pages").all_benchmarks():
        assert benchmark.claim and benchmark.beside, benchmark.name
        target = benchmark.command.removeprefix("make ")
        assert f"\n{target}:" in makefile or benchmark.command.startswith(f"python -m benchmarks.{benchmark.name}")


def test_every_benchmark_and_every_record_is_in_the_table() -> None:
    table = hook("benchmark_pages").overview()
    scripts = {
        script.stem: text
        for script in (ROOT / "benchmarks").glob("*.py")
        if re.search(r"(?<!def )\brecord\(", text := script.read_text(encoding="utf-8")) and script.stem != "timing"
    }
    assert len(table.splitlines()) == 2 + len(scripts)  # and none that no script writes
    assert len(RECORDS) == len(re.findall(r"\(benchmarks/\w+\.md\)", table))
    assert all(f"(benchmarks/{record.stem}.md)" in table for record in RECORDS)
    without = {name for name in scripts if not any(record.stem.startswith(name) for record in RECORDS)}
    assert table.count("no record yet") == len(without)
    assert hook("benchmark_pages").PLACE in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_a_new_benchmark_a_new_record_and_a_stray_one_show_up(tmp_path: Path) -> None:
    pages = hook("benchmark_pages")
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    script = 'CLAIM\n\n    python -m benchmarks.NAME --fast\n"""\nfrom benchmarks.timing import record\nrecord("NAME", {}, {})\n'
    for name, claim in (("sky", "Claim: it is blue.\nBeside: grass."), ("sea", "It is deep.")):
        (tmp_path / "benchmarks" / f"{name}.py").write_text(
            '"""' + script.replace("CLAIM", claim).replace("NAME", name)
        )
    (tmp_path / "Makefile").write_text("bench-sky: installed\n\tpython -m benchmarks.sky\n")
    for name in ("sky_at_noon", "moon"):
        hues, long = [{"a": 7, "b": 8}] * 99, list(range(40, 60))
        numbers = {"blue_s": 0.00123, "rows_per_s": 1234.5, "hues": hues, "pairs": [[1, 2], [3, 4]], "long": long}
        record = {"commit": "abc-dirty", "time": "today", "results": numbers}
        (results / f"{name}.json").write_text(json.dumps(record))
    table = pages.overview(tmp_path)
    assert "| `make bench-sky` | it is blue | grass | [sky_at_noon](benchmarks/sky_at_noon.md) |" in table
    assert "| `python -m benchmarks.sea --fast` | sea |  | no record yet |" in table
    assert "no script of today writes: [moon]" in table
    page = pages.page(results / "sky_at_noon.json", tmp_path)
    assert "**Claim:** it is blue." in page and "Made from a changed tree" in page
    assert "| blue_s | 1.23 ms |" in page and "| rows_per_s | 1,234 |" in page
    assert "| 1, 2 |\n| 3, 4 |" in page
    assert "50, 51, *and 8 more*" in page
    assert page.count("| 7 | 8 |") == pages.MAX_ROWS
    assert f"{99 - pages.MAX_ROWS} more of 99 entries" in page


def test_a_record_belongs_to_the_longest_name_it_begins_with() -> None:
    owner = hook("benchmark_pages")._owner
    assert owner("sky_at_noon", ["sky", "sky_at"]) == owner("sky_at_noon", ["sky_at", "sky"]) == "sky_at"
    assert owner("skylark", ["sky"]) is None and owner("sky", ["sky", "sky_at"]) == "sky"


def test_records_are_in_the_menu_and_figures_on_their_pages() -> None:
    pages = hook("benchmark_pages")
    config = SimpleNamespace(nav=[{"Start": "index.md"}, {"Benchmarks": "benchmarks.md"}])
    menu = pages.on_config(config).nav[1]["Benchmarks"]
    assert [next(iter(entry.values())) for entry in menu[1]["Records"]] == [f"benchmarks/{r.stem}.md" for r in RECORDS]
    for figure in (ROOT / "docs" / "figures").glob("*.svg"):
        record = ROOT / "benchmarks" / "results" / f"{figure.stem}.json"
        assert f"(../figures/{figure.name})" in pages.page(record)


def code_of_the_map(package: str) -> list[str]:
    """The right column of the table from the paper to the code."""
    text = (ROOT / "docs" / f"{package.removesuffix('_jax')}.md").read_text(encoding="utf-8")
    rows = text.split("## Where things are\n", 1)[1].split("\n## ", 1)[0].splitlines()
    return [row.strip("| ").rpartition(" | ")[2] for row in rows if row.startswith("|")][2:]


def modules_of(package: str, place: str) -> list[Path]:
    """The files of `module.py`, of a pattern or of `folder/`."""
    room = ROOT if place.startswith("examples/") else ROOT / package
    return sorted(room.glob(f"{place}**/*" if place.endswith("/") else place))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_from_the_paper_leads_to_code_that_there_is(package: str) -> None:
    functions = 0
    for code in code_of_the_map(package):
        names = re.findall(r"`([^`]+)`", code)
        places = [name for name in names if name.endswith((".py", "/"))]
        assert names and all(modules_of(package, place) for place in places), code
        defined = {
            name: value
            for place in places
            for file in modules_of(package, place)
            if file.suffix == ".py" and file.is_relative_to(ROOT / package)
            for module in [importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))]
            for name, value in vars(module).items()
            if callable(value) and value.__module__ == module.__name__
        }
        for name in set(names) - set(places):
            if " " in name:
                assert complaint(name) is None, code
            else:
                first, *rest = name.split(".")
                assert first in defined, f"{first} is not in {places}"
                assert all(hasattr(defined[first], method) for method in rest), name
                functions += 1
    assert functions >= 15
