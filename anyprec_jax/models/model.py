"""A model in memory."""

import dataclasses
from typing import Any

import jax

from anyprec_jax.affine import AffineArray, dequantize_affine, quantize_affine
from anyprec_jax.array import Matrix, check_precision
from anyprec_jax.layout import natural
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.fusion import unfused
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
    """

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer | None = None


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


def dequantized(model: Model, *, precision: int) -> Model:
    """The model that `precision` bits stand for: its linears, embedding and head plain float32 arrays.

    Raises:
      ValueError: the model is not quantized, or not readable at `precision`.
    """
    layers = unfused(model.params["layers"])
    stacks = {name: leaf for name, leaf in layers.items() if isinstance(leaf, Matrix)}
    if not stacks:
        raise ValueError("the model is not quantized: there is nothing to dequantize")
    for name, stack in stacks.items():
        check_precision(stack, precision)
        layers[name] = _dense(natural(stack), precision)
    params = model.params | {"layers": layers}
    params |= {name: dequantize_affine(leaf) for name, leaf in params.items() if isinstance(leaf, AffineArray)}
    return dataclasses.replace(model, params=params)


def _dense(stack: Any, precision: int) -> jax.Array:
    """A stack [layers, n, k] or [layers, experts, n, k] as float32, one matrix at a time."""
    if len(stack.shape) == 2:
        return dequantize(stack, precision=precision)
    return jax.lax.map(lambda part: _dense(part, precision), stack)
