"""Progress with the time that is left: bars on a terminal, now and then a line in a log file."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.status import Status

from bandwise_commands.interrupts import Report, stopping_when_interrupted

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


@contextlib.contextmanager
def training_reports(console: Console) -> Iterator[Callable[[Any], None]]:
    """Yields a function that takes the updates of `ginex_jax.train.loop.fit`: one line that changes, or now and then one for a log file."""
    printed = time.monotonic()
    with contextlib.ExitStack() as stack:
        status: list[Status] = []

        def report(update: Any) -> None:
            nonlocal printed
            now = time.monotonic()
            if console.is_terminal:
                if not status:
                    status.append(stack.enter_context(console.status("")))
                status[0].update(_sentence(update))
            elif now - printed >= _SECONDS_BETWEEN_LINES:
                console.print(_sentence(update), markup=False)
                printed = now

        yield report


def _sentence(update: Any) -> str:
    parts = [f"step {update.step:,} of {update.num_steps:,}"]
    if update.loss is not None:
        parts.append(f"loss {update.loss:.4f}")
        parts.append(f"{update.rows_per_second:,.0f} rows/s")
        parts.append(f"hit rate {update.hit_rate:.2f}")
    if update.seconds_left is not None:
        parts.append(f"{update.seconds_left:,.0f} s left")
    return ", ".join(parts)
