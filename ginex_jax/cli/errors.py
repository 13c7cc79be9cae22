"""What a user can mend is one line and exit status 2; Ctrl-C is one word and 130; anything else keeps its traceback."""

import errno
import functools
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console

USER_ERROR = 2
INTERRUPTED = 130
_EXTRAS = {"pyarrow": "ingest", "matplotlib": "plot"}
messages = Console(stderr=True, highlight=False, soft_wrap=True)


def reporting_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command of the application."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            messages.print("interrupted: nothing was written", markup=False)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output has gone: nobody is left to tell
            raise typer.Exit(1) from None
        except (ValueError, OSError) as error:
            messages.print(f"error: {_one_line(error)}", markup=False)
            raise typer.Exit(USER_ERROR) from error
        except ModuleNotFoundError as error:
            if error.name not in _EXTRAS:
                raise
            message = f"error: this needs {error.name}: pip install 'bandwise[{_EXTRAS[error.name]}]'"
            messages.print(message, markup=False)
            raise typer.Exit(USER_ERROR) from error

    return wrapped


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full, and nothing was left on it: make room and run it again"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
