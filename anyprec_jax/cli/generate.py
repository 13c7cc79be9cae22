"""`anyprec generate`."""

import sys
from typing import Annotated, Any

import typer

from anyprec_jax.cli.arguments import AsJson, Devices, ModelPath, load_model, note_missing_native_op, print_json
from bandwise_commands.errors import reporting_errors


@reporting_errors
def generate(
    model: ModelPath,
    prompt: Annotated[str, typer.Option(help="The text to continue, or the message to answer.", show_default=False)],
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    precision: Annotated[
        float | None,
        typer.Option(help="Bits to read, 3.5 say on average. Default: the most there are.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="Divides the logits; 0 picks the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Choose among the K likeliest tokens. Default: all.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Choose among the fewest tokens that hold this share of the probability, 0 to 1. Default: all."
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Drop tokens below this share, 0 to 1, of the likeliest one's probability. Default: none."),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; repeat for several.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    devices: Devices = None,
    as_json: AsJson = False,
) -> None:
    """Write text, as it comes."""
    from anyprec_jax import generation
    from anyprec_jax.checkpoint import precision_for

    note_missing_native_op()
    wanted = None if precision is None else precision_for(model, precision)
    subject = load_model(model, None if wanted is None else [wanted], devices)
    options: dict[str, Any] = {
        "precision": wanted if wanted is not None else generation.highest_precision(subject),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "stop": tuple(stop or ()),
        "seed": seed,
        "chat": chat,
    }
    if as_json:
        print_json(generation.generate(subject, prompt, **options)._asdict())
        return
    for piece in generation.stream(subject, prompt, **options):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
