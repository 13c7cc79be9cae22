"""`make check-docs`: runs what the README, the how-to pages and the tutorials show, as it stands, and compares what they say it prints.

    python -m tests.documentation.check [PAGE ...] [--data .cache/data] [--folder FOLDER] [--show]

Every page has a scratch folder, with `.cache` in it and the files that `bindings.py` has for the names it uses. A command that fails
ends its page; the others go on. Exit status 1 if anything failed, each with page, line and command.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.documentation.bindings import CONTINUES, ENVIRONMENTS, FILES, NOT_RUN, Make
from tests.documentation.commands import complaint
from tests.documentation.pages import ROOT, Block, Step, blocks, pages, steps

TIMEOUT_S = 600
COLUMNS = 120
NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"


class Printed(NamedTuple):
    """How a step ended: its status, and what it wrote on both outputs, in order, as on a terminal."""

    status: int
    output: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for every step, then what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="all by default")
    parser.add_argument("--data", type=Path, default=ROOT / ".cache" / "data", help="what `make demo` fetches")
    parser.add_argument("--folder", type=Path, help="keep the scratch folders here, a new one")
    parser.add_argument("--show", action="store_true", help="also what every step prints")
    options = parser.parse_args(arguments)
    chosen = [page.resolve() for page in options.pages] or pages()
    if missing := [page for page in chosen if not page.is_file()]:
        return _report([f"{missing[0]} is missing: name a Markdown file, or none for all pages"])
    if failures := list(unchecked(pages())):
        return _report(failures)
    if not (options.data / ".complete").exists():
        return _report([f"{options.data} is not complete: `make check-docs` fetches it"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        groups = run_pages(
            with_those_before(chosen),
            folder,
            options.data.resolve(),
            show=options.show,
            keep=options.folder is not None,
        )
        return _report(list(groups))


def _report(failures: Sequence[str]) -> int:
    for failure in failures:
        sys.stderr.write(f"FAILED {failure}\n")
    return 1 if failures else 0


def unchecked(chosen: Iterable[Path]) -> Iterator[str]:
    """What cannot be right without anything being run: blocks of no kind, commands that are not run and do not exist, stale bindings."""
    used: set[str] = set()
    for page in chosen:
        try:
            commands = [step for block in blocks(page) for step in steps(block) if step.kind == "commands"]
        except ValueError as error:
            yield str(error)
            continue
        for step in commands:
            if step.text in NOT_RUN:
                used.add(step.text)
                if wrong := complaint(step.text):
                    yield f"{step}: {wrong}"
    yield from (
        f"bindings.py: no page has `{command}`, which NOT_RUN lists" for command in NOT_RUN if command not in used
    )


def with_those_before(chosen: Sequence[Path]) -> list[list[Path]]:
    """Pages in groups that share a folder: each after the one that it goes on from, which is run too."""
    groups: list[list[Path]] = []
    for page in chosen:
        if any(page in group for group in groups):
            continue
        before = _before(page)
        group = next((group for group in groups if before in group), None)
        if group is not None:
            group.append(page)
        else:
            groups.append([page] if before is None else [before, page])
    return groups


def _before(page: Path) -> Path | None:
    name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else ""
    return ROOT / CONTINUES[name] if name in CONTINUES else None


def run_pages(
    groups: Iterable[Sequence[Path]], folder: Path, data: Path, *, show: bool = False, keep: bool = False
) -> Iterator[str]:
    """Runs groups of pages, each group in a scratch folder of its own below `folder`; yields what failed."""
    made: dict[Make, Path] = {}
    for number, group in enumerate(groups):
        scratch = folder / f"{number}-{group[0].stem}"
        scratch.mkdir(parents=True)
        (scratch / ".cache").mkdir()
        (scratch / ".cache" / "data").symlink_to(data)
        found = [block for page in group for block in blocks(page)]
        for name in names_in(found):
            make = FILES[name]
            if make not in made:
                made[make] = folder / f"made-{len(made)}" / name
                made[make].parent.mkdir()
                make(data, made[make])
            (scratch / name).symlink_to(made[make])
        for page in group:
            if failure := _run_page(page, scratch, show=show):
                sys.stderr.write(f"FAILED {failure}\n")
                yield failure
                break
        if not keep:
            shutil.rmtree(scratch)


def names_in(found: Iterable[Block]) -> list[str]:
    """The names of `FILES` that stand in commands as words of their own, or in Python as texts of their own."""
    ran = [step for block in found for step in steps(block)]
    commands = "\n".join(step.text for step in ran if step.kind == "commands")
    python = "\n".join(step.text for step in ran if step.kind == "python")
    return [
        name
        for name in FILES
        if re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w./-])", commands) or f'"{name}"' in python
    ]


def _run_page(page: Path, scratch: Path, *, show: bool) -> str | None:
    """Runs a page's steps; the first that fails, or whose output is not as the page has it."""
    output = ""
    for block in blocks(page):
        if block.kind == "output":
            if missing := not_printed(block.text, output):
                return f"{Step(*block)}\n  is not what the block before it prints: {missing!r}"
            continue
        output = ""
        for step in steps(block):
            if step.text in NOT_RUN:
                sys.stderr.write(f"       not run         {step}\n")
                continue
            start, busy = time.monotonic(), _busy()
            printed = run_step(step, scratch)
            sys.stderr.write(f"{time.monotonic() - start:6.0f} s ({_busy() - busy:4.0f} s busy)  {step}\n")
            if show:
                sys.stderr.write(printed.output)
            if printed.status != 0:
                last = "\n  ".join(printed.output.strip().splitlines()[-12:])
                return f"{step}\n  ended with status {printed.status}:\n  {last}"
            output += printed.output
    return None


def _busy() -> float:
    """Seconds of processor time of all that was run so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_step(step: Step, folder: Path) -> Printed:
    """Runs a command in bash, or Python whose tracebacks name the page's own lines, in `folder`."""
    command = ["bash", "-c", step.text]
    if step.kind == "python":
        script = folder / ".snippet.py"
        script.write_text("\n" * (step.line - 1) + step.text + "\n", encoding="utf-8")
        command = [sys.executable, str(script)]
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env=environment(step),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Printed(124, f"it ran for more than {TIMEOUT_S} s")
    return Printed(ended.returncode, ended.stdout)


def environment(step: Step) -> Mapping[str, str]:
    """This one's, with the commands and the examples of this checkout before others, and what `ENVIRONMENTS` adds."""
    added = {name: text for entry in ENVIRONMENTS if entry.flag in step.text for name, text in entry.variables.items()}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
    return {**os.environ, **own, **added}


def not_printed(expected: str, printed: str) -> str | None:
    """The first line of a page's output that was not printed after those before it: numbers, blanks and lines of dots aside."""
    lines = iter([masked(line) for line in printed.splitlines()])
    for line in expected.splitlines():
        wanted = masked(line)
        if wanted not in ("", "...") and wanted not in lines:
            return line
    return None


def masked(line: str) -> str:
    """A line with every number as #, and of blanks no more than one."""
    return " ".join(re.sub(NUMBER, "#", line).split())


if __name__ == "__main__":
    sys.exit(main())
