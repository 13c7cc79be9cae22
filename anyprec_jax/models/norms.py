"""The norms of a decoder: by the root of the mean square, or by mean and variance."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from anyprec_jax.models.config import ModelConfig


def rms_norm(
    x: Float[Array, "*batch hidden"], weight: Float[Array, "*#heads hidden"], eps: float
) -> Float[Array, "*batch hidden"]:
    """`x / sqrt(mean(x**2) + eps) * weight`, in float32, result in the dtype of `x`. Zhang and Sennrich, 2019."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale * _like(weight, x)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*batch hidden"],
    weight: Float[Array, "*#heads hidden"],
    bias: Float[Array, "*#heads hidden"] | None,
    eps: float,
) -> Float[Array, "*batch hidden"]:
    """`(x - mean) / sqrt(variance + eps) * weight + bias`, in float32, result in the dtype of `x`. Ba et al., 2016."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    normed = centred * scale * _like(weight, x)
    return (normed if bias is None else normed + _like(bias, x)).astype(x.dtype)


def normed(params: Mapping[str, Any], name: str, x: Array, config: ModelConfig) -> Array:
    """`x` through the norm of that name, of the model's kind; as it is where the parameters have no such norm."""
    if name not in params:
        return x
    weight = params[name]
    if config.norm == "layer":
        return layer_norm(x, weight, params.get(f"{name}_bias"), config.norm_eps)
    weight = jnp.asarray(weight).astype(jnp.float32)
    return rms_norm(x, weight + 1.0 if config.norm_plus_one else weight, config.norm_eps)


def _like(weight: Array, x: Array) -> Array:
    """float32 with as many axes as `x`."""
    weight = jnp.asarray(weight).astype(jnp.float32)
    return weight.reshape((1,) * (x.ndim - weight.ndim) + weight.shape)
