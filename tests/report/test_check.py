"""The check of a report in a browser: WCAG's numbers, and pages with faults on purpose, in the browser where there is one."""

import shutil
from pathlib import Path

import pytest

from tests.report.check import BROWSERS, Color, contrast, faults_of, faults_of_text, main, over, parsed

WHITE, BLACK = Color(255, 255, 255), Color(0, 0, 0)


def test_colours_as_browsers_write_them() -> None:
    assert parsed("rgb(1, 2, 3)") == (1, 2, 3, 1)
    assert parsed("rgba(0, 0, 0, 0)") == (0, 0, 0, 0)
    assert parsed("color(srgb 1 0 0.2 / 0.5)") == (255, 0, 51, 0.5)


def test_contrast_is_wcags() -> None:
    """Its own examples: 21 for black on white; #767676 is the lightest grey that passes on white, #777 is not."""
    assert contrast(BLACK, WHITE) == contrast(WHITE, BLACK) == pytest.approx(21)
    assert contrast(Color(*[0x76] * 3), WHITE) == pytest.approx(4.54, abs=0.005)
    assert contrast(Color(*[0x77] * 3), WHITE) == pytest.approx(4.48, abs=0.005)


def test_layers_lie_over_each_other() -> None:
    assert over(Color(0, 0, 0, 0.25), WHITE)[:3] == (191.25,) * 3
    text = {"words": "x", "color": "rgb(0, 0, 0)", "pixels": 12.0}
    assert not [*faults_of_text(text | {"backgrounds": ["rgba(0, 0, 0, 0)", "rgb(255, 255, 255)"]}, BLACK)]
    (fault,) = faults_of_text(text | {"backgrounds": ["rgba(0, 0, 0, 0.9)", "rgb(255, 255, 255)"]}, WHITE)
    assert "contrast" in fault
    for grey, faults in ((0x76, 0), (0x77, 1)):  # either side of WCAG's 4.5
        shade = f"rgb({grey}, {grey}, {grey})"
        assert len([*faults_of_text(text | {"color": shade, "backgrounds": []}, WHITE)]) == faults
    (fault,) = faults_of_text(text | {"pixels": 8.0, "backgrounds": []}, WHITE)
    assert "8.0 pixels" in fault


def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main([str(tmp_path / "report.html"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("apt-get install chromium\n")
    monkeypatch.setattr(shutil, "which", lambda name: "browser")
    assert main([str(tmp_path / "report.html"), "--out", str(tmp_path)]) == 2
    assert "make demo" in capsys.readouterr().err


def test_faults_are_seen(tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="`make check-report` installs it")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("there is no Chromium")
    page = tmp_path / "page.html"
    page.write_text(
        '<!doctype html><meta charset=utf-8><meta name=viewport content="width=device-width">'
        '<style>:root { color-scheme: light dark }</style><p style="color: #999; background: #fff">faint</p>'
        '<p style="font-size: 9px">small</p><div style="width: 2000px">wide</div><table><tr><td>bare</table>'
        '<img src="missing.png"><script>nothing.at.all</script>',
        encoding="utf-8",
    )
    faults = "\n".join(faults_of(page, browser, tmp_path / "shots"))
    for view in ("phone-light", "phone-dark", "desk-light", "desk-dark"):
        for fault in (
            "contrast of 2.85",
            "9.0 pixels",
            "2008 pixels wide",
            "do not say",
            "asks for file",
            "nothing is not defined",
        ):
            assert any(line.startswith(view) and fault in line for line in faults.splitlines()), (view, fault, faults)
        assert (tmp_path / "shots" / f"{view}.png").stat().st_size > 1_000
