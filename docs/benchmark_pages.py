"""A hook of mkdocs: a page for every record in `benchmarks/results`, and the table of all benchmarks on `benchmarks.md`.

Made when the site is, from the records, the docstrings of `benchmarks/*.py` and the Makefile: nothing here knows a benchmark by name.
`python docs/benchmark_pages.py [RECORD]` writes the table, or a record's page, to the terminal.
"""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from record_tables import MAX_ROWS, MAX_VALUES, cell, flat, table, tables

_ROOT = Path(__file__).parents[1]
PLACE = "<!-- the table of benchmarks: docs/benchmark_pages.py -->"


class Benchmark(NamedTuple):
    """A script that keeps records: its claim, what that is measured against, what else its docstring says, and what starts it."""

    name: str
    claim: str
    beside: str
    text: str
    command: str
    records: tuple[Path, ...]


def on_config(config: Any, **_: Any) -> Any:
    """Gives every record a place in the menu, below the page of benchmarks."""
    for entry in config.nav:
        if entry.get("Benchmarks") == "benchmarks.md":
            records = [{record.stem: f"benchmarks/{record.stem}.md"} for record in all_records()]
            entry["Benchmarks"] = [{"All benchmarks": "benchmarks.md"}, {"Records": records}]
    return config


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Adds a page for every record, and the record itself."""
    from mkdocs.structure.files import File

    for record in all_records():
        files.append(File.generated(config, f"benchmarks/{record.stem}.md", content=page(record)))
        files.append(File.generated(config, f"benchmarks/{record.name}", content=record.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts the table where `benchmarks.md` wants it."""
    return markdown.replace(PLACE, overview()) if page.file.src_uri == "benchmarks.md" else markdown


def all_records(root: Path = _ROOT) -> list[Path]:
    """By name."""
    return sorted((root / "benchmarks" / "results").glob("*.json"))


def all_benchmarks(root: Path = _ROOT) -> list[Benchmark]:
    """Every script of `benchmarks/` that calls `record`, by name; a record is of the one with the longest name that it begins with."""
    scripts = {}
    for script in sorted((root / "benchmarks").glob("*.py")):
        tree = ast.parse(script.read_text(encoding="utf-8"))
        if script.stem != "timing" and any(_calls_record(node) for node in ast.walk(tree)):
            scripts[script.stem] = ast.get_docstring(tree) or ""
    owners = {record: _owner(record.stem, list(scripts)) for record in all_records(root)}
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    return [
        Benchmark(
            name,
            *claim_of(docstring),
            _command(name, docstring, makefile),
            tuple(record for record, owner in owners.items() if owner == name),
        )
        for name, docstring in scripts.items()
    ]


def _calls_record(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and (
        (isinstance(node.func, ast.Name) and node.func.id == "record")
        or (isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "timing.record")
    )


def _owner(record: str, scripts: list[str]) -> str | None:
    return max((name for name in scripts if record == name or record.startswith(f"{name}_")), key=len, default=None)


def claim_of(docstring: str) -> tuple[str, str, str]:
    """What follows `Claim:` and `Beside:` in the first paragraph, on one line each, and everything else."""
    first, _, rest = docstring.partition("\n\n")
    found = re.fullmatch(r"Claim: (.*?)(?:\nBeside: (.*))?", first, re.DOTALL)
    if found is None:
        return "", "", docstring
    claim, beside = (" ".join((part or "").split()).rstrip(".") for part in found.groups())
    return claim, beside, rest


def _command(name: str, docstring: str, makefile: str) -> str:
    """The target of the Makefile that runs it, or else how its docstring calls it."""
    for target, recipe in re.findall(r"^([a-z0-9-]+):.*\n((?:\t.*\n?)+)", makefile, re.MULTILINE):
        if re.search(rf"-m benchmarks\.{name}\b", recipe):
            return f"make {target}"
    called = re.search(rf"^ *(python -m benchmarks\.{name}\b.*)$", docstring, re.MULTILINE)
    return called[1] if called else f"python -m benchmarks.{name}"


def overview(root: Path = _ROOT) -> str:
    """Markdown: a row for every benchmark, those without a record too; then records that belong to none."""
    benchmarks = all_benchmarks(root)
    rows = [
        [f"`{benchmark.command}`", benchmark.claim or benchmark.name, benchmark.beside, _links(benchmark.records)]
        for benchmark in benchmarks
    ]
    blocks = [table(["command", "claim", "beside: bound or opponent", "record"], rows)]
    strays = set(all_records(root)) - {record for benchmark in benchmarks for record in benchmark.records}
    if strays:
        blocks.append(f"Records that no script of today writes: {_links(tuple(sorted(strays)))}.")
    return "\n\n".join(blocks)


def _links(records: tuple[Path, ...]) -> str:
    return ", ".join(f"[{record.stem}](benchmarks/{record.stem}.md)" for record in records) or "no record yet"


def page(record: Path, root: Path = _ROOT) -> str:
    """Markdown: the claim, the command, when and where it ran, and the numbers."""
    contents = json.loads(record.read_text(encoding="utf-8"))
    benchmark = next((benchmark for benchmark in all_benchmarks(root) if record in benchmark.records), None)
    blocks = [f"# {record.stem}"]
    if benchmark is None:
        blocks.append("No script of today writes this record.")
    else:
        blocks += [
            f"**{name}:** {text}." for name, text in (("Claim", benchmark.claim), ("Beside", benchmark.beside)) if text
        ]
        blocks.append(_as_written(benchmark.text))
    blocks += [_origin(contents, benchmark), *_changed(contents.get("commit")), *_figure(record.stem, root)]
    blocks += [
        "## Numbers",
        f"Numbers have four digits, lists {MAX_VALUES} entries at most and tables {MAX_ROWS}: [all of it]({record.name}).",
    ]
    return "\n\n".join([*blocks, *tables(contents.get("results"), level=2)]) + "\n"


def _origin(contents: dict[str, Any], benchmark: Benchmark | None) -> str:
    rows = [["command", f"`{benchmark.command}`"]] if benchmark else []
    rows += [["commit", f"`{contents.get('commit')}`"], ["time", str(contents.get("time"))]]
    for part in ("machine", "versions", "arguments"):
        rows.append(
            [
                part,
                "; ".join(f"{name}: {cell(value) or 'none'}" for name, value in flat(contents.get(part) or {}).items()),
            ]
        )
    return table(["", "this record"], rows)


def _changed(commit: str | None) -> list[str]:
    """A warning where the tree was not that of the commit."""
    if commit is None:
        return ['!!! warning "No commit"\n    It is not known which source made this record.']
    if commit.endswith("-dirty"):
        return [
            '!!! warning "Made from a changed tree"\n    The source was changed since that commit (`-dirty`), which alone repeats nothing.'
        ]
    return []


def _figure(name: str, root: Path) -> list[str]:
    return [f"![{name}](../figures/{name}.svg)"] if (root / "docs" / "figures" / f"{name}.svg").is_file() else []


def _as_written(docstring: str) -> str:
    """A docstring as a block: it is plain text, laid out by its author."""
    return f"```text\n{docstring.strip()}\n```" if docstring.strip() else ""


if __name__ == "__main__":
    chosen = [record for record in all_records() if record.stem in sys.argv[1:]]
    if unknown := set(sys.argv[1:]) - {record.stem for record in chosen}:
        sys.stderr.write(
            f"error: no record is called {sorted(unknown)[0]}: {', '.join(r.stem for r in all_records())}\n"
        )
        sys.exit(2)
    sys.stdout.write("\n".join([page(record) for record in chosen] or [overview() + "\n"]))
