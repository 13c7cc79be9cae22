"""Text from a model: the prompt in a few large steps (prefill), then blocks of tokens (decode).

A prompt is padded to a power of two and the cache holds a power of two of positions, so that texts of any length run through
a handful of programs and none is compiled while text is being written.
"""

import operator
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from anyprec_jax import decoding
from anyprec_jax.array import Matrix
from anyprec_jax.chat import Message
from anyprec_jax.models.decoder import KVCache, hidden_dtype, init_cache
from anyprec_jax.models.expansion import expanded
from anyprec_jax.models.fusion import linears
from anyprec_jax.models.model import Model
from anyprec_jax.models.precision_map import Precision, PrecisionMap, check_map
from anyprec_jax.sampling import checked_sampling
from anyprec_jax.text_stream import TextBuffer
from anyprec_jax.tokenizer import Tokenizer

TokenIds: TypeAlias = Sequence[int] | Int[np.ndarray, " tokens"] | Int[Array, " tokens"]
Prompt: TypeAlias = str | TokenIds | Sequence[Message]  # text, token ids, or (with chat=True) a conversation

_MAX_PREFILL = 512  # tokens of a prompt in one step: bounds the attention scores to [heads, 512, context]
_MIN_PREFILL = 16
_MIN_CACHE = 64
_BLOCK_S = 0.1  # a reader of the stream waits no longer than this for what the device has written


class Generation(NamedTuple):
    """What was generated, and how long it took. Text is None for a model without a tokenizer."""

    text: str | None  # without special tokens, up to the stop string
    tokens: list[int]  # sampled ids, the one that ended the text included
    finish_reason: Literal["stop", "length"]  # an end token or a stop string; max_new_tokens
    prompt_tokens: int
    new_tokens: int
    compile_s: float  # 0 but for some milliseconds once the programs for these sizes exist
    prefill_s: float  # to the first token
    decode_s: float  # for the tokens after the first (and a few beyond a stop string), without the time a consumer took

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed; 0 where nothing came after the first token."""
        return (self.new_tokens - 1) / self.decode_s if self.decode_s else 0.0


def readable_precisions(model: Model) -> tuple[int, ...]:
    """The precisions that every matrix of a model can be read at, ascending; none for a model that is not quantized."""
    matrices = [weight for weight in linears(model.params["layers"]).values() if isinstance(weight, Matrix)]
    common = set.intersection(*(set(matrix.precisions) for matrix in matrices)) if matrices else set()
    return tuple(sorted(common))


def highest_precision(model: Model) -> int | None:
    """The finest precision a model can be read at; None for one that is not quantized."""
    return max(readable_precisions(model), default=None)


def check_precision(model: Model, precision: Precision | None) -> None:
    """Raises ValueError unless a model can be read at `precision`, None being right for one that is not quantized."""
    if isinstance(precision, PrecisionMap):
        check_map(model.params["layers"], precision)
        return
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
    precision: Precision | None,
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
      precision: bits per weight to read, or a `PrecisionMap`, as `allocate` makes it; None for a model that is not quantized.
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
    precision: Precision | None,
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
    params["layers"] = expanded(params["layers"], precision)
    steps = prefill_steps(len(ids))
    room = max(_MIN_CACHE, _power_of_two(len(ids) + max_new_tokens))
    cache = init_cache(model.config, batch=1, length=room, dtype=hidden_dtype(params), params=params)
    ends = {*model.config.eos_token_ids, *(model.tokenizer.eos_ids if model.tokenizer else ())}
    traced = {"key": jax.random.key(seed), "sampling": sampling}
    static = {"config": model.config, "precision": precision}
    # Ahead of the clock, and called as compiled: the jitted function would trace again for a keyword that was positional here.
    prefill = {
        size: decoding.prefill.lower(params, *_padded((), size), cache, **traced, **static).compile()
        for size in sorted({padded for _, _, padded in steps})
    }
    end_ids, zero = jnp.asarray(sorted(ends), jnp.int32), jnp.int32(0)
    decode = None
    if max_new_tokens > 1:
        decode = decoding.decode.lower(params, zero, zero, end_ids, cache, **traced, **static).compile()
    device = _Device(prefill, decode, params, end_ids, cache, traced)
    compile_s = time.perf_counter() - started
    return TextStream(_pieces(device, ids, steps, text, ends, max_new_tokens, compile_s))


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


class _Device:
    """The cache, and the programs that read and write it; where the time goes."""

    def __init__(
        self,
        prefill: Mapping[int, Callable[..., Any]],  # by padded length
        decode: Callable[..., Any] | None,  # None where one token is all that is wanted
        params: Any,
        ends: Array,
        cache: KVCache,
        traced: Mapping[str, Any],
    ) -> None:
        self._prefill, self._decode = prefill, decode
        self._params, self._ends, self._cache, self._traced = params, ends, cache, traced
        self._last = jnp.int32(0)
        self._decoded = 0
        self.prefill_s = self.decode_s = 0.0

    def first(self, prompt: Sequence[int], steps: Sequence[PrefillStep]) -> int:
        """Reads the prompt and returns the token that follows it."""
        started = time.perf_counter()
        for start, end, padded in steps:
            piece = _padded(prompt[start:end], padded)
            self._last, self._cache = self._prefill[padded](self._params, *piece, self._cache, **self._traced)
        token = int(self._last)
        self.prefill_s = time.perf_counter() - started
        return token

    def following(self, at_most: int) -> list[int]:
        """The next block of tokens, at least one: as many as take `_BLOCK_S`, judging by those before.

        Of several processes each has a clock of its own, and all must ask for the same: a block is then as long as it can be.
        """
        assert self._decode is not None
        size = 1 if self._decoded == 0 else decoding.MAX_BLOCK
        if self.decode_s > 0 and jax.process_count() == 1:
            size = max(1, min(int(_BLOCK_S * self._decoded / self.decode_s), size))
        started = time.perf_counter()
        count = jnp.int32(min(size, at_most))
        arguments = (self._params, self._last, count, self._ends, self._cache)
        block, done, self._cache = self._decode(*arguments, **self._traced)
        tokens = np.asarray(block)[: int(done)].tolist()
        self._last = jnp.int32(tokens[-1])
        self.decode_s += time.perf_counter() - started
        self._decoded += len(tokens)
        return tokens


def _pieces(
    device: _Device,
    prompt: Sequence[int],
    steps: Sequence[PrefillStep],
    text: TextBuffer | None,
    ends: Collection[int],
    max_new_tokens: int,
    compile_s: float,
) -> Generator[str, None, Generation]:
    """The loop: yields text that will not be taken back, and returns the account of it all."""
    tokens = [device.first(prompt, steps)]
    block: list[int] = []
    is_stopped = False
    while tokens[-1] not in ends:
        if text is not None:
            if piece := text.push(tokens[-1]):
                yield piece
            is_stopped = text.is_stopped
        if is_stopped or len(tokens) == max_new_tokens:
            break
        block = block or device.following(max_new_tokens - len(tokens))
        tokens.append(block.pop(0))
    if text is not None and (piece := text.finish()):
        yield piece
    return Generation(
        text=None if text is None else text.text,
        tokens=tokens,
        finish_reason="stop" if is_stopped or tokens[-1] in ends else "length",
        prompt_tokens=len(prompt),
        new_tokens=len(tokens),
        compile_s=compile_s,
        prefill_s=device.prefill_s,
        decode_s=device.decode_s,
    )


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
