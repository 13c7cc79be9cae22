"""Queries, keys and values of a language model that reads a text: what its attention is given."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from anyprec_jax import Model
from anyprec_jax.models.decoder import embed, layer_forward, linear, rms_norm
from anyprec_jax.models.rope import rotate, rotation


class AttentionInputs(NamedTuple):
    """Of one layer. Queries are scaled by 1 / sqrt(d) already; head h reads key and value h // (heads / kv_heads)."""

    queries: Float[Array, "heads n d"]
    keys: Float[Array, "kv_heads n d"]
    values: Float[Array, "kv_heads n d"]


def attention_inputs(model: Model, tokens: Int[Array, " n"], layer: int) -> AttentionInputs:
    """What the layer of that number (from 0) attends with; the layers before it are computed exactly. For unquantized Llamas."""
    config, stacks = model.config, model.params["layers"]
    step = jax.jit(functools.partial(layer_forward, config=config))
    hidden = embed(model.params, tokens[None], config)
    for index in range(layer):
        hidden = step({name: stack[index] for name, stack in stacks.items()}, hidden)
    normed = rms_norm(hidden, stacks["input_norm"][layer], config.norm_eps)
    query, key, value = (_project(stacks, name, layer, normed, config.head_dim) for name in ("q", "k", "v"))
    positions = jnp.arange(len(tokens))[None]
    lengths = jnp.asarray([len(tokens)], jnp.int32)
    angles = rotation(positions, lengths, rotated=config.rotated, theta=config.rope_theta, scaling=config.rope_scaling)
    rotated = rotate(query, *angles) * config.head_dim**-0.5, rotate(key, *angles), value
    return AttentionInputs(*(jnp.moveaxis(part[0], 1, 0) for part in rotated))


def _project(stacks: dict[str, Array], name: str, layer: int, x: Array, head_dim: int) -> Array:
    """[1, n, heads, d]"""
    bias = stacks.get(f"{name}_proj_bias")
    projected = linear(x, stacks[f"{name}_proj"][layer], None if bias is None else bias[layer], None)
    return projected.reshape(*x.shape[:2], -1, head_dim)
