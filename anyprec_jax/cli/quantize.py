"""`anyprec quantize`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from anyprec_jax.cli.arguments import ModelPath
from anyprec_jax.cli.progress import progress_bars
from bandwise_commands.errors import messages, reporting_errors


@reporting_errors
def quantize(
    model: ModelPath,
    out: Annotated[Path, typer.Argument(help="The artefact to write: a new folder.", show_default=False)],
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text to measure the weights' sensitivity on; repeat for several, of different kinds if possible."
        ),
    ] = None,
    uniform: Annotated[bool, typer.Option("--uniform", help="No calibration: every weight counts the same.")] = False,
    quality: Annotated[
        Literal["fast", "best"] | None,
        typer.Option(
            help="best optimises the codes of all precisions for what each row makes of its inputs; fast, the paper's way, places every "
            "weight by itself, in less time. Default: best, and fast with --uniform.",
            show_default=False,
        ),
    ] = None,
    num_sequences: Annotated[int, typer.Option(help="Calibration windows, of all texts together.")] = 100,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a calibration window.")] = 512,
    seed_precision: Annotated[
        int, typer.Option(help="Fewest bits that can be read; 2 costs all finer widths some 10 to 30 % more error.")
    ] = 3,
    parent_precision: Annotated[int, typer.Option(help="Most bits that can be read.")] = 8,
    head_precision: Annotated[
        Literal["8", "none"], typer.Option(help="Bits of embedding and output head; none leaves them as they are.")
    ] = "8",
    codebooks: Annotated[
        Literal["float16", "compact"],
        typer.Option(help="compact: 92 bytes a row instead of 1,008 for 3 to 8 bits, at some loss from 4 bits on."),
    ] = "float16",
    seed: Annotated[int, typer.Option(help="Seed of the windows' offsets.")] = 0,
) -> None:
    """Quantize every linear of MODEL's layers into OUT. Killed and started again, it continues where it was."""
    from anyprec_jax.config import QuantizeConfig
    from anyprec_jax.model_quantization import Calibration, quantize_model

    if bool(calibration) == uniform:
        raise ValueError("give either --calibration FILE or --uniform")
    settings = None
    if calibration:
        settings = Calibration(
            text=tuple(calibration), num_sequences=num_sequences, sequence_length=sequence_length, seed=seed
        )
    config = QuantizeConfig(seed_precision=seed_precision, parent_precision=parent_precision)
    with progress_bars(messages) as progress:
        quantize_model(
            model,
            out,
            config,
            calibration=settings,
            quality=quality,
            codebooks=codebooks,
            head_precision=None if head_precision == "none" else int(head_precision),
            progress=progress,
        )
    messages.print(f"wrote {out}", markup=False)
