"""Rotary position embedding.

RoFormer (Su et al., 2021): pair i of a head's `rotated / 2` pairs is turned by `position * theta ** (-2 i / rotated)`. The two
members of a pair are `rotated / 2` apart, as in Hugging Face checkpoints; the dimensions of a head from `rotated` on stay as they are.

Frequencies are computed in float32 and in the order of `transformers`: at position 8000 one unit in the last place of a frequency
is already half a milliradian.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from anyprec_jax.models.rope_scaling import (
    DynamicScaling,
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)

_ONE = np.float32(1.0)


def frequencies(rotated: int, theta: float, scaling: RopeScaling | None) -> Float32[np.ndarray, " pairs"]:
    """Radians per position of every pair, in a text that is not longer than the scaling calls short.

    Raises:
      ValueError: factors for another number of pairs.
    """
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    radian = np.float32(theta) ** exponents  # positions per radian
    match scaling:
        case None | DynamicScaling():
            return _ONE / radian
        case LinearScaling(factor=factor):
            return _ONE / radian / np.float32(factor)
        case Llama3Scaling():
            return _llama3(_ONE / radian, scaling)
        case YarnScaling():
            return _yarn(radian, theta, scaling)
        case FrequencyFactors(factors=factors) | LongRopeScaling(short_factors=factors):
            if len(factors) != len(radian):
                raise ValueError(f"{len(factors)} rope factors, where heads of {rotated} have {len(radian)} pairs")
            return _ONE / (np.asarray(factors, np.float32) * radian)


def frequencies_by_length(
    lengths: Int[Array, " batch"], rotated: int, theta: float, scaling: RopeScaling | None
) -> Float32[Array, "batch pairs"]:
    """Radians per position of every pair, for texts of these lengths."""
    short = jnp.broadcast_to(frequencies(rotated, theta, scaling), (lengths.shape[0], rotated // 2))
    match scaling:
        case LongRopeScaling(long_factors=factors, original_max_position_embeddings=original):
            long = jnp.asarray(frequencies(rotated, theta, FrequencyFactors(factors=factors)))[None, :]
        case DynamicScaling(original_max_position_embeddings=original):
            long = _dynamic(lengths, rotated, theta, scaling)
        case _:
            return short
    return jnp.where((lengths > original)[:, None], long, short)


def rotation(
    positions: Int[Array, "batch seq"],
    lengths: Int[Array, " batch"],
    *,
    rotated: int,
    theta: float,
    scaling: RopeScaling | None,
) -> tuple[Float32[Array, "batch seq pairs"], Float32[Array, "batch seq pairs"]]:
    """Cosine and sine of every pair's angle at the given positions, in texts of the given lengths."""
    per_position = frequencies_by_length(lengths, rotated, theta, scaling)
    angles = positions.astype(jnp.float32)[..., None] * per_position[:, None, :]
    scale = scaling.attention_factor if isinstance(scaling, YarnScaling | LongRopeScaling) else 1.0
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "*batch heads head_dim"],
    cosine: Float32[Array, "*#batch pairs"],
    sine: Float32[Array, "*#batch pairs"],
) -> Float32[Array, "*batch heads head_dim"]:
    """Turns every pair of every head; float32 out, so that the caller rounds once."""
    pairs = cosine.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (pairs, 2 * pairs), axis=-1)
    cosine, sine = cosine[..., None, :], sine[..., None, :]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=-1)


def _dynamic(
    lengths: Int[Array, " batch"], rotated: int, theta: float, scaling: DynamicScaling
) -> Float32[Array, "batch pairs"]:
    """What frequencies become in texts longer than the original context."""
    longer = jnp.maximum(lengths, scaling.original_max_position_embeddings).astype(jnp.float32)
    growth = scaling.factor * longer / scaling.original_max_position_embeddings - (scaling.factor - 1)
    base = theta * growth ** (rotated / (rotated - 2))
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    return 1.0 / base[:, None] ** exponents[None, :]


def _llama3(base: Float32[np.ndarray, " pairs"], scaling: Llama3Scaling) -> Float32[np.ndarray, " pairs"]:
    factor, low, high = (np.float32(x) for x in (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor))
    turns = np.float32(scaling.original_max_position_embeddings) / (np.float32(2 * math.pi) / base)
    kept = (turns - low) / (high - low)
    blended = (_ONE - kept) * base / factor + kept * base
    return np.where(turns < low, base / factor, np.where(turns > high, base, blended))


def _yarn(radian: Float32[np.ndarray, " pairs"], theta: float, scaling: YarnScaling) -> Float32[np.ndarray, " pairs"]:
    rotated = 2 * len(radian)

    def pair_that_turns(times: float) -> float:
        """The (fractional) pair that turns this many times over the original context."""
        return (
            rotated * math.log(scaling.original_max_position_embeddings / (times * 2 * math.pi)) / (2 * math.log(theta))
        )

    start, end = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        start, end = math.floor(start), math.ceil(end)
    start, end = max(start, 0), min(end, rotated - 1)
    if start == end:
        end += 0.001  # a ramp needs a width; the value is that of transformers
    ramp = np.clip((np.arange(len(radian), dtype=np.float32) - np.float32(start)) / np.float32(end - start), 0, 1)
    kept = _ONE - ramp
    return _ONE / (np.float32(scaling.factor) * radian) * (_ONE - kept) + _ONE / radian * kept
