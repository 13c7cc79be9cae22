"""`anyprec export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bandwise_commands.errors import messages, reporting_errors


@reporting_errors
def export(
    out: Annotated[Path, typer.Argument(help="An artefact.", show_default=False)],
    dest: Annotated[Path, typer.Argument(help="The folder to write: a new one.", show_default=False)],
    precision: Annotated[int, typer.Option(help="Bits to read.", show_default=False)],
    target: Annotated[
        Literal["huggingface"], typer.Option("--format", help="huggingface: safetensors that transformers loads.")
    ] = "huggingface",
) -> None:
    """Write the model as `precision` bits represent it, dequantized, for other software to load."""
    from anyprec_jax.checkpoint import load, save
    from anyprec_jax.checkpoint.atomic import require_free
    from anyprec_jax.models.model import dequantized

    require_free(dest)  # before minutes of loading
    save(dest, dequantized(load(out, precisions=[precision]), precision=precision))
    messages.print(f"wrote {dest}", markup=False)
