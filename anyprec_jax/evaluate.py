"""How much of a model a precision preserves: perplexity on a text, and KL divergence from the unquantized model.

The text is cut into chunks of `sequence_length` tokens. Each chunk is run on its own; every token but a chunk's first
is scored, and a last chunk of at least two tokens counts like the others. Perplexity is the exponential of the mean
negative log-likelihood over all scored tokens; KL is the mean of KL(reference || model) over the same positions, in
nats per token.

A chunk goes through the reference once and then through the model at each precision, so no more than two chunks' logits
exist at a time.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from anyprec_jax.array import AnyPrecArray, nbytes
from anyprec_jax.generation import TokenIds, check_precision, readable_precisions
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import forward
from anyprec_jax.models.fusion import linears
from anyprec_jax.models.model import Model

# KL is summed by a second-order formula where the log-probabilities differ by less than this.
_SMALL_DIFFERENCE = 0.5


class Result(NamedTuple):
    """One row of an evaluation."""

    precision: int | Literal["reference"] | None  # None: the model's own, unquantized weights
    perplexity: float
    kl: float | None  # nats per token; None without a reference
    bits_per_weight: float  # read at this precision, codebooks included, over the linears of the layers


def perplexity(model: Model, tokens: TokenIds, *, precision: int | None, sequence_length: int = 512) -> float:
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
    precisions: Sequence[int | None] | None = None,
    reference: Model | None = None,
    sequence_length: int = 512,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """Scores a text at several precisions.

    Args:
      model: the model in question.
      tokens: the text, tokenized without special tokens.
      precisions: what to read the model at, None meaning its unquantized weights; by default, all it can be read at.
      reference: the unquantized model that KL is measured from; gets the first row.
      sequence_length: tokens in a chunk, at least 2.
      progress: told (passes over a chunk done, passes in all).

    Raises:
      ValueError: fewer than 2 tokens, or ids outside the vocabulary; a sequence length below 2 or beyond the context;
        models with different vocabularies; a precision the model cannot be read at.

    Cost: one program per precision, whatever the text; memory for the logits of two chunks, [sequence_length, vocab] in
    float32 each.
    """
    text = _checked_tokens(tokens, model.config)
    precisions = list(readable_precisions(model) or [None]) if precisions is None else list(precisions)
    _check_models(model, reference, sequence_length)
    for precision in precisions:
        check_precision(model, precision)
    model = _on_device(model)
    rows = [_Row(model, precision) for precision in precisions]
    baseline = None if reference is None else _Row(_on_device(reference), None)
    chunks = list(_chunks(text, min(sequence_length, len(text))))  # a text shorter than a chunk needs no padding
    passes = len(chunks) * (len(rows) + (baseline is not None))
    done = itertools.count(1)
    for chunk, length in chunks:
        expected = None
        if baseline is not None:
            expected = baseline.score_reference(chunk, length)
            progress(next(done), passes)
        for row in rows:
            row.score(chunk, length, expected)
            progress(next(done), passes)
    first = [] if baseline is None else [baseline.result("reference")]
    return first + [row.result(precision) for row, precision in zip(rows, precisions, strict=True)]


def read_bits_per_weight(params: dict[str, Any], *, precision: int | None) -> float:
    """Bits per weight that a pass over the layers' linears reads: planes and codebook, or plain arrays whole.

    Embedding and head are not among them, whatever they are stored in.
    """
    weights = linears(params["layers"]).values()
    read = sum(nbytes(w, precision=precision) if isinstance(w, AnyPrecArray) else w.nbytes for w in weights)
    return 8 * read / sum(math.prod(w.shape) for w in weights)


class _Row:
    """A model at one precision and its sums so far, in float64 on the host."""

    def __init__(self, model: Model, precision: int | None) -> None:
        self._params = model.params
        self._static = {"config": model.config, "precision": precision}
        self._bits_per_weight = read_bits_per_weight(model.params, precision=precision)
        self._scored = 0
        self._nll = 0.0
        self._kl: float | None = None

    def score_reference(self, chunk: Int32[np.ndarray, " seq"], length: int) -> Float32[Array, "seq vocab"]:
        """Scores a chunk, and returns the log-probabilities that others are compared with."""
        expected = _log_probabilities(self._params, chunk, **self._static)
        self._add(length, _nll(expected, chunk), np.zeros(len(chunk) - 1, np.float32))
        return expected

    def score(
        self, chunk: Int32[np.ndarray, " seq"], length: int, expected: Float32[Array, "seq vocab"] | None
    ) -> None:
        """Scores the first `length` tokens of a chunk, and compares with what a reference expected, if there is one."""
        self._add(length, *_score(self._params, chunk, expected, **self._static))

    def result(self, precision: int | Literal["reference"] | None) -> Result:
        return Result(
            precision=precision,
            perplexity=math.exp(self._nll / self._scored),
            kl=None if self._kl is None else self._kl / self._scored,
            bits_per_weight=self._bits_per_weight,
        )

    def _add(self, length: int, nll: Any, kl: Any) -> None:
        scored = slice(length - 1)  # what padding predicts, and what predicts padding, does not count
        self._scored += length - 1
        self._nll += float(np.sum(np.asarray(nll)[scored], dtype=np.float64))
        if kl is not None:
            self._kl = (self._kl or 0.0) + float(np.sum(np.asarray(kl)[scored], dtype=np.float64))


def _on_device(model: Model) -> Model:
    """NumPy leaves would be copied to the device at every pass."""
    return dataclasses.replace(model, params=jax.tree.map(jnp.asarray, model.params))


def _chunks(tokens: Int32[np.ndarray, " tokens"], size: int) -> Iterator[tuple[Int32[np.ndarray, " size"], int]]:
    """Chunks of one size, the last padded on the right with zeros, and how many tokens of each are real."""
    for start in range(0, len(tokens) - 1, size):
        chunk = tokens[start : start + size]
        yield np.pad(chunk, (0, size - len(chunk))), len(chunk)


@functools.partial(jax.jit, static_argnames=("config", "precision"))
def _log_probabilities(
    params: dict[str, Any], tokens: Int32[Array, " seq"], *, config: ModelConfig, precision: int | None
) -> Float32[Array, "seq vocab"]:
    """Log-probabilities of the token after each."""
    logits = forward(params, tokens[None], config, precision=precision)[0]
    return jax.nn.log_softmax(logits.astype(jnp.float32))


@functools.partial(jax.jit, static_argnames=("config", "precision"))
def _score(
    params: dict[str, Any],
    tokens: Int32[Array, " seq"],
    expected: Float32[Array, "seq vocab"] | None,
    *,
    config: ModelConfig,
    precision: int | None,
) -> tuple[Float32[Array, " scored"], Float32[Array, " scored"] | None]:
    """Negative log-likelihood of every token but the first, and KL from `expected` where each is predicted."""
    predicted = _log_probabilities(params, tokens, config=config, precision=precision)
    divergence = None if expected is None else kl_divergence(expected[:-1], predicted[:-1])
    return _nll(predicted, tokens), divergence


@jax.jit
def _nll(log_probabilities: Float32[Array, "seq vocab"], tokens: Int32[Array, " seq"]) -> Float32[Array, " scored"]:
    """Negative log-likelihood of every token but the first."""
    return -jnp.take_along_axis(log_probabilities[:-1], tokens[1:, None], axis=1)[:, 0]


def kl_divergence(
    expected: Float[Array, "*batch vocab"], predicted: Float[Array, "*batch vocab"]
) -> Float[Array, "*batch"]:
    """KL(expected || predicted) of log-probabilities, in nats.

    With p, q the probabilities and d = log p - log q, the sum of p d is also that of p d + q - p = p (exp(-d) - 1 + d),
    since both distributions sum to 1. Those terms are of second order in d and never negative, so rounding
    errors of d, which in the plain sum are errors of KL, are multiplied by d: KLs of 1e-6 and less keep their digits in
    float32.
    """
    difference = expected - predicted
    p = jnp.exp(expected)
    small = p * (jnp.expm1(-difference) + difference)
    large = p * difference + (jnp.exp(predicted) - p)
    return jnp.sum(jnp.where(jnp.abs(difference) < _SMALL_DIFFERENCE, small, large), axis=-1)


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
