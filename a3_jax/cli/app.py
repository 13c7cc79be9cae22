"""The `a3` command: approximate attention and what it costs."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from a3_jax.cli.errors import INTERRUPTED, USER_ERROR, messages
from a3_jax.cli.evaluation import cost
from a3_jax.cli.interrupts import remember_interrupts
from a3_jax.cli.reproduction import reproduce
from a3_jax.cli.simulation import simulate_command
from a3_jax.cli.sweep import sweep
from a3_jax.cli.workload_evaluation import evaluate

app = typer.Typer(
    name="a3",
    help="What A3, an accelerator of approximate attention, costs: cycles, joules, area.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog="Example: a3 cost --n 320 --M 160 --C 65.6 --K 15.7")(cost)
app.command("simulate", epilog="Example: a3 simulate --random 1000 --n 320 --M n/2 --T 5 --csv queries.csv")(
    simulate_command
)
app.command(epilog="Example: a3 sweep --task bert --over M=40:320:40 --over T=5,10 --over units=1,2,4 --pareto")(sweep)
app.command(epilog="Example: a3 cost --print-hardware > mine.yaml, edit it, a3 reproduce --hardware mine.yaml")(
    reproduce
)
app.command(epilog="Example: a3 evaluate --workload babi --data en-valid --M n/2 --T 5 --parameters babi.npz")(evaluate)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `a3` command; returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    try:
        return app(args=arguments, prog_name="a3", standalone_mode=False) or 0
    except typer.Abort:  # Ctrl-C before a command began
        messages.print("interrupted", markup=False)
        return INTERRUPTED
    except TyperException as error:
        message = error.format_message()
        # Without any argument the message is the help.
        messages.print(message if "\n" in message else f"error: {message.rstrip('.')} (see a3 --help)", markup=False)
        return USER_ERROR


def run() -> NoReturn:
    """The process: `main`, and its status for the shell."""
    remember_interrupts()
    status = main()
    if status == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # libraries whose work was cut short have been seen to crash while they are taken down
    sys.exit(status)
