"""Numbers and tables as people read them."""

from rich.console import Console

_LEAST_WIDTH = 160  # of a table, so that none of it is cut off where a terminal is narrower or there is none

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p"))


def si(value: float, unit: str) -> str:
    """Four digits, a prefix and the unit: 22.81 nJ."""
    if value == 0:
        return f"0 {unit}"
    size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if abs(value) >= size), _PREFIXES[-1])
    return f"{value / size:.4g} {prefix}{unit}"


def percent(fraction: float) -> str:
    """One digit after the point."""
    return f"{100 * fraction:.1f} %"


def result_console() -> Console:
    """Standard output."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.width >= _LEAST_WIDTH else Console(highlight=False, soft_wrap=True, width=_LEAST_WIDTH)
