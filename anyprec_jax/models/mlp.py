"""The MLP of a layer: one for all tokens, or a mixture of experts with a router that chooses a few for each token.

Shazeer et al., 2017, as Mixtral (Jiang et al., 2024) has it: the router's softmax over all experts says which of them see a token and
how much of their outputs is taken.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from anyprec_jax.array import Matrix
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.linear import StackedMatrix, dense_product, project
from anyprec_jax.models.precision_map import Precision
from anyprec_jax.models.split import summed
from anyprec_jax.ops import flat_stack

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
_LINEARS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


def mlp(
    layer: Mapping[str, Any], x: Float[Array, "batch seq hidden"], config: ModelConfig, precision: Precision | None
) -> Float[Array, "batch seq hidden"]:
    """What a layer's MLP, or the experts that its router chooses, make of every position."""
    if not config.num_experts:
        return _mlp(layer, x, config, precision)
    rows = x.reshape(-1, x.shape[-1])
    weights, experts = route(dense_product(rows, jnp.asarray(layer["router"]).astype(x.dtype)), config)
    few = rows.shape[0] * config.experts_per_token <= config.num_experts
    mixed = (_by_choice if few else _by_expert)(layer, rows, weights, experts, config, precision)
    return summed(layer, "down_proj", mixed).astype(x.dtype).reshape(x.shape)


def route(
    logits: Float32[Array, "rows experts"], config: ModelConfig
) -> tuple[Float32[Array, "rows chosen"], Int[Array, "rows chosen"]]:
    """The weights and the numbers of the experts that every row goes through, from the router's logits."""
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), config.experts_per_token)
    if config.normalized_experts:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return weights, experts


def _by_choice(
    layer: Mapping[str, Any],
    rows: Array,
    weights: Array,
    experts: Array,
    config: ModelConfig,
    precision: Precision | None,
) -> Float32[Array, "rows hidden"]:
    """For few rows: one expert of one row after the other, so that no expert is read that no row needs."""

    def one(choice: tuple[Array, Array, Array]) -> Array:
        row, weight, expert = choice
        return weight * _mlp(_expert(layer, expert), row[None], config, precision)[0].astype(jnp.float32)

    repeated = jnp.repeat(rows, config.experts_per_token, axis=0)
    outputs = jax.lax.map(one, (repeated, weights.reshape(-1), experts.reshape(-1)))
    return jnp.sum(outputs.reshape(*weights.shape, -1), axis=1)


def _by_expert(
    layer: Mapping[str, Any],
    rows: Array,
    weights: Array,
    experts: Array,
    config: ModelConfig,
    precision: Precision | None,
) -> Float32[Array, "rows hidden"]:
    """For many rows: one expert after the other over all of them, those that did not choose it with weight 0.

    Every expert is read once; `num_experts / experts_per_token` times the products that are needed.
    """

    def add(total: Array, expert: Array) -> tuple[Array, None]:
        weight = jnp.sum(jnp.where(experts == expert, weights, 0.0), axis=1, keepdims=True)
        return total + weight * _mlp(_expert(layer, expert), rows, config, precision).astype(jnp.float32), None

    start = jnp.zeros(rows.shape, jnp.float32)
    return jax.lax.scan(add, start, jnp.arange(config.num_experts, dtype=jnp.int32))[0]


def _expert(layer: Mapping[str, Any], expert: Array) -> dict[str, Any]:
    """The linears of one expert of a layer."""
    return {name: _matrix(layer[name], expert) for name in _LINEARS if name in layer}


def _matrix(weight: Any, expert: Array) -> Any:
    if isinstance(weight, StackedMatrix):  # [layers, experts, n, k]: seen as one stack, of which nothing is copied
        first = weight.layer.astype(jnp.int32) * weight.stack.shape[1]
        return StackedMatrix(flat_stack(weight.stack), first + expert)
    if isinstance(weight, Matrix):
        return StackedMatrix(weight, expert)
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(jnp.asarray(leaf), expert, keepdims=False), weight)


def _mlp(layer: Mapping[str, Any], x: Array, config: ModelConfig, precision: Precision | None) -> Array:
    activation = _ACTIVATIONS[config.activation]
    if not config.gated_mlp:
        inner = activation(project(layer, "up_proj", x, precision))
    elif "gate_up_proj" in layer:
        gate, up = jnp.split(project(layer, "gate_up_proj", x, precision), 2, axis=-1)
        inner = activation(gate) * up
    else:
        gate, up = (project(layer, name, x, precision) for name in ("gate_proj", "up_proj"))
        inner = activation(gate) * up
    return project(layer, "down_proj", inner, precision)
