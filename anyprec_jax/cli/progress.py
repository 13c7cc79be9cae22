"""Progress with the time that is left: bars on a terminal, now and then a line in a log file."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bandwise_commands.interrupts import stopping_when_interrupted

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `report(phase, done, total)`: a bar a phase with the time that is left, or now and then a line in a log file."""
    if not console.is_terminal:
        yield stopping_when_interrupted(_log_lines(console))
        return
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with contextlib.ExitStack() as stack:
        bars = Progress(*columns, console=console, speed_estimate_period=300)
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            if not tasks:
                stack.enter_context(bars)  # only now: bars that have nothing to show print an empty line
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done)

        yield stopping_when_interrupted(report)


def _log_lines(console: Console) -> Callable[[str, int, int], None]:
    started: dict[str, tuple[float, int]] = {}  # phase -> when, and how much was done then
    printed = 0.0

    def report(phase: str, done: int, total: int) -> None:
        nonlocal printed
        now = time.monotonic()
        since, first = started.setdefault(phase, (now, done))
        if done == total or now - printed >= _SECONDS_BETWEEN_LINES:
            printed = now
            left = f", {(now - since) / (done - first) * (total - done):.0f} s left" if done > first else ""
            console.print(f"{phase} {done}/{total}{left}", markup=False)

    return report
