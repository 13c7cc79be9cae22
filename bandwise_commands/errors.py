"""What a user can mend is one line and exit status 2; Ctrl-C is one word and 130; anything else keeps its traceback."""

import errno
import functools
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console

from bandwise_commands.interrupts import was_interrupted

USER_ERROR = 2
INTERRUPTED = 130
_EXTRAS = {"pyarrow": "ingest", "matplotlib": "plot", "tensorboard": "tensorboard"}
_MOST_CHARACTERS = 1000
messages = Console(stderr=True, highlight=False, soft_wrap=True)


def reporting_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command of the application."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
            if was_interrupted():
                raise KeyboardInterrupt
        except BaseException as error:
            # Compiled code, and modules while they are imported, turn an interrupt into errors of their own.
            if isinstance(error, KeyboardInterrupt) or was_interrupted():
                messages.print("interrupted", markup=False)
                raise typer.Exit(INTERRUPTED) from None
            if isinstance(error, BrokenPipeError):
                sys.stderr.close()  # the reader of our output has gone: nobody is left to tell
                raise typer.Exit(1) from None
            if (line := _one_line(error)) is None:
                raise
            messages.print(f"error: {line}", markup=False)
            raise typer.Exit(USER_ERROR) from error

    return wrapped


def _one_line(error: BaseException) -> str | None:
    """What a user can mend, in a line; None for anything else."""
    if isinstance(error, ModuleNotFoundError) and (extra := _EXTRAS.get((error.name or "").partition(".")[0])):
        return f"this needs {error.name}: pip install 'bandwise[{extra}]'"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full, and no half-written file was left on it: make room and run it again"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"there is too little memory for so much at once: {error}"
    if isinstance(error, ValueError | OSError):
        line = " ".join(str(error).split()) or type(error).__name__
        return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} ..."
    return None
