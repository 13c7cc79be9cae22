"""Progress with the time that is left: bars on a terminal, now and then a line in a log file."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ginex_jax.cli.interrupts import Report, stopping_when_interrupted

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def progress_reports(console: Console) -> Iterator[Report]:
    """Yields `report(phase, done, total)`; a total of 0 means that nobody knows it yet."""
    if not console.is_terminal:
        yield stopping_when_interrupted(_lines(console))
        return
    columns = (
        TextColumn("{task.description:>16}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with contextlib.ExitStack() as stack:
        bars = Progress(*columns, console=console, speed_estimate_period=120)
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            if not tasks:
                stack.enter_context(bars)  # only now: bars that have nothing to show print an empty line
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total or None)
            bars.update(tasks[phase], completed=done, total=total or None)

        yield stopping_when_interrupted(report)


def _lines(console: Console) -> Report:
    started: dict[str, tuple[float, int]] = {}  # phase -> when, and how much was done then
    printed = time.monotonic()

    def report(phase: str, done: int, total: int) -> None:
        nonlocal printed
        now = time.monotonic()
        since, first = started.setdefault(phase, (now, done))
        if now - printed < _SECONDS_BETWEEN_LINES:
            return
        printed = now
        known = total > 0 and done > first
        left = f" of {total:,}, {(now - since) / (done - first) * (total - done):.0f} s left" if known else ""
        console.print(f"{phase}: {done:,}{left}", markup=False)

    return report
