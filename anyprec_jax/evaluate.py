"""How much of a model a precision preserves: perplexity on a text, and KL divergence from the unquantized model.

The text is cut into chunks of `sequence_length` tokens. Each chunk is run on its own; every token but a chunk's first
is scored, and a last chunk of at least two tokens counts like the others. Perplexity is the exponential of the mean
negative log-likelihood over all scored tokens; KL is the mean of KL(reference || model) over the same positions, in
nats per token; top-1 is the share of them where the likeliest token is the reference's, the first of equals.

Chunks go through the layers in groups: each layer is dequantized once for a group, into one program for all precisions,
and the plain weights of one layer exist at a time. The output head then takes one chunk after the other, the reference
first, so that one chunk's log-probabilities exist at a time. Everything is computed in float32, whatever the weights are.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Shaped

from anyprec_jax.array import Matrix, nbytes
from anyprec_jax.divergence import kl_divergence as kl_divergence
from anyprec_jax.generation import TokenIds, check_precision, readable_precisions
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import embed, layer_forward, unembed, with_kinds
from anyprec_jax.models.expansion import expanded
from anyprec_jax.models.fusion import linears
from anyprec_jax.models.model import Model
from anyprec_jax.models.precision_map import Precision, mean_precision, precision_of
from anyprec_jax.models.split import SHARE, SPLIT, on_every_device
from anyprec_jax.ops import dequantize_layer

Chunk: TypeAlias = tuple[np.ndarray, int]  # tokens int32 [seq], padded on the right, and how many of them are real

_TOKENS_AT_ONCE = (
    4096  # between the layers: hidden states only, which are small, and decoding a layer costs 1 % by then
)
_POSITIONS_AT_ONCE = 64  # in the output head: that many rows of logits stay in a processor's cache


class Result(NamedTuple):
    """One row of an evaluation."""

    precision: Precision | Literal["reference"] | None  # as asked for; None: the model's own, unquantized weights
    perplexity: float
    kl: float | None  # nats per token; None without a reference
    bits_per_weight: float  # read at this precision, codebooks included, over the linears of the layers
    mean_precision: float | None = None  # the same without codebooks; None for unquantized weights
    top1: float | None = None  # share of positions whose likeliest token is the reference's; None without one


def perplexity(model: Model, tokens: TokenIds, *, precision: Precision | None, sequence_length: int = 512) -> float:
    """Perplexity of a text that is tokenized without special tokens; see the module.

    Raises:
      ValueError: as `evaluate`.
    """
    (result,) = evaluate(model, tokens, precisions=[precision], sequence_length=sequence_length)
    return result.perplexity


def evaluate(
    model: Model,
    tokens: TokenIds,
    *,
    precisions: Sequence[Precision | None] | None = None,
    reference: Model | None = None,
    sequence_length: int = 512,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """Scores a text at several precisions.

    Args:
      model: the model in question.
      tokens: the text, tokenized without special tokens.
      precisions: what to read the model at, ints and maps, None meaning its unquantized weights; by default, every int that it can be
        read at.
      reference: the unquantized model that KL is measured from; gets the first row.
      sequence_length: tokens in a chunk, at least 2.
      progress: told (steps done, steps in all); a step is one chunk in one layer or in the output head.

    Raises:
      ValueError: fewer than 2 tokens, or ids outside the vocabulary; a sequence length below 2 or beyond the context;
        models with different vocabularies; a precision the model cannot be read at.

    Cost: two programs for all precisions, and one for each that dequantizes a layer. Memory beyond the models: one layer's
      weights, one chunk's log-probabilities [sequence_length, vocab] and, for each row of the result, the hidden states
      [4096, hidden] of a group; float32.
    """
    precisions = list(readable_precisions(model) or [None]) if precisions is None else list(precisions)
    model = _on_device(model)
    return evaluate_models(
        [(model, precision) for precision in precisions],
        tokens,
        reference=reference,
        sequence_length=sequence_length,
        progress=progress,
    )


def evaluate_models(
    readings: Sequence[tuple[Model, Precision | None]],
    tokens: TokenIds,
    *,
    reference: Model | None = None,
    sequence_length: int = 512,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """`evaluate` of several models, each at a precision of its own: the reference goes through the text once for all of them.

    Args:
      readings: models and what to read each at, at least one.
      tokens, reference, sequence_length, progress: as for `evaluate`.

    Raises:
      ValueError: as `evaluate`.
    """
    if not readings:
        raise ValueError("evaluation needs at least one precision to read a model at, and none was named")
    text = _checked_tokens(tokens, min((model.config for model, _ in readings), key=lambda config: config.vocab_size))
    for model, precision in readings:
        _check_models(model, reference, sequence_length)
        check_precision(model, precision)
    rows = [_Row(_on_device(model), precision) for model, precision in readings]
    baseline = None if reference is None else _Row(_on_device(reference), None)
    chunks = list(_chunks(text, min(sequence_length, len(text))))  # a text shorter than a chunk needs no padding
    step = _counter([row for row in (baseline, *rows) if row is not None], len(chunks), progress)
    for group in _groups(chunks):
        hidden = [row.hidden_states(group, step) for row in rows]
        expecting = None if baseline is None else baseline.hidden_states(group, step)
        for index, chunk in enumerate(group):
            expected = None
            if baseline is not None and expecting is not None:
                expected = baseline.score_reference(expecting[index], chunk)
                step()
            for row, states in zip(rows, hidden, strict=True):
                row.score(states[index], chunk, expected)
                step()
    first = [] if baseline is None else [baseline.result("reference")]
    return first + [row.result(precision) for row, (_, precision) in zip(rows, readings, strict=True)]


def read_bits_per_weight(params: dict[str, Any], *, precision: Precision | None) -> float:
    """Bits per weight that a pass over the layers' linears reads: planes and codebook, or plain arrays whole.

    Embedding and head are not among them, whatever they are stored in.
    """
    weights = linears(params["layers"])
    read = sum(
        _read_bytes(w, precision_of(precision, name)) if isinstance(w, Matrix) else w.nbytes
        for name, w in weights.items()
    )
    return 8 * read / sum(math.prod(w.shape) for w in weights.values())


def _read_bytes(stack: Matrix, precision: int | tuple[int, ...] | None) -> float:
    of_layers = precision if isinstance(precision, tuple) else (precision,)  # which are all of one size
    return sum(nbytes(stack, precision=w) for w in of_layers) / len(of_layers)


class _Row:
    """A model at one precision and its sums so far, in float64 on the host."""

    def __init__(self, model: Model, precision: Precision | None) -> None:
        self.config = model.config
        self._layers = with_kinds(model.params["layers"], model.config)
        self._top = {name: leaf for name, leaf in model.params.items() if name != "layers"}
        self._precision = precision
        self._bits_per_weight = read_bits_per_weight(model.params, precision=precision)
        self._mean_precision = None if precision is None else mean_precision(model.params["layers"], precision)
        self._scored = 0
        self._nll = 0.0
        self._kl: float | None = None
        self._top1: float | None = None

    def hidden_states(self, chunks: Sequence[Chunk], step: Callable[[], None]) -> list[Float32[Array, "seq hidden"]]:
        """What the last layer makes of each chunk; tells `step` about every chunk in every layer."""
        layers = expanded(self._layers, self._precision)
        hidden = [embed(self._top, jnp.asarray(tokens), self.config).astype(jnp.float32) for tokens, _ in chunks]
        for index in range(self.config.num_layers):
            layer = _plain_layer(layers, jnp.int32(index), precision=self._precision)
            for position, states in enumerate(hidden):
                hidden[position] = jax.block_until_ready(_layer_output(layer, states, config=self.config))
                step()
        return hidden

    def score_reference(
        self, hidden: Float32[Array, "seq hidden"], chunk: Chunk
    ) -> Float32[Array, "blocks block vocab"]:
        """Scores a chunk, and returns the log-probabilities that others are compared with."""
        tokens, length = chunk
        expected = _log_probabilities(self._top, hidden, config=self.config)
        nll = _nll(expected, _blocks(jnp.asarray(_next(tokens))))
        self._add(length, nll.ravel(), np.zeros(nll.size, np.float32), np.ones(nll.size, np.bool_))
        return expected

    def score(
        self, hidden: Float32[Array, "seq hidden"], chunk: Chunk, expected: Float32[Array, "blocks block vocab"] | None
    ) -> None:
        """Scores a chunk, and compares with what a reference expected, if there is one."""
        tokens, length = chunk
        self._add(length, *_score(self._top, hidden, _next(tokens), expected, config=self.config))

    def result(self, precision: Precision | Literal["reference"] | None) -> Result:
        return Result(
            precision=precision,
            perplexity=math.exp(self._nll / self._scored),
            kl=None if self._kl is None else self._kl / self._scored,
            bits_per_weight=self._bits_per_weight,
            mean_precision=self._mean_precision,
            top1=None if self._top1 is None else self._top1 / self._scored,
        )

    def _add(self, length: int, nll: Any, kl: Any, same: Any) -> None:
        scored = slice(length - 1)  # what the last token and padding predict, and what predicts padding, does not count
        self._scored += length - 1
        self._nll += float(np.sum(np.asarray(nll)[scored], dtype=np.float64))
        if kl is not None:
            self._kl = (self._kl or 0.0) + float(np.sum(np.asarray(kl)[scored], dtype=np.float64))
            self._top1 = (self._top1 or 0.0) + float(np.sum(np.asarray(same)[scored], dtype=np.float64))


def _on_device(model: Model) -> Model:
    """NumPy leaves would be copied to the device at every pass."""
    return dataclasses.replace(model, params=jax.tree.map(jnp.asarray, model.params))


def _chunks(tokens: Int32[np.ndarray, " tokens"], size: int) -> Iterator[Chunk]:
    """Chunks of one size, the last padded on the right with zeros."""
    for start in range(0, len(tokens) - 1, size):
        chunk = tokens[start : start + size]
        yield np.pad(chunk, (0, size - len(chunk))), len(chunk)


def _groups(chunks: Sequence[Chunk]) -> Iterator[Sequence[Chunk]]:
    """The chunks that go through the layers together."""
    size = max(1, _TOKENS_AT_ONCE // len(chunks[0][0]))
    for start in range(0, len(chunks), size):
        yield chunks[start : start + size]


def _counter(rows: Sequence["_Row"], num_chunks: int, progress: Callable[[int, int], None]) -> Callable[[], None]:
    """Counts a step with each call."""
    total = num_chunks * sum(row.config.num_layers + 1 for row in rows)
    done = itertools.count(1)
    return lambda: progress(next(done), total)


def _next(tokens: Int32[np.ndarray, " seq"]) -> Int32[np.ndarray, " seq"]:
    """The token after each; the last has none and gets the first, which nobody counts."""
    return np.roll(tokens, -1)


@functools.partial(jax.jit, static_argnames="precision")
def _plain_layer(layers: dict[str, Any], index: Int32[Array, ""], *, precision: Precision | None) -> dict[str, Array]:
    """One layer's parameters as plain float32 arrays, its matrices as `precision` bits have them."""
    if SPLIT in layers:
        specs = {name: layers[SPLIT].plain_spec(name, len(leaf.shape) - 1) for name, leaf in _arrays(layers).items()}

        def share(layers: dict[str, Any], index: Array, config: ModelConfig) -> dict[str, Array]:
            return _plain_layer(_arrays(layers), index, precision=precision)

        return {**on_every_device(share, layers, (index,), out_specs=specs), SPLIT: layers[SPLIT]}

    def plain(name: str, stack: Any) -> Array:
        if isinstance(stack, Matrix) and (wanted := precision_of(precision, name)) is not None:
            return dequantize_layer(stack, index, precision=wanted)
        leaf = jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)
        return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return {name: plain(name, stack) for name, stack in layers.items()}


def _arrays(layers: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in layers.items() if name not in (SPLIT, SHARE)}


@functools.partial(jax.jit, static_argnames="config")
def _layer_output(
    layer: dict[str, Array], hidden: Float32[Array, "seq hidden"], *, config: ModelConfig
) -> Float32[Array, "seq hidden"]:
    return layer_forward(layer, hidden[None], config)[0]


@functools.partial(jax.jit, static_argnames="config")
def _log_probabilities(
    top: dict[str, Any], hidden: Float32[Array, "seq hidden"], *, config: ModelConfig
) -> Float32[Array, "blocks block vocab"]:
    """Log-probabilities of the token after each, in blocks of positions; the last block is padded."""
    return jax.lax.map(lambda block: jax.nn.log_softmax(unembed(top, block, config)), _blocks(hidden))


@functools.partial(jax.jit, static_argnames="config")
def _score(
    top: dict[str, Any],
    hidden: Float32[Array, "seq hidden"],
    following: Int32[Array, " seq"],
    expected: Float32[Array, "blocks block vocab"] | None,
    *,
    config: ModelConfig,
) -> tuple[Float32[Array, " padded"], Float32[Array, " padded"] | None, Bool[Array, " padded"] | None]:
    """Negative log-likelihood of the token after each; KL from `expected` there, and whether the likeliest token is the same."""

    def score(block: tuple[Array, Array, Array | None]) -> tuple[Array, Array | None, Array | None]:
        hidden, following, expected = block
        predicted = jax.nn.log_softmax(unembed(top, hidden, config))
        nll = _nll(predicted, following)
        if expected is None:
            return nll, None, None
        same = jnp.argmax(predicted, axis=-1) == jnp.argmax(expected, axis=-1)
        return nll, kl_divergence(expected, predicted), same

    scores = jax.lax.map(score, (_blocks(hidden), _blocks(following), expected))
    return jax.tree.map(jnp.ravel, scores)


def _blocks(positions: Shaped[Array, "seq ..."]) -> Shaped[Array, "blocks block ..."]:
    """Cuts what there is for each position into blocks, the last padded with zeros."""
    size = min(_POSITIONS_AT_ONCE, len(positions))
    padding = [(0, -len(positions) % size)] + [(0, 0)] * (positions.ndim - 1)
    return jnp.pad(positions, padding).reshape(-1, size, *positions.shape[1:])


@jax.jit
def _nll(
    log_probabilities: Float32[Array, "*batch vocab"], following: Int32[Array, "*batch"]
) -> Float32[Array, "*batch"]:
    """Negative log-likelihood of the token after each."""
    return -jnp.take_along_axis(log_probabilities, following[..., None], axis=-1)[..., 0]


def _checked_tokens(tokens: TokenIds, config: ModelConfig) -> Int32[np.ndarray, " tokens"]:
    ids = np.asarray(tokens)
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError(f"scoring needs one text of at least 2 tokens, but came tokens of shape {ids.shape}")
    if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= config.vocab_size:
        raise ValueError(
            f"token ids should be integers in [0, {config.vocab_size}), but the text has {ids.min()} to {ids.max()}: "
            "was it tokenized for another model?"
        )
    return ids.astype(np.int32)


def _check_models(model: Model, reference: Model | None, sequence_length: int) -> None:
    if reference is not None and reference.config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the reference has a vocabulary of {reference.config.vocab_size} tokens and the model one of "
            f"{model.config.vocab_size}: KL compares models with the same vocabulary"
        )
    if reference is not None and readable_precisions(reference):
        raise ValueError("the reference is quantized: KL is measured from the model as it was before")
    contexts = [m.config.max_position_embeddings for m in (model, reference) if m is not None]
    if not 2 <= sequence_length <= min(contexts):
        raise ValueError(
            f"sequence_length should be between 2 and the context of {min(contexts)}, but is {sequence_length}"
        )
