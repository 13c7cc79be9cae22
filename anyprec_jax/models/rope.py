"""Rotary position embedding.

RoFormer (Su et al., 2021): pair i of a head's `head_dim / 2` pairs is turned by `position * theta ** (-2 i / head_dim)`. The two
members of a pair are `head_dim / 2` apart, as in Hugging Face checkpoints.

Frequencies are computed in float32 and in the order of `transformers`: at position 8000 one unit in the last place of a frequency
is already half a milliradian.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from anyprec_jax.models.rope_scaling import FrequencyFactors, LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

_ONE = np.float32(1.0)


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Float32[np.ndarray, " pairs"]:
    """Radians per position of every pair.

    Raises:
      ValueError: `FrequencyFactors` for another number of pairs.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    radian = np.float32(theta) ** exponents  # positions per radian
    match scaling:
        case None:
            return _ONE / radian
        case LinearScaling(factor=factor):
            return _ONE / radian / np.float32(factor)
        case Llama3Scaling():
            return _llama3(_ONE / radian, scaling)
        case YarnScaling():
            return _yarn(radian, theta, scaling)
        case FrequencyFactors(factors=factors):
            if len(factors) != len(radian):
                raise ValueError(f"{len(factors)} rope factors, where heads of {head_dim} have {len(radian)} pairs")
            return _ONE / (np.asarray(factors, np.float32) * radian)


def rotation(
    positions: Int[Array, "*batch"], *, head_dim: int, theta: float, scaling: RopeScaling | None
) -> tuple[Float32[Array, "*batch pairs"], Float32[Array, "*batch pairs"]]:
    """Cosine and sine of every pair's angle at the given positions."""
    per_position = frequencies(head_dim, theta, scaling)
    angles = positions.astype(jnp.float32)[..., None] * per_position.reshape((1,) * positions.ndim + (-1,))
    scale = scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "*batch heads head_dim"],
    cosine: Float32[Array, "*#batch pairs"],
    sine: Float32[Array, "*#batch pairs"],
) -> Float32[Array, "*batch heads head_dim"]:
    """Turns every pair of every head; float32 out, so that the caller rounds once."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosine, sine = cosine[..., None, :], sine[..., None, :]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def _llama3(base: Float32[np.ndarray, " pairs"], scaling: Llama3Scaling) -> Float32[np.ndarray, " pairs"]:
    factor, low, high = (np.float32(x) for x in (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor))
    turns = np.float32(scaling.original_max_position_embeddings) / (np.float32(2 * math.pi) / base)
    kept = (turns - low) / (high - low)
    blended = (_ONE - kept) * base / factor + kept * base
    return np.where(turns < low, base / factor, np.where(turns > high, base, blended))


def _yarn(radian: Float32[np.ndarray, " pairs"], theta: float, scaling: YarnScaling) -> Float32[np.ndarray, " pairs"]:
    head_dim = 2 * len(radian)

    def pair_that_turns(times: float) -> float:
        """The (fractional) pair that turns this many times over the original context."""
        return (
            head_dim
            * math.log(scaling.original_max_position_embeddings / (times * 2 * math.pi))
            / (2 * math.log(theta))
        )

    start, end = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        start, end = math.floor(start), math.ceil(end)
    start, end = max(start, 0), min(end, head_dim - 1)
    if start == end:
        end += 0.001  # a ramp needs a width; the value is that of transformers
    ramp = np.clip((np.arange(len(radian), dtype=np.float32) - np.float32(start)) / np.float32(end - start), 0, 1)
    kept = _ONE - ramp
    return _ONE / (np.float32(scaling.factor) * radian) * (_ONE - kept) + _ONE / radian * kept
