"""Text from a model: the prompt in a few large steps (prefill), then one token at a time (decode).

Both are one jitted function, compiled for a few sizes: a prompt is padded to a power of two and the cache holds a power
of two of positions, so that texts of any length run through a handful of programs and none is compiled while text is
being written.
"""

import functools
import operator
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Key

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.chat import Message
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import KVCache, hidden_states, init_cache, unembed
from anyprec_jax.models.fusion import linears
from anyprec_jax.models.model import Model
from anyprec_jax.sampling import Sampling, checked_sampling, sample
from anyprec_jax.text_stream import TextBuffer
from anyprec_jax.tokenizer import Tokenizer

TokenIds: TypeAlias = Sequence[int] | Int[np.ndarray, " tokens"] | Int[Array, " tokens"]
Prompt: TypeAlias = str | TokenIds | Sequence[Message]  # text, token ids, or (with chat=True) a conversation

_MAX_PREFILL = 512  # tokens of a prompt in one step: bounds the attention scores to [heads, 512, context]
_MIN_PREFILL = 16
_MIN_CACHE = 64


class Generation(NamedTuple):
    """What was generated, and how long it took. Text is None for a model without a tokenizer."""

    text: str | None  # without special tokens, up to the stop string
    tokens: list[int]  # sampled ids, the one that ended the text included
    finish_reason: Literal["stop", "length"]  # an end token or a stop string; max_new_tokens
    prompt_tokens: int
    new_tokens: int
    compile_s: float  # 0 but for some milliseconds once the programs for these sizes exist
    prefill_s: float  # to the first token
    decode_s: float  # for the tokens after the first, without the time a consumer of the stream took

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed; 0 where nothing came after the first token."""
        return (self.new_tokens - 1) / self.decode_s if self.decode_s else 0.0


def readable_precisions(model: Model) -> tuple[int, ...]:
    """The precisions that every matrix of a model can be read at, ascending; none for a model that is not quantized."""
    matrices = [weight for weight in linears(model.params["layers"]).values() if isinstance(weight, AnyPrecArray)]
    common = set.intersection(*(set(matrix.precisions) for matrix in matrices)) if matrices else set()
    return tuple(sorted(common))


def highest_precision(model: Model) -> int | None:
    """The finest precision a model can be read at; None for one that is not quantized."""
    return max(readable_precisions(model), default=None)


def check_precision(model: Model, precision: int | None) -> None:
    """Raises ValueError unless a model can be read at `precision`, None being right for one that is not quantized."""
    readable = readable_precisions(model)
    choices = ", ".join(map(str, readable))
    if precision is None and readable:
        raise ValueError(f"the model is quantized: give a precision to read it at, one of {choices}")
    if precision is not None and precision not in readable:
        what = f"can be read at {choices} bits" if readable else "is not quantized: its precision should be None"
        raise ValueError(f"the model {what}, but the precision given is {precision}")


class PrefillStep(NamedTuple):
    """A piece of a prompt that runs at once."""

    start: int
    end: int
    padded: int  # tokens, with padding


class TextStream(Iterator[str]):
    """Iterates over text as it is generated; `result` is there once it is exhausted."""

    def __init__(self, pieces: Generator[str, None, Generation]) -> None:
        self._pieces = pieces
        self.result: Generation | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self.result = end.value
            raise


def generate(
    model: Model,
    prompt: Prompt,
    *,
    precision: int | None,
    chat: bool = False,
    max_new_tokens: int = 64,
    temperature: float | int = 0.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    min_p: float | int | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> Generation:
    """Continues a prompt, or answers a conversation.

    The same model, arguments and seed give the same tokens on the same machine.

    Args:
      model: its linears any-precision matrices, or plain arrays.
      prompt: text or token ids; with `chat`, the user's message or a list of messages.
      precision: bits per weight to read; None for a model that is not quantized.
      chat: put the prompt into the model's chat template.
      max_new_tokens: stop after this many, at least 1.
      temperature: 0 takes the likeliest token; above, see `sampling` for this and the filters.
      top_k: choose among the k likeliest tokens.
      top_p: choose among the likeliest tokens that hold this much probability.
      min_p: drop tokens less than this times as likely as the likeliest.
      stop: the text ends before the first of these.
      seed: of the sampling.

    Raises:
      ValueError: an argument out of range; a prompt that is empty or, with the new tokens, longer than the model's
        context; text, stop strings or chat for a model without a tokenizer (or chat template); a precision the model
        cannot be read at.
    """
    text = stream(
        model,
        prompt,
        precision=precision,
        chat=chat,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=stop,
        seed=seed,
    )
    for _ in text:
        pass
    assert text.result is not None
    return text.result


def stream(
    model: Model,
    prompt: Prompt,
    *,
    precision: int | None,
    chat: bool = False,
    max_new_tokens: int = 64,
    temperature: float | int = 0.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    min_p: float | int | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> TextStream:
    """`generate`, yielding the text as it comes: whole characters only, and nothing of a stop string.

    Arguments are checked and programs compiled here; the model runs as the stream is read. Without a tokenizer it
    yields nothing.
    """
    sampling = checked_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids = _prompt_ids(model, prompt, chat)
    _check_limits(model, len(ids), max_new_tokens)
    check_precision(model, precision)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed should be between 0 and {2**32 - 1}, but is {seed}")
    text = _text_buffer(model.tokenizer, ids, stop)
    started = time.perf_counter()
    params = jax.tree.map(jnp.asarray, model.params)  # NumPy leaves would be copied to the device at every step
    steps = prefill_steps(len(ids))
    room = max(_MIN_CACHE, _power_of_two(len(ids) + max_new_tokens))
    cache = init_cache(model.config, batch=1, length=room, dtype=params["embedding"].dtype)
    settings = {"key": jax.random.key(seed), "sampling": sampling, "config": model.config, "precision": precision}
    for size in sorted({padded for _, _, padded in steps} | {1}):
        # Ahead of the clock: the call that follows finds the program that this makes.
        _step.lower(params, *_padded((), size), cache, **settings).compile()
    compile_s = time.perf_counter() - started
    step = functools.partial(_step, params, **settings)
    ends = {*model.config.eos_token_ids, *(model.tokenizer.eos_ids if model.tokenizer else ())}
    return TextStream(_pieces(step, cache, ids, steps, text, ends, max_new_tokens, compile_s))


def _prompt_ids(model: Model, prompt: Prompt, chat: bool) -> list[int]:
    if isinstance(prompt, str) or chat:
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer: give the prompt as token ids")
        if chat:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            text = model.tokenizer.render_chat(messages)  # pyright: ignore[reportArgumentType]
            ids = model.tokenizer.encode(text, special_tokens=False)
        else:
            ids = model.tokenizer.encode(str(prompt), special_tokens=True)
    else:
        ids = [operator.index(id) for id in prompt]  # pyright: ignore[reportArgumentType]
    if not ids:
        raise ValueError("the prompt is empty: give at least one token to continue")
    if min(ids) < 0 or max(ids) >= model.config.vocab_size:
        raise ValueError(
            f"token ids should lie in [0, {model.config.vocab_size}), but the prompt has {min(ids)} to {max(ids)}"
        )
    return ids


def _check_limits(model: Model, prompt_tokens: int, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens should be 1 or more, but is {max_new_tokens}")
    context = model.config.max_position_embeddings
    if prompt_tokens + max_new_tokens > context:
        raise ValueError(
            f"a prompt of {prompt_tokens} tokens and {max_new_tokens} new ones exceed the context of {context}: "
            "shorten the prompt or lower max_new_tokens"
        )


def _text_buffer(tokenizer: Tokenizer | None, prompt: Sequence[int], stop: Sequence[str]) -> TextBuffer | None:
    if isinstance(stop, str) or not all(stop):
        raise ValueError(f"stop should be a list of texts, none of them empty, but is {stop!r}")
    if tokenizer is not None:
        return TextBuffer(tokenizer, prompt=prompt, stop=stop)
    if stop:
        raise ValueError("stop strings need a tokenizer, and the model has none")
    return None


def _pieces(
    step: Callable[..., tuple[Array, KVCache]],
    cache: KVCache,
    prompt: Sequence[int],
    steps: Sequence[PrefillStep],
    text: TextBuffer | None,
    ends: Collection[int],
    max_new_tokens: int,
    compile_s: float,
) -> Generator[str, None, Generation]:
    """The loop: yields text that will not be taken back, and returns the account of it all."""
    started = time.perf_counter()
    for start, end, padded in steps:
        token, cache = step(*_padded(prompt[start:end], padded), cache)
    tokens = [int(token[0])]
    prefill_s, decode_s = time.perf_counter() - started, 0.0

    one = jnp.ones(1, jnp.int32)
    is_stopped = False
    while tokens[-1] not in ends:
        if text is not None:
            if piece := text.push(tokens[-1]):
                yield piece
            is_stopped = text.is_stopped
        if is_stopped or len(tokens) == max_new_tokens:
            break
        started = time.perf_counter()
        token, cache = step(token[:, None], one, cache)
        tokens.append(int(token[0]))
        decode_s += time.perf_counter() - started
    if text is not None and (piece := text.finish()):
        yield piece
    return Generation(
        text=None if text is None else text.text,
        tokens=tokens,
        finish_reason="stop" if is_stopped or tokens[-1] in ends else "length",
        prompt_tokens=len(prompt),
        new_tokens=len(tokens),
        compile_s=compile_s,
        prefill_s=prefill_s,
        decode_s=decode_s,
    )


@functools.partial(jax.jit, static_argnames=("config", "precision"), donate_argnames=("cache",))
def _step(
    params: dict[str, Any],
    tokens: Int[Array, "batch seq"],
    lengths: Int[Array, " batch"],
    cache: KVCache,
    *,
    key: Key[Array, ""],
    sampling: Sampling,
    config: ModelConfig,
    precision: int | None,
) -> tuple[Int32[Array, " batch"], KVCache]:
    """Appends the first `lengths` tokens of each row to the cache, which is consumed, and samples what follows them."""
    hidden, cache = hidden_states(params, tokens, config, precision=precision, cache=cache, lengths=lengths)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    logits: Float[Array, "batch vocab"] = unembed(params, last, config)[:, 0]
    # Keyed by position: a text that is resumed in its middle continues as it would have.
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, cache.lengths)
    return jax.vmap(sample, in_axes=(0, 0, None))(logits, keys, sampling), cache


def prefill_steps(length: int) -> list[PrefillStep]:
    """How a prompt is cut; all steps but the last are full."""
    steps = []
    for start in range(0, length, _MAX_PREFILL):
        end = min(start + _MAX_PREFILL, length)
        steps.append(PrefillStep(start, end, max(_MIN_PREFILL, _power_of_two(end - start))))
    return steps


def _padded(tokens: Sequence[int], size: int) -> tuple[Int32[Array, "1 size"], Int32[Array, " 1"]]:
    """One row of tokens, filled up with zeros, and how many of them are real."""
    row = np.zeros((1, size), np.int32)
    row[0, : len(tokens)] = tokens
    return jnp.asarray(row), jnp.asarray([len(tokens)], jnp.int32)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
