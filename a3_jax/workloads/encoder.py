"""A BERT encoder of sentences (MiniLM) as pure functions, with the attention of every layer in the caller's hands."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

_PRECISION = jax.lax.Precision.HIGHEST


class Counts(NamedTuple):
    """What an attention did for every query; meaningless where the query is padding.

    Attributes:
      M, C, K: iterations, candidates, rows kept; M = 0 and C = K = n for exact attention.
    """

    M: Int32[Array, "batch heads seq"]
    C: Int32[Array, "batch heads seq"]
    K: Int32[Array, "batch heads seq"]


# (query, key, value, mask) -> (output, counts): query, key, value and output [batch, heads, seq, head_dim], mask [batch, seq] of the rows
# that take part. The query is scaled already: what is wanted is softmax(query . key) value. Counts are `Counts`, or whatever else there is
# to say about a layer's queries: `encode` hands them on.
Attention: TypeAlias = Callable[[Array, Array, Array, Array], tuple[Array, Any]]


class Linear(NamedTuple):
    """`x @ weight.T + bias`."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]


class Norm(NamedTuple):
    """Of layer normalization."""

    weight: Float[Array, " width"]
    bias: Float[Array, " width"]


class Layer(NamedTuple):
    """One layer: attention, then two products with a GELU between, each added to what came in and normalized."""

    query: Linear
    key: Linear
    value: Linear
    attended: Linear
    attended_norm: Norm
    intermediate: Linear
    output: Linear
    output_norm: Norm


class Encoder(NamedTuple):
    """Weights, and what the arithmetic needs besides.

    Attributes:
      words, positions: embeddings by token id and by position.
      segment: the embedding of the first segment, which every token is in.
      num_heads: heads of a layer.
      epsilon: of the normalizations.
    """

    words: Float[Array, "vocabulary width"]
    positions: Float[Array, "positions width"]
    segment: Float[Array, " width"]
    norm: Norm
    layers: tuple[Layer, ...]
    num_heads: int
    epsilon: float


def exact_heads(
    query: Float[Array, "batch heads seq head_dim"],
    key: Float[Array, "batch heads seq head_dim"],
    value: Float[Array, "batch heads seq head_dim"],
    mask: Bool[Array, "batch seq"],
) -> tuple[Float[Array, "batch heads seq head_dim"], Counts]:
    """Softmax attention over the valid rows: the contract of an attention, kept exactly."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, precision=_PRECISION)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None, :], scores, -jnp.inf), axis=-1)
    output = jnp.einsum("bhqk,bhkd->bhqd", weights, value, precision=_PRECISION)
    rows = jnp.broadcast_to(jnp.sum(mask, axis=1, dtype=jnp.int32)[:, None, None], query.shape[:3])
    return output, Counts(jnp.zeros_like(rows), rows, rows)


def encode(
    encoder: Encoder,
    tokens: Int32[Array, "batch seq"],
    mask: Bool[Array, "batch seq"],
    *,
    attention: Attention | Sequence[Attention] = exact_heads,
) -> tuple[Float[Array, "batch width"], tuple[Any, ...]]:
    """Embeddings of length 1, the mean of the last hidden states of a text's tokens, and the counts of every layer.

    Args:
      tokens: ids with those of start and end, padded behind with any id.
      mask: false for padding. Every text has a token.
      attention: for all layers, or one for each. It may leave JAX; where it does not, this can be traced.

    Raises:
      ValueError: for more tokens than there are positions, or another number of attentions than layers.
    """
    if tokens.shape[1] > len(encoder.positions):
        raise ValueError(f"tokens: wanted at most {len(encoder.positions)} in a text, got {tokens.shape[1]}")
    attentions = [attention] * len(encoder.layers) if callable(attention) else list(attention)
    if len(attentions) != len(encoder.layers):
        raise ValueError(
            f"attention: wanted one, or one for each of {len(encoder.layers)} layers, got {len(attentions)}"
        )
    hidden, counts = (
        _embed(encoder.words, encoder.positions, encoder.segment, encoder.norm, tokens, encoder.epsilon),
        [],
    )
    for layer, attend in zip(encoder.layers, attentions, strict=True):
        query, key, value = _project(layer, hidden, encoder.num_heads)
        output, found = attend(query, key, value, mask)
        counts.append(found)
        hidden = _finish(layer, hidden, output, encoder.epsilon)
    return _pool(hidden, mask), tuple(counts)


@functools.partial(jax.jit, static_argnums=5)
def _embed(
    words: Float[Array, "vocabulary width"],
    positions: Float[Array, "positions width"],
    segment: Float[Array, " width"],
    norm: Norm,
    tokens: Int32[Array, "batch seq"],
    epsilon: float,
) -> Float[Array, "batch seq width"]:
    hidden = words[tokens] + positions[None, : tokens.shape[1]]
    return _normalize(norm, hidden + _along(segment, hidden), epsilon)


@functools.partial(jax.jit, static_argnums=2)
def _project(layer: Layer, hidden: Float[Array, "batch seq width"], num_heads: int) -> tuple[Array, Array, Array]:
    """Query, key and value by head; the query scaled by 1 / sqrt(head_dim)."""

    def heads(linear: Linear) -> Float[Array, "batch heads seq head_dim"]:
        projected = _apply(linear, hidden)
        return projected.reshape(*projected.shape[:2], num_heads, -1).swapaxes(1, 2)

    query, key, value = heads(layer.query), heads(layer.key), heads(layer.value)
    return query * query.shape[-1] ** -0.5, key, value


@functools.partial(jax.jit, static_argnums=3)
def _finish(
    layer: Layer,
    hidden: Float[Array, "batch seq width"],
    output: Float[Array, "batch heads seq head_dim"],
    epsilon: float,
) -> Float[Array, "batch seq width"]:
    attended = _apply(layer.attended, output.swapaxes(1, 2).reshape(hidden.shape))
    hidden = _normalize(layer.attended_norm, hidden + attended, epsilon)
    inner = jax.nn.gelu(_apply(layer.intermediate, hidden), approximate=False)
    return _normalize(layer.output_norm, hidden + _apply(layer.output, inner), epsilon)


@jax.jit
def _pool(hidden: Float[Array, "batch seq width"], mask: Bool[Array, "batch seq"]) -> Float[Array, "batch width"]:
    weights = mask[:, :, None]
    mean = jnp.sum(jnp.where(weights, hidden, 0), axis=1) / jnp.sum(weights, axis=1)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def _apply(linear: Linear, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
    product = jnp.matmul(x, linear.weight.T, precision=_PRECISION)
    return product + _along(linear.bias, product)


def _normalize(norm: Norm, x: Float[Array, "*axes width"], epsilon: float) -> Float[Array, "*axes width"]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon) * _along(norm.weight, x) + _along(norm.bias, x)


def _along(vector: Float[Array, " width"], x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
    return jnp.broadcast_to(vector, x.shape)


def assemble(tensors: Mapping[str, Any], *, num_layers: int, num_heads: int, epsilon: float) -> Encoder:
    """An encoder from tensors by the names that BERT's checkpoints have. KeyError for one that is missing."""

    def both(kind: Any, name: str) -> Any:
        return kind(jnp.asarray(tensors[f"{name}.weight"]), jnp.asarray(tensors[f"{name}.bias"]))

    def layer(number: int) -> Layer:
        at = f"encoder.layer.{number}."
        return Layer(
            query=both(Linear, at + "attention.self.query"),
            key=both(Linear, at + "attention.self.key"),
            value=both(Linear, at + "attention.self.value"),
            attended=both(Linear, at + "attention.output.dense"),
            attended_norm=both(Norm, at + "attention.output.LayerNorm"),
            intermediate=both(Linear, at + "intermediate.dense"),
            output=both(Linear, at + "output.dense"),
            output_norm=both(Norm, at + "output.LayerNorm"),
        )

    return Encoder(
        words=jnp.asarray(tensors["embeddings.word_embeddings.weight"]),
        positions=jnp.asarray(tensors["embeddings.position_embeddings.weight"]),
        segment=jnp.asarray(tensors["embeddings.token_type_embeddings.weight"][0]),
        norm=both(Norm, "embeddings.LayerNorm"),
        layers=tuple(layer(number) for number in range(num_layers)),
        num_heads=num_heads,
        epsilon=epsilon,
    )
