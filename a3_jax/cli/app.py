"""The `a3` command: approximate attention and what it costs."""

from collections.abc import Sequence
from typing import NoReturn

from a3_jax.cli.evaluation import cost
from a3_jax.cli.reproduction import reproduce
from a3_jax.cli.simulation import simulate_command
from a3_jax.cli.sweep import sweep
from a3_jax.cli.workload_evaluation import evaluate
from bandwise_commands.application import application, end_process, run_application

app = application(
    "a3",
    "What A3, an accelerator of approximate attention, costs: cycles, joules, area.",
    example="a3 cost --n 320 --M 160 --C 65.6 --K 15.7",
)
app.command(epilog="Example: a3 cost --n 320 --M 160 --C 65.6 --K 15.7")(cost)
app.command("simulate", epilog="Example: a3 simulate --random 1000 --n 320 --M n/2 --T 5 --csv queries.csv")(
    simulate_command
)
app.command(epilog="Example: a3 sweep --task bert --over M=40:320:40 --over T=5,10 --over units=1,2,4 --pareto")(sweep)
app.command(epilog="Example: a3 reproduce --hardware mine.yaml")(reproduce)
app.command(epilog="Example: a3 evaluate --workload babi --data en-valid --M n/2 --T 5 --parameters babi.npz")(evaluate)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `a3` command; returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    return run_application(app, "a3", arguments)


def run() -> NoReturn:
    """The process: `main`, and its status for the shell."""
    end_process(main)
