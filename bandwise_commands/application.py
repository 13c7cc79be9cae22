"""From a Typer application to a process: arguments, errors of theirs, exit status."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from bandwise_commands.errors import INTERRUPTED, USER_ERROR, messages
from bandwise_commands.interrupts import remember_interrupts


def run_application(app: typer.Typer, name: str, arguments: Sequence[str] | None) -> int:
    """The exit status: 0, 2 for what the user can mend, 130 after Ctrl-C. `arguments` are the process's if not given."""
    try:
        return app(args=arguments, prog_name=name, standalone_mode=False) or 0
    except typer.Abort:  # Ctrl-C before a command began
        messages.print("interrupted", markup=False)
        return INTERRUPTED
    except TyperException as error:
        message = error.format_message()
        # Without any argument the message is the help.
        messages.print(
            message if "\n" in message else f"error: {message.rstrip('.')} (see {name} --help)", markup=False
        )
        return USER_ERROR


def end_process(main: Callable[[], int]) -> NoReturn:
    """Runs `main`, and ends with its status."""
    remember_interrupts()
    status = main()
    if status == INTERRUPTED:
        # All is cleaned up on the way here, and threads of libraries may still compute: an interpreter that takes itself apart around
        # them has been seen to crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
