"""Diagonal Fisher information of the linear layers, one layer and one sequence at a time.

Any-Precision LLM section 3 (after SqueezeLLM): the sensitivity of a weight is the sum over calibration sequences of the
squared gradient of the sequence's mean negative log-likelihood. Squaring comes before summing: the gradient of a batch would
add cross terms. Everything is float32; upstream sums in bfloat16 and takes gradients of every parameter.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from anyprec_jax.array import Matrix
from anyprec_jax.models import decoder
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.fusion import linears, unfused

Sensitivity: TypeAlias = dict[str, np.ndarray]  # linear -> float32 [layers, n, k], with experts [layers, experts, n, k]
SequenceGradients: TypeAlias = Callable[[Int[Array, " tokens"], Sensitivity], None]


def zeros(params: Mapping[str, Any]) -> Sensitivity:
    """The empty sum: one float32 array per linear, [layers, n, k]."""
    layers = unfused(params["layers"])
    return {name: np.zeros(leaf.shape, np.float32) for name, leaf in linears(layers).items()}


def sequence_accumulator(params: Mapping[str, Any], config: ModelConfig) -> SequenceGradients:
    """Compiles the model's backward pass into `accumulate(tokens, total)`.

    `accumulate` adds one sequence's squared gradients to `total`, in place. The forward pass keeps only the input of every layer;
    the backward pass then recomputes and differentiates one layer at a time, with respect to its linears and its input alone. Peak
    memory beyond `params` and `total` is those inputs, one layer's activations and gradients, and the logits twice.

    Args:
      params: the unquantized model, as `decoder.forward` takes it.
      config: the model's shape.

    Raises:
      ValueError: the model is quantized.

    Cost: about four forward passes a sequence (forward, recompute, input gradients, weight gradients).
    """
    layers = decoder.with_kinds(unfused(params["layers"]), config)
    names = tuple(linears(layers))
    if quantized := [name for name in names if isinstance(layers[name], Matrix)]:
        raise ValueError(f"sensitivity is that of a model's own weights, and {quantized[0]} is quantized already")
    layers = {name: jnp.asarray(leaf) for name, leaf in layers.items()}
    top = {name: leaf for name, leaf in params.items() if name != "layers"}

    def layer_at(layers: dict[str, jax.Array], index: jax.Array) -> dict[str, jax.Array]:
        return {name: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False) for name, leaf in layers.items()}

    @jax.jit
    def layer_inputs(top: dict, layers: dict, tokens: Int[Array, " tokens"]) -> tuple[jax.Array, jax.Array]:
        """Every layer's input [layers, tokens, hidden] and the last layer's output [tokens, hidden]."""

        def step(hidden: jax.Array, layer: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return decoder.layer_forward(layer, hidden[None], config)[0], hidden

        output, inputs = jax.lax.scan(step, decoder.embed(top, tokens[None], config)[0], layers)
        return inputs, output

    @jax.jit
    def output_gradient(top: dict, output: jax.Array, tokens: Int[Array, " tokens"]) -> jax.Array:
        return jax.grad(lambda hidden: mean_nll(decoder.unembed(top, hidden[None], config)[0], tokens))(output)

    @jax.jit
    def layer_backward(
        layers: dict, index: jax.Array, inputs: jax.Array, gradient: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        layer = layer_at(layers, index)
        weights = {name: layer.pop(name) for name in names}
        hidden = jax.lax.dynamic_index_in_dim(inputs, index, keepdims=False)

        def apply(weights: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
            return decoder.layer_forward(layer | weights, hidden[None], config)[0]

        _, pullback = jax.vjp(apply, weights, hidden)
        weight_gradients, gradient = pullback(gradient)
        return gradient, {name: jnp.square(g) for name, g in weight_gradients.items()}

    def accumulate(tokens: Int[Array, " tokens"], total: Sensitivity) -> None:
        inputs, output = layer_inputs(top, layers, tokens)
        gradient = output_gradient(top, output, tokens)
        for index in reversed(range(config.num_layers)):
            gradient, squares = layer_backward(layers, jnp.int32(index), inputs, gradient)
            for name, square in squares.items():
                total[name][index] += np.asarray(square)

    return accumulate


def mean_nll(logits: Float[Array, "tokens vocab"], tokens: Int[Array, " tokens"]) -> Float[Array, ""]:
    """Mean negative log-likelihood, nats, of every token but the first."""
    scored = logits[:-1].astype(jnp.float32)
    chosen = jnp.take_along_axis(scored, tokens[1:, None], axis=-1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(scored, axis=-1) - chosen)
