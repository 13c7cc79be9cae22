"""A page's fenced blocks: what of them runs, in order, and on which line it stands."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

ROOT = Path(__file__).parents[2]
Kind = Literal["commands", "python", "output", "citation"]
KINDS: Mapping[str, Kind] = {"": "commands", "python": "python", "text": "output", "bibtex": "citation"}


class Block(NamedTuple):
    """A fenced block; `line` is that of its first line of text, counted from 1.

    Commands are a shell's, one a line (more with a backslash at the end); output is what the block before it printed.
    """

    page: Path
    line: int
    kind: Kind
    text: str


class Step(NamedTuple):
    """What runs at once: a command, or a block of Python."""

    page: Path
    line: int
    kind: Kind
    text: str

    def __str__(self) -> str:
        """Page, line and the command; of other blocks the first line."""
        place = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{place}:{self.line}: {self.text if self.kind == 'commands' else self.text.splitlines()[0]}"


def pages() -> list[Path]:
    """Those whose blocks are checked: the README, then how-to pages, then tutorials."""
    return [
        ROOT / "README.md",
        *(page for room in ("howto", "tutorials") for page in sorted((ROOT / "docs" / room).glob("*.md"))),
    ]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order.

    Raises:
      ValueError: a block of a kind that is not in `KINDS`, one that does not end, or output with nothing before it that runs.
    """
    found, opened, lines = [], None, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"```(.*)$", line)
        if fence is None:
            lines.append(line)
        elif opened is None:
            opened, lines = (number, fence[1].strip()), []
        else:
            found.append(_block(page, *opened, "\n".join(lines)))
            opened = None
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: this block does not end")
    for before, block in zip([None, *found], found, strict=False):
        if block.kind == "output" and (before is None or before.kind not in ("commands", "python")):
            raise ValueError(
                f"{page}:{block.line}: `text` is what the block before it printed, and none is there that runs"
            )
    return found


def _block(page: Path, line: int, language: str, text: str) -> Block:
    if language not in KINDS:
        raise ValueError(
            f"{page}:{line}: a block should be one of {sorted(KINDS)}, got {language!r}: it would not be checked"
        )
    return Block(page, line + 1, KINDS[language], text)


def steps(block: Block) -> list[Step]:
    """What runs of a block: a step for every command, one for Python, none for output and citations."""
    if block.kind == "python":
        return [Step(*block)]
    if block.kind != "commands":
        return []
    found, begun = [], []
    for number, line in enumerate(block.text.splitlines(), block.line):
        begun.append(line)
        if not line.endswith("\\"):
            if command := without_comment("\n".join(begun)):
                found.append(Step(block.page, number - len(begun) + 1, "commands", command))
            begun = []
    return found


def without_comment(command: str) -> str:
    """A command as it is written, without what stands behind two blanks and a #; on one line."""
    return " ".join(re.sub(r"(^|\s{2,})#.*$", "", command.replace("\\\n", " "), flags=re.MULTILINE).split())


def snippets(page: Path) -> list[str]:
    """The Python of a page, in order."""
    return [block.text for block in blocks(page) if block.kind == "python"]
