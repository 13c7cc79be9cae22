"""Ctrl-C, remembered: inside a callback of compiled code, such as numba's when it loads a function, the exception is lost."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator

Report = Callable[[str, int, int], None]
_interrupts: list[int] = []


def remember_interrupts() -> None:
    """From now on Ctrl-C is remembered, besides being a KeyboardInterrupt, and one that gets lost says nothing of itself."""
    signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _quiet_about_interrupts


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed, also if no exception came of it."""
    return bool(_interrupts)


def stopping_when_interrupted(report: Report) -> Report:
    """The report of progress that raises KeyboardInterrupt if one got lost."""

    def stop_or_report(phase: str, done: int, total: int) -> None:
        if _interrupts:
            raise KeyboardInterrupt
        report(phase, done, total)

    return stop_or_report


def _interrupt(number: int, _frame: object) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def _quiet_about_interrupts(lost: "sys.UnraisableHookArgs") -> None:
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C only makes the yielded function return True; the second is a KeyboardInterrupt.

    So is one that got lost before it.
    """
    if _interrupts:
        raise KeyboardInterrupt
    asked: list[int] = []

    def note(number: int, _frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def stopping_when(asked: Callable[[], bool]) -> Report:
    """A report of progress that says nothing, and raises KeyboardInterrupt once it is asked to stop."""

    def stop(phase: str, done: int, total: int) -> None:
        if asked():
            raise KeyboardInterrupt

    return stop
