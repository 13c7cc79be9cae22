"""`anyprec export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from anyprec_jax.cli.arguments import ModelPath
from bandwise_commands.errors import messages, reporting_errors


@reporting_errors
def export(
    model: ModelPath,
    dest: Annotated[Path, typer.Argument(help="The folder to write: a new one.", show_default=False)],
    precision: Annotated[
        float | None,
        typer.Option(
            help="Bits to read, 3.5 say on average, where a quantized model becomes plain.", show_default=False
        ),
    ] = None,
    target: Annotated[
        Literal["huggingface", "orbax", "upstream", "artefact"],
        typer.Option(
            "--format",
            help="huggingface: safetensors that transformers loads. orbax: a tree of plain arrays for JAX projects. upstream: the "
            "layout of the paper's authors. artefact: what quantize writes.",
        ),
    ] = "huggingface",
    codebooks: Annotated[
        Literal["float16", "compact"] | None,
        typer.Option(
            help="Of an artefact: compact ones are smaller, float16 ones exact. Default: as they are.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Of plain weights. Default: float32, and as they are if nothing was quantized."),
    ] = None,
) -> None:
    """Write a model in another format, one tensor at a time, for other software to load."""
    from anyprec_jax.checkpoint import export as convert
    from anyprec_jax.checkpoint import precision_for

    wanted = None if precision is None else precision_for(model, precision)
    convert(model, dest, target, precision=wanted, dtype=dtype, codebooks=codebooks)
    messages.print(f"wrote {dest}", markup=False)
