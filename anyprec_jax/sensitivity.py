"""How much a model's loss minds errors in its weights, one layer and one sequence at a time.

Three kinds, of which one backward pass measures any:

  * "fisher" [n, k], the paper's (Any-Precision LLM section 3, after SqueezeLLM): for every weight the sum over calibration sequences of
    the squared gradient of the sequence's mean negative log-likelihood. Squaring comes before summing: the gradient of a batch
    would add cross terms.
  * "moment" [k, k], the guided second moment of a linear's inputs (GuidedQuant, Kim et al., ICML 2025; `models/observed.py`):
    G = sum over tokens of s_t x_t x_t.T, s_t the mean over the outputs of the squared gradient with respect to them. The
    error that codes and codebooks make of a matrix is trace(E @ G @ E.T).
  * "diagonal" [k], the diagonal of that: the sensitivity of a column, whatever the row.

Everything is float32; upstream sums in bfloat16 and takes gradients of every parameter.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from anyprec_jax.array import Matrix
from anyprec_jax.models import decoder
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.fusion import linears, unfused
from anyprec_jax.models.observed import Observed

Kind: TypeAlias = Literal["fisher", "moment", "diagonal"]
Sensitivity: TypeAlias = dict[
    str, np.ndarray
]  # linear -> float32 [layers, ...], or [layers, experts, ...], as the kind has it
SequenceGradients: TypeAlias = Callable[..., None]  # (tokens int [tokens], one Sensitivity for every kind)


def zeros(params: Mapping[str, Any], kind: Kind = "fisher") -> Sensitivity:
    """The empty sum: one float32 array per linear, [layers, n, k], [layers, k, k] or [layers, k]; experts are a second axis."""
    layers = unfused(params["layers"])
    return {name: np.zeros(_shape(leaf.shape, kind), np.float32) for name, leaf in linears(layers).items()}


def nbytes(params: Mapping[str, Any], kind: Kind) -> int:
    """What `zeros` takes: 4 bytes for every number."""
    layers = unfused(params["layers"])
    return sum(4 * int(np.prod(_shape(leaf.shape, kind), dtype=object)) for leaf in linears(layers).values())


def _shape(weights: tuple[int, ...], kind: Kind) -> tuple[int, ...]:
    *stack, n, k = weights
    return (*stack, *{"fisher": (n, k), "moment": (k, k), "diagonal": (k,)}[kind])


def sequence_accumulator(
    params: Mapping[str, Any], config: ModelConfig, kinds: Sequence[Kind] = ("fisher",)
) -> SequenceGradients:
    """Compiles the model's backward pass into `accumulate(tokens, *totals)`, one total for every kind, in their order.

    `accumulate` adds one sequence's share to the totals, in place. The forward pass keeps only the input of every layer; the
    backward pass then recomputes and differentiates one layer at a time, with respect to its linears (or what observes them) and its
    input alone. Peak memory beyond `params` and the totals is those inputs, one layer's activations and gradients, and the logits twice.

    Args:
      params: the unquantized model, as `decoder.forward` takes it.
      config: the model's shape.
      kinds: what to measure; "moment" and "diagonal" exclude each other.

    Raises:
      ValueError: the model is quantized, or a kind is unknown or there are none, or both forms of the moment.

    Cost: about four forward passes a sequence (forward, recompute, input gradients, weight gradients or moments).
    """
    if not kinds or len(set(kinds)) != len(kinds) or not set(kinds) <= {"fisher", "moment", "diagonal"}:
        raise ValueError(f"kinds of sensitivity are 'fisher', 'moment' and 'diagonal', each once; got {kinds!r}")
    if {"moment", "diagonal"} <= set(kinds):
        raise ValueError("the diagonal is part of the moment: measure one of them")
    layers = decoder.with_kinds(unfused(params["layers"]), config)
    names = tuple(linears(layers))
    if quantized := [name for name in names if isinstance(layers[name], Matrix)]:
        raise ValueError(f"sensitivity is that of a model's own weights, and {quantized[0]} is quantized already")
    layers = {name: jnp.asarray(leaf) for name, leaf in layers.items()}
    top = {name: leaf for name, leaf in params.items() if name != "layers"}
    observed: Kind = "moment" if "moment" in kinds else "diagonal"

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
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], ...]]:
        layer = layer_at(layers, index)
        weights = {
            name: Observed(weight, jnp.zeros(_shape(weight.shape, observed), jnp.float32))
            for name in names
            for weight in [layer.pop(name)]
        }
        hidden = jax.lax.dynamic_index_in_dim(inputs, index, keepdims=False)

        def apply(weights: dict[str, Observed], hidden: jax.Array) -> jax.Array:
            return decoder.layer_forward(layer | weights, hidden[None], config)[0]

        _, pullback = jax.vjp(apply, weights, hidden)
        gradients, gradient = pullback(gradient)
        shares = {
            "fisher": {name: jnp.square(g.weight.astype(jnp.float32)) for name, g in gradients.items()},
            observed: {name: g.moment for name, g in gradients.items()},
        }
        return gradient, tuple(shares[kind] for kind in kinds)

    def accumulate(tokens: Int[Array, " tokens"], *totals: Sensitivity) -> None:
        inputs, output = layer_inputs(top, layers, tokens)
        gradient = output_gradient(top, output, tokens)
        for index in reversed(range(config.num_layers)):
            gradient, shares = layer_backward(layers, jnp.int32(index), inputs, gradient)
            for total, share in zip(totals, shares, strict=True):
                for name, values in share.items():
                    total[name][index] += np.asarray(values)

    return accumulate


def mean_nll(logits: Float[Array, "tokens vocab"], tokens: Int[Array, " tokens"]) -> Float[Array, ""]:
    """Mean negative log-likelihood, nats, of every token but the first."""
    scored = logits[:-1].astype(jnp.float32)
    chosen = jnp.take_along_axis(scored, tokens[1:, None], axis=-1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(scored, axis=-1) - chosen)
