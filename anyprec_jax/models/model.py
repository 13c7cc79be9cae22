"""A model in memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from anyprec_jax.affine import AffineArray, dequantize_affine, quantize_affine
from anyprec_jax.array import Matrix, check_precision
from anyprec_jax.layout import natural
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.fusion import unfused
from anyprec_jax.models.precision_map import Precision, PrecisionMap, QuantizationErrors, check_map, precision_of
from anyprec_jax.ops import dequantize
from anyprec_jax.tokenizer import Tokenizer

HEADS = ("embedding", "head")  # what can be affine


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What `load` returns. Nothing in it says at which precision it is read: that is an argument of every call.

    Attributes:
      config: sizes and settings.
      params: the tree of weights that `decoder` describes, a plain dict of arrays and `AnyPrecArray`s.
      tokenizer: None where the files have none.
      errors: what each precision costs each matrix, for `allocate`; None where nobody measured it.
    """

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None = None
    errors: QuantizationErrors | None = None


def with_affine_head(model: Model) -> Model:
    """The model with its embedding, and its output head where that is another matrix, in 8 bits. Idempotent.

    Raises:
      ValueError: a weight that is NaN or infinite.
    """
    params = dict(model.params)
    for name in HEADS:
        if name in params and not isinstance(params[name], AffineArray):
            try:
                params[name] = quantize_affine(params[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return dataclasses.replace(model, params=params)


def dequantized(model: Model, *, precision: Precision) -> Model:
    """The model that `precision` stands for: its linears, embedding and head plain float32 arrays.

    Raises:
      ValueError: the model is not quantized, or not readable at `precision`.
    """
    layers = unfused(model.params["layers"])
    stacks = {name: leaf for name, leaf in layers.items() if isinstance(leaf, Matrix)}
    if not stacks:
        raise ValueError("the model is not quantized: there is nothing to dequantize")
    if isinstance(precision, PrecisionMap):
        check_map(layers, precision)
    for name, stack in stacks.items():
        layers[name] = _dense_layers(natural(stack), precision_of(precision, name))
    params = model.params | {"layers": layers}
    params |= {name: dequantize_affine(leaf) for name, leaf in params.items() if isinstance(leaf, AffineArray)}
    return dataclasses.replace(model, params=params, errors=None)


def _dense_layers(stack: Any, precision: int | tuple[int, ...] | None) -> jax.Array:
    if isinstance(precision, tuple):
        layers = [jax.tree.map(lambda leaf, layer=layer: leaf[layer], stack) for layer in range(stack.shape[0])]
        return jnp.stack([_dense(layer, w) for layer, w in zip(layers, precision, strict=True)])
    check_precision(stack, precision)  # pyright: ignore[reportArgumentType]
    return _dense(stack, precision)  # pyright: ignore[reportArgumentType]


def _dense(stack: Any, precision: int) -> jax.Array:
    """A stack [layers, n, k] or [layers, experts, n, k] as float32, one matrix at a time."""
    if len(stack.shape) == 2:
        return dequantize(stack, precision=precision)
    return jax.lax.map(lambda part: _dense(part, precision), stack)
