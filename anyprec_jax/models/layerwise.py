"""The decoder layer by layer, for attention that is not compiled with it: that runs on the host, or counts what it does."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import (
    KVCache,
    Params,
    _attention_inputs,
    _join,
    _layer_output,
    _split,
    embed,
    unembed,
)
from anyprec_jax.models.expansion import expanded
from anyprec_jax.models.layer_kinds import rotation_of, rotations, with_kinds
from anyprec_jax.models.precision_map import Precision
from anyprec_jax.models.split import SPLIT

# (layer, query [seq, heads, head_dim], key [kv, kv_heads, head_dim], value like key) -> [seq, heads, head_dim]. Query s stands at
# position kv - seq + s and may see every position up to its own. It is scaled already.
LayerAttention: TypeAlias = Callable[[int, Array, Array, Array], Array]


def continue_layerwise(
    params: Params,
    tokens: Int[Array, " seq"],
    config: ModelConfig,
    *,
    precision: Precision | None,
    cache: KVCache,
    attention: LayerAttention,
) -> Float32[Array, "seq vocab"]:
    """What `forward` computes, with any attention: logits at each of `tokens`, which go on where the cache's one row ends.

    `attention` is called with arrays, never traced, once a layer in their order; what it returns is what the layers after it see.

    Args:
      params, config, precision: as for `forward`.
      tokens: ids in the vocabulary.
      cache: of one text. It is read only, and has no need of room for the tokens.
      attention: in the place of `dot_product_attention`, for whole layers.

    Raises:
      ValueError: the model is split over devices, the cache has another number of rows than one, attention returns another shape than its
        query's, or the model caps its scores or has a window that the text leaves, of which `attention` would know nothing.
    """
    if cache.lengths.shape != (1,):
        raise ValueError(f"cache: wanted that of one text, got lengths of shape {cache.lengths.shape}")
    if SPLIT in params:
        raise ValueError("attention outside the compiled layers sees all heads: load the model without a mesh")
    filled = int(cache.lengths[0])
    if config.score_cap is not None or (config.window is not None and filled + len(tokens) > config.window):
        raise ValueError(
            "attention cannot be replaced in a model that caps its scores or has windows shorter than the text"
        )
    positions = filled + jnp.arange(len(tokens))[None, :]
    layers = with_kinds(expanded(params["layers"], precision), config)
    hidden = embed(params, tokens[None], config, positions)
    for index in range(config.num_layers):
        number = jnp.int32(index)
        query, key, value = _inputs(layers, number, hidden, cache.lengths, config, precision)
        key = jnp.concatenate([jnp.moveaxis(cache.keys[index, 0, :, :, :filled], 2, 0).astype(key.dtype), key])
        value = jnp.concatenate([jnp.moveaxis(cache.values[index, 0, :, :filled], 1, 0).astype(value.dtype), value])
        attended = jnp.asarray(attention(index, query, key, value))
        if attended.shape != query.shape:
            raise ValueError(f"attention: wanted {query.shape}, as the query has, got {attended.shape}")
        hidden = _output(layers, number, hidden, attended.astype(hidden.dtype), config, precision)
    return unembed(params, hidden[0], config)


@functools.partial(jax.jit, static_argnames=("config", "precision"))
def _inputs(
    layers: Params,
    index: Array,
    hidden: Float[Array, "1 seq hidden"],
    start: Array,
    config: ModelConfig,
    precision: Precision | None,
) -> tuple[Array, Array, Array]:
    positions = start[:, None] + jnp.arange(hidden.shape[1])[None, :]
    layer = _layer(layers, index)
    angles = rotation_of(layer, rotations(config, positions, start + hidden.shape[1]), config)
    query, key, value = _attention_inputs(layer, hidden, angles, config, precision)
    return query[0], key[0], value[0]


@functools.partial(jax.jit, static_argnames=("config", "precision"))
def _output(
    layers: Params, index: Array, hidden: Array, attended: Array, config: ModelConfig, precision: Precision | None
) -> Float[Array, "1 seq hidden"]:
    return _layer_output(_layer(layers, index), hidden, attended[None], config, precision)


def _layer(layers: Params, index: Array) -> Params:
    stacks, sliced = _split(layers)
    return _join(stacks, index, {name: leaf[index] for name, leaf in sliced.items()})
