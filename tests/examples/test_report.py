import re
from pathlib import Path

from examples.demo.report import FigureBlock, Section, TableBlock, TextsBlock, write_report

SVG = '<?xml version="1.0"?><!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>'


def page(tmp_path: Path) -> str:
    section = Section(
        title="A & B",
        introduction="1 < 2",
        blocks=[
            TableBlock(header=("bits", "size"), rows=[("3", "<1 MB")], look_at="sizes & bits"),
            FigureBlock(svg=SVG, description='a "line"', look_at="the line"),
            TextsBlock(texts=[("3 bits", "<script>alert(1)</script>")], look_at="texts"),
        ],
    )
    return write_report(tmp_path / "report.html", [section]).read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert not re.search(r"<(script|link|img|iframe|object|base)\b|\b(src|href)=|url\((?!#)|@import", html)
    assert html.count("<svg") == 1 and "<?xml" not in html and "<!DOCTYPE svg" not in html


def test_what_comes_from_elsewhere_is_escaped(tmp_path: Path) -> None:
    html = page(tmp_path)
    for escaped in (
        "A &amp; B",
        "1 &lt; 2",
        "&lt;1\u00a0MB",
        "sizes &amp; bits",
        "&lt;script&gt;alert(1)",
        "a &quot;line&quot;",
    ):
        assert escaped in html


def test_a_number_stays_beside_its_unit() -> None:
    """Whatever else of a cell is broken on a narrow screen."""
    table = TableBlock(header=["size"], rows=[["42 MB"], ["+0.00 %"], ["10,324 (8.8%)"], ["a 'b'"]], look_at="")
    cells = re.findall("<td>(.*?)</td>", table.to_html())
    assert cells == ["42\u00a0MB", "+0.00\u00a0%", "10,324 (8.8%)", "a &#x27;b&#x27;"]


def test_nothing_but_the_page_is_left(tmp_path: Path) -> None:
    page(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
