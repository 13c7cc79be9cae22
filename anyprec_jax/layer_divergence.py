"""What it costs to read one layer of a model at few bits, measured: where the second moments of inputs cannot be believed.

The errors that moments predict (`allocation`) are on one scale within a layer, but not from layer to layer: a second-order
estimate at an early layer knows nothing of how much of an error the layers behind it take away again. One forward pass
from the layer on says what is left of it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.divergence import kl_divergence
from anyprec_jax.models import decoder
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.fusion import unfused
from anyprec_jax.ops import dequantize

_POSITIONS_AT_ONCE = 64  # in the output head

Divergence: TypeAlias = Callable[[int, Mapping[str, AnyPrecArray]], float]  # (layer, its linears) -> nats per token


def divergence_of_layers(
    params: Mapping[str, Any], config: ModelConfig, windows: Int[np.ndarray, "windows tokens"]
) -> Divergence:
    """Compiles `measure(layer, matrices)`: KL from the model to itself with one layer at the fewest bits of its matrices, nats per token.

    Args:
      params: the unquantized model.
      config: its shape.
      windows: of tokens, each run on its own.

    What is measured is at least 0, or not finite where the logits are not.

    Cost: of a call, one pass of the windows through the layers from that one on, and twice through the output head. Memory beyond
    `params`: every layer's input, [windows, layers + 1, tokens, hidden].
    """
    layers = {name: jnp.asarray(leaf) for name, leaf in decoder.with_kinds(unfused(params["layers"]), config).items()}
    top = {name: leaf for name, leaf in params.items() if name != "layers"}

    passed = [_inputs(top, layers, jnp.asarray(window, jnp.int32), config=config) for window in windows]

    def measure(layer: int, matrices: Mapping[str, AnyPrecArray]) -> float:
        plain = {name: _coarsest(matrix).astype(layers[name].dtype) for name, matrix in matrices.items()}
        arguments = top, layers, plain, jnp.int32(layer)
        mean = np.mean([_divergence(*arguments, inputs, config=config) for inputs in passed])
        return float(
            np.maximum(mean, 0.0)
        )  # where hardly anything differs, rounding may leave less than nothing; NaN stays NaN

    return measure


@functools.partial(jax.jit, static_argnames="config")
def _inputs(
    top: dict[str, Any], layers: dict[str, Array], tokens: Int[Array, " tokens"], *, config: ModelConfig
) -> Float[Array, "_ tokens hidden"]:
    """Every layer's input, and the last layer's output."""

    def step(hidden: Array, layer: dict[str, Array]) -> tuple[Array, Array]:
        return _applied(layer, hidden, config), hidden

    output, inputs = jax.lax.scan(step, decoder.embed(top, tokens[None], config)[0], layers)
    return jnp.concatenate([inputs, output[None]])


@functools.partial(jax.jit, static_argnames="config")
def _divergence(
    top: dict[str, Any],
    layers: dict[str, Array],
    linears: dict[str, Array],
    index: Int[Array, ""],
    inputs: Float[Array, "_ tokens hidden"],
    *,
    config: ModelConfig,
) -> Float[Array, ""]:
    """KL where one layer has other linears, nats per token."""

    def layer_at(index: Array) -> dict[str, Array]:
        return {name: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False) for name, leaf in layers.items()}

    def following(index: Array, hidden: Array) -> Array:
        return _applied(layer_at(index), hidden, config)

    def of_position(states: tuple[Array, Array]) -> Array:
        expected, predicted = (jax.nn.log_softmax(decoder.unembed(top, each, config)) for each in states)
        return kl_divergence(expected, predicted)

    entering = jax.lax.dynamic_index_in_dim(inputs, index, keepdims=False)
    hidden = _applied(layer_at(index) | linears, entering, config)
    hidden = jax.lax.fori_loop(index + 1, config.num_layers, following, hidden)
    return jnp.mean(jax.lax.map(of_position, (inputs[-1], hidden), batch_size=_POSITIONS_AT_ONCE))


def _applied(layer: dict[str, Array], hidden: Array, config: ModelConfig) -> Array:
    return decoder.layer_forward(layer, hidden[None], config)[0]


def _coarsest(matrix: AnyPrecArray) -> Float[Array, "*experts n k"]:
    if len(matrix.shape) == 3:
        return jnp.stack([_coarsest(jax.tree.map(lambda leaf, i=i: leaf[i], matrix)) for i in range(matrix.shape[0])])
    return dequantize(matrix, precision=matrix.seed_precision)
