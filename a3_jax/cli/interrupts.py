"""Ctrl-C, remembered: inside a callback of compiled code, such as numba's when it loads a function, the exception is lost."""

import signal
import sys

_interrupts: list[int] = []


def remember_interrupts() -> None:
    """From now on Ctrl-C is remembered, besides being a KeyboardInterrupt, and one that gets lost says nothing of itself."""
    signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _quiet_about_interrupts


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed, also if no exception came of it."""
    return bool(_interrupts)


def _interrupt(number: int, _frame: object) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def _quiet_about_interrupts(lost: "sys.UnraisableHookArgs") -> None:
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
