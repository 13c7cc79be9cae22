"""What several commands take, and say."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bandwise_commands.errors import messages

if TYPE_CHECKING:  # importing it takes seconds
    from anyprec_jax.models.model import Model
    from anyprec_jax.models.precision_map import Precision

ModelPath = Annotated[
    Path,
    typer.Argument(
        help="An artefact, a Hugging Face folder, a GGUF file, or a checkpoint of the paper's authors.",
        show_default=False,
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(help="Split the model over the first N devices of this machine. Default: one computes it all."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def load_model(path: Path, precisions: "Sequence[Precision] | None", devices: int | None) -> "Model":
    """The model, split over so many devices if a number is given."""
    from anyprec_jax.checkpoint import load
    from anyprec_jax.sharding import tensor_parallel_mesh

    return load(path, precisions=precisions, mesh=None if devices is None else tensor_parallel_mesh(devices))


def print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def note_missing_native_op() -> None:
    from anyprec_jax.ops import cpu

    if (reason := cpu.why_unavailable()) is not None:
        messages.print(f"note: plain XLA is used, several times slower than the native product: {reason}", markup=False)
