"""What several commands take, and say."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bandwise_commands.errors import messages

ModelPath = Annotated[
    Path,
    typer.Argument(
        help="An artefact, a Hugging Face folder, a GGUF file, or a checkpoint of the paper's authors.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def note_missing_native_op() -> None:
    from anyprec_jax.ops import cpu

    if (reason := cpu.why_unavailable()) is not None:
        messages.print(f"note: plain XLA is used, several times slower than the native product: {reason}", markup=False)
