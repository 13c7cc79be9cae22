"""One self-contained HTML page from sections of prose, tables, figures and texts: no script, no request."""

import dataclasses
import html
import re
from collections.abc import Sequence
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --page: #fff; --line: #8886; --quiet: #555; --card: #8881; --edge: #0004; }
@media (prefers-color-scheme: dark) { :root { --page: #121212; --quiet: #bbb; --edge: #fff5; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1rem; background: var(--page); }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
code { font-size: .9em; overflow-wrap: anywhere; }
/* What is too wide scrolls in its box, with a shadow at the side where there is more. */
.scroll { overflow-x: auto; background: linear-gradient(90deg, var(--page) 30%, transparent) left / 2rem 100% no-repeat local,
  linear-gradient(270deg, var(--page) 30%, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(90deg, var(--edge), transparent) left / .6rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--edge), transparent) right / .6rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: pre-wrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figure svg { display: block; width: 100%; height: auto; background: #fff; border-radius: .4rem; }
figcaption, .note { color: var(--quiet); font-size: .9rem; }
.texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
.texts > div { background: var(--card); padding: .8rem; border-radius: .4rem; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


INTRODUCTION = (
    "What <code>make demo</code> measured on this machine, a part for each package. Above a table, or below a figure, is what to look at; "
    "times depend on what else the machine did."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableBlock:
    """A table; `look_at` says in one line what to look at."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    look_at: str

    def to_html(self) -> str:
        """The block as HTML."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f'<p class="note">{_prose(self.look_at)}</p><div class="scroll" tabindex="0">{table}</div>'


def _cell(text: str) -> str:
    """A number stays beside its unit."""
    return re.sub(r"(?<=\d) (?=[A-Za-z%])", "\N{NO-BREAK SPACE}", html.escape(text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureBlock:
    """A figure as SVG markup of our own making; `description` stands in for it where it cannot be seen.

    It is not drawn narrower than `least_pixels`, where its letters would be too small: on narrower screens it scrolls.
    """

    svg: str
    description: str
    look_at: str
    least_pixels: int = 350  # on a phone

    def to_html(self) -> str:
        """The block as HTML."""
        drawing = self.svg[self.svg.index("<svg") :]
        label = html.escape(self.description, quote=True)
        room = (
            f'<div style="min-width: {self.least_pixels}px; max-width: {self.least_pixels * 3 // 2}px">{drawing}</div>'
        )
        box = f'<div class="scroll" tabindex="0" role="img" aria-label="{label}">{room}</div>'
        return f"<figure>{box}<figcaption>{_prose(self.look_at)}</figcaption></figure>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextsBlock:
    """Texts side by side, each under its title."""

    texts: Sequence[tuple[str, str]]
    look_at: str

    def to_html(self) -> str:
        """The block as HTML."""
        cards = "".join(f"<div><b>{html.escape(title)}</b>\n{html.escape(text)}</div>" for title, text in self.texts)
        return f'<p class="note">{_prose(self.look_at)}</p><div class="texts">{cards}</div>'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One package's part of the report."""

    title: str
    introduction: str
    blocks: Sequence[TableBlock | FigureBlock | TextsBlock]

    def to_html(self) -> str:
        """The section as HTML."""
        blocks = "".join(block.to_html() for block in self.blocks)
        return f"<h2>{html.escape(self.title)}</h2><p>{_prose(self.introduction)}</p>{blocks}"


def _prose(text: str) -> str:
    """Escaped; what is between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def write_report(path: Path, sections: Sequence[Section]) -> Path:
    """Writes the page, whole or not at all, and returns where it is."""
    body = "".join(section.to_html() for section in sections)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>bandwise demo</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>bandwise</h1><p>{INTRODUCTION}</p>{body}</body></html>\n"
    )
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)
