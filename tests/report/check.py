"""`python -m tests.report.check demo/report.html --out build/report`: a report as Chromium shows it, on a phone and a desk, light and dark.

Prints a line for each fault and leaves a screenshot of each view; exit status 1 where there are faults, 2 where there is no browser.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VIEWS = {"phone": (390, 844), "desk": (1280, 900)}
SCHEMES = ("light", "dark")
LEAST_PIXELS = 11.5  # some 12 pixels, and figures that are scaled to the width of a phone
LEAST_CONTRAST = 4.5  # WCAG 2.2, level AA

# Every piece of text that is shown: its words, its colours from the innermost background outwards, its height in pixels of the screen.
TEXTS = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const words = walker.currentNode.textContent.trim();
    let element = walker.currentNode.parentElement;
    if (!words || element.closest("style, defs, title, desc, metadata")) continue;
    const svg = element.closest("svg"), style = getComputedStyle(element);
    const matrix = svg ? element.getScreenCTM() : null;
    const scale = matrix ? Math.sqrt(Math.abs(matrix.a * matrix.d - matrix.b * matrix.c)) : 1;
    const color = svg ? style.fill : style.color, backgrounds = [];
    for (; element; element = element.parentElement)
      backgrounds.push(getComputedStyle(element).backgroundColor);
    found.push({words, color, backgrounds, pixels: parseFloat(style.fontSize) * scale});
  }
  return found;
}"""
OVERFLOW = "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
UNEXPLAINED = """() => [...document.querySelectorAll("table, figure, .texts")].filter(block => {
  const note = block.matches("figure") ? block.querySelector("figcaption") : block.closest(".scroll, .texts")?.previousElementSibling;
  return !(note && note.matches(".note, figcaption") && note.textContent.trim());
}).length"""


class Color(NamedTuple):
    """sRGB, 0 to 255, and opacity."""

    red: float
    green: float
    blue: float
    alpha: float = 1.0


def parsed(text: str) -> Color:
    """A colour as browsers compute it: `rgb(1, 2, 3)`, `rgba(1, 2, 3, 0.5)`, or `color(srgb 0.1 0.2 0.3 / 0.5)`."""
    kind, _, rest = text.partition("(")
    numbers = [float(part) for part in rest.rstrip(")").replace("srgb", "").replace("/", " ").replace(",", " ").split()]
    if kind == "color":
        numbers[:3] = [255 * number for number in numbers[:3]]
    return Color(*numbers)


def over(front: Color, back: Color) -> Color:
    """What is seen where `front` lies on an opaque `back`."""
    mixed = (front.alpha * f + (1 - front.alpha) * b for f, b in zip(front[:3], back[:3], strict=True))
    return Color(*mixed)


def contrast(one: Color, other: Color) -> float:
    """WCAG's ratio of two opaque colours, 1 to 21."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: Color) -> float:
    red, green, blue = (
        c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def faults_of_text(text: dict[str, Any], canvas: Color) -> Iterator[str]:
    """Too small, or too faint on what lies behind it."""
    words = text["words"][:40]
    if text["pixels"] < LEAST_PIXELS:
        yield f"{words!r} is {text['pixels']:.1f} pixels high, and {LEAST_PIXELS} are the least"
    back = canvas
    for layer in reversed(text["backgrounds"]):
        back = over(parsed(layer), back)
    ratio = contrast(over(parsed(text["color"]), back), back)
    if ratio < LEAST_CONTRAST:
        yield f"{words!r} has a contrast of {ratio:.2f}, and {LEAST_CONTRAST} is the least"


def faults_of_page(browser: Any, url: str, size: tuple[int, int], scheme: str, picture: Path) -> Iterator[str]:
    """Of one view; leaves its screenshot."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=2)
    seen: list[str] = []
    page.on("console", lambda message: seen.append(f"the console says {message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"a script failed: {error}"))
    page.on("request", lambda request: seen.append(f"it asks for {request.url}") if request.url != url else None)
    page.goto(url, wait_until="networkidle")
    yield from (line for line in seen if not line.startswith("it asks for data:"))
    width, room = page.evaluate(OVERFLOW)
    if width > room:
        yield f"it is {width} pixels wide, and the screen {room}"
    if unexplained := page.evaluate(UNEXPLAINED):
        yield f"{unexplained} of its tables, figures and texts do not say what to look at"
    canvas = Color(255, 255, 255) if scheme == "light" else Color(18, 18, 18)  # Chromium's, where a page sets none
    texts = page.evaluate(TEXTS)
    if not texts:
        yield "it shows no text"
    yield from dict.fromkeys(fault for text in texts for fault in faults_of_text(text, canvas))
    page.screenshot(path=picture, full_page=True)
    page.close()


def faults_of(report: Path, browser_path: str, out: Path) -> list[str]:
    """Of every view, each with the view's name."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    found = []
    with sync_playwright() as driver:
        # No sandbox: Chromium has none for root, and the page is our own.
        browser = driver.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--force-color-profile=srgb"]
        )
        for view, size in VIEWS.items():
            for scheme in SCHEMES:
                name = f"{view}-{scheme}"
                faults = faults_of_page(browser, report.resolve().as_uri(), size, scheme, out / f"{name}.png")
                found += [f"{name}: {fault}" for fault in faults]
        browser.close()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the screenshots")
    options = parser.parse_args(arguments)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"error: none of {', '.join(BROWSERS)} is on the path: apt-get install chromium", file=sys.stderr)
        return 2
    if not options.report.is_file():
        print(f"error: {options.report} is missing: `make demo` writes it", file=sys.stderr)
        return 2
    faults = faults_of(options.report, browser, options.out)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults; screenshots in {options.out}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
