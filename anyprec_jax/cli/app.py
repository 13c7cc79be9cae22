"""The `anyprec` command: quantize once, read at any precision."""

import logging
from collections.abc import Sequence
from typing import NoReturn

from anyprec_jax.cli.evaluate import evaluate
from anyprec_jax.cli.export import export
from anyprec_jax.cli.generate import generate
from anyprec_jax.cli.inspect import inspect
from anyprec_jax.cli.quantize import quantize
from bandwise_commands.application import application, end_process, run_application

app = application(
    "anyprec",
    "Quantize a language model once; read it at 3, 4, 5, 6, 7 or 8 bits from the same files.",
    example="anyprec quantize SmolLM2.gguf smollm2-anyprec --calibration speeches.txt",
)
app.command(epilog="Example: anyprec quantize SmolLM2.gguf smollm2-anyprec --calibration speeches.txt")(quantize)
app.command(epilog="Example: anyprec inspect smollm2-anyprec")(inspect)
app.command(epilog="Example: anyprec evaluate smollm2-anyprec --text held-out.txt --precision 3 --precision 4")(
    evaluate
)
app.command(epilog="Example: anyprec generate smollm2-anyprec --prompt 'Why is the sky blue?' --chat --precision 4")(
    generate
)
app.command(epilog="Example: anyprec export smollm2-anyprec smollm2-4bit --format huggingface --precision 4")(export)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `anyprec` command; returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every step of a save
    return run_application(app, "anyprec", arguments)


def run() -> NoReturn:
    """The process: `main`, and its status for the shell."""
    end_process(main)
