"""From a Typer application to a process: arguments, errors of theirs, exit status."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from bandwise_commands.errors import INTERRUPTED, USER_ERROR, messages
from bandwise_commands.interrupts import remember_interrupts


def application(name: str, description: str, *, example: str) -> typer.Typer:
    """An application without commands so far, with what all have: help with an example, at `-h` and without arguments, `--version`."""
    app = typer.Typer(
        name=name,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=description, epilog=f"Example: {example}")(_options)
    return app


def _print_version(asked: bool) -> None:
    if not asked:
        return
    try:
        typer.echo(f"bandwise {version('bandwise')}")
    except PackageNotFoundError:
        typer.echo("bandwise, not installed but run from its sources")
    raise typer.Exit


def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What may stand before a command."""


def run_application(app: typer.Typer, name: str, arguments: Sequence[str] | None) -> int:
    """The exit status: 0, 2 for what the user can mend, 130 after Ctrl-C. `arguments` are the process's if not given."""
    try:
        return app(args=arguments, prog_name=name, standalone_mode=False) or 0
    except typer.Abort:  # Ctrl-C before a command began
        messages.print("interrupted", markup=False)
        return INTERRUPTED
    except TyperException as error:
        if message := error.format_message():  # there is none where no argument was given and the help was printed
            messages.print(f"error: {message.rstrip('.')} (see {name} --help)", markup=False)
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
