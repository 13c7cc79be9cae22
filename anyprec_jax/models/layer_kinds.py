"""What differs from layer to layer: the window of the attention and the rotary embedding.

One compiled layer serves all. Where layers differ, the number of each layer's kind goes through the scan with its weights
(`with_kinds`), and the layer picks by it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.rope import rotation

WINDOW, ROPE = "window", "rope"
_EVERYTHING = np.int32(2**30)  # the window of a layer without one
_LOCAL, _NONE = 1, 2  # kinds of rotary embedding; 0 is the model's own


class Rotations(NamedTuple):
    """Cosine and sine of every position, [kinds, batch, seq, pairs], one kind after the other."""

    cosine: Float32[Array, "kinds batch seq pairs"]
    sine: Float32[Array, "kinds batch seq pairs"]


def layer_kinds(config: ModelConfig) -> dict[str, Int[np.ndarray, " layers"]]:
    """For each of "window" and "rope" in which layers differ: that of every layer."""
    layers = range(config.num_layers)
    windows = [_EVERYTHING if layer in config.global_layers else config.window for layer in layers]
    kinds = {}
    if config.window is not None and config.global_layers:
        kinds[WINDOW] = np.asarray(windows, np.int32)
    ropes = [_rope_of(layer, config) for layer in layers]
    if len(set(ropes)) > 1:
        order = sorted(set(ropes))
        kinds[ROPE] = np.asarray([order.index(rope) for rope in ropes], np.int32)
    return kinds


def with_kinds(layers: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The stacked parameters of all layers, with what else `decoder.layer_forward` needs to know of each."""
    return {**layers, **{f"{name}_kind": jnp.asarray(kinds) for name, kinds in layer_kinds(config).items()}}


def rotations(
    config: ModelConfig, positions: Int[Array, "batch seq"], lengths: Int[Array, " batch"]
) -> Rotations | None:
    """Of every kind that the model's layers have; None for a model without rotary embedding.

    Args:
      config: the model's settings.
      positions: of the tokens.
      lengths: tokens of each row up to and with the last of these: some scalings depend on it.
    """
    if not config.rotated:
        return None
    pairs = (*positions.shape, config.rotated // 2)
    found = []
    for kind in sorted({_rope_of(layer, config) for layer in range(config.num_layers)}):
        if kind == _NONE:
            found.append((jnp.ones(pairs, jnp.float32), jnp.zeros(pairs, jnp.float32)))
            continue
        is_local = kind == _LOCAL and config.window_rope_theta is not None
        theta = config.window_rope_theta if is_local else config.rope_theta
        scaling = None if is_local else config.rope_scaling
        assert theta is not None
        found.append(rotation(positions, lengths, rotated=config.rotated, theta=theta, scaling=scaling))
    return Rotations(*(jnp.stack(parts) for parts in zip(*found, strict=True)))


def rotation_of(
    layer: Mapping[str, Any], all_kinds: Rotations | None, config: ModelConfig
) -> tuple[Array, Array] | None:
    """Cosine and sine of one layer, [batch, seq, pairs]."""
    if all_kinds is None:
        return None
    kind = _kind_of(layer, ROPE, config)
    if kind is None:
        return all_kinds.cosine[0], all_kinds.sine[0]
    cosine, sine = (jax.lax.dynamic_index_in_dim(part, kind, keepdims=False) for part in all_kinds)
    return cosine, sine


def window_of(layer: Mapping[str, Any], length: int, config: ModelConfig) -> Array | int | None:
    """How far one layer sees; None is everything, which is so if no text of `length` tokens leaves the window."""
    if config.window is None or length <= config.window:
        return None
    kind = _kind_of(layer, WINDOW, config)
    return config.window if kind is None else kind


def _kind_of(layer: Mapping[str, Any], name: str, config: ModelConfig) -> Array | None:
    if name not in layer_kinds(config):
        return None
    if f"{name}_kind" not in layer:
        raise ValueError(f"the layers of this model differ in their {name}: take this one from `with_kinds`")
    return layer[f"{name}_kind"]


def _rope_of(layer: int, config: ModelConfig) -> int:
    if layer in config.unrotated_layers:
        return _NONE
    has_window = config.window is not None and layer not in config.global_layers
    return _LOCAL if has_window and config.window_rope_theta is not None else 0
