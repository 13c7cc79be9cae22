"""From logits to a token.

The filters act in the order of `transformers`: temperature, top-k, top-p, min-p, each on the distribution that the one
before it left. (llama.cpp applies the temperature last; the two agree at temperature 1.) Every filter keeps the tokens
whose logit reaches some threshold, so tokens with equal logits are kept or dropped together, whatever their ids.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key


class Sampling(NamedTuple):
    """How to choose a token. None leaves a filter out; numbers may be traced: another value compiles nothing anew."""

    temperature: float | int | Float[Array, ""] | None = (
        None  # logits are divided by it; None takes the likeliest token
    )
    top_k: int | Int32[Array, ""] | None = None  # keep the k likeliest
    top_p: float | int | Float[Array, ""] | None = None  # keep the likeliest until they hold this much probability
    min_p: float | int | Float[Array, ""] | None = None  # drop what is less than this times as likely as the likeliest


def checked_sampling(
    *,
    temperature: float | int = 0.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    min_p: float | int | None = None,
) -> Sampling:
    """Settings as a user gives them, checked: a temperature of 0 takes the likeliest token and makes the filters moot.

    Raises:
      ValueError: a setting outside its range.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature should be 0 (the likeliest token) or more, and finite, but is {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k should be 1 or more, but is {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p should be above 0 and at most 1, but is {top_p}")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p should be between 0 and 1, but is {min_p}")
    if temperature == 0:
        return Sampling()
    # A rounded sum can reach 1 before the last token.
    return Sampling(temperature, top_k, None if top_p == 1 else top_p, min_p)


def sample(logits: Float[Array, " vocab"], key: Key[Array, ""], sampling: Sampling) -> Int32[Array, ""]:
    """Draws one token; for a batch, `jax.vmap` over logits and keys.

    Args:
      logits: unnormalised, not yet divided by the temperature.
      key: decides the draw; unused when the likeliest token is taken.
      sampling: checked by `checked_sampling`.

    Returns:
      The token's id. Of equally likely candidates for the likeliest, the smallest id.
    """
    if sampling.temperature is None:
        return jnp.argmax(logits).astype(jnp.int32)
    return jax.random.categorical(key, filter_logits(logits, sampling)).astype(jnp.int32)


def filter_logits(logits: Float[Array, " vocab"], sampling: Sampling) -> Float[Array, " vocab"]:
    """Logits of the distribution that `sample` draws from: float32, minus infinity where a token cannot be drawn.

    Cost: a few passes over the vocabulary, and 32 more for each of top-k and top-p.
    """
    logits = logits.astype(jnp.float32)
    if sampling.temperature is not None:
        # Relative to the largest: a tiny temperature sends the others to minus infinity, and not all to infinity.
        logits = (logits - jnp.max(logits)) / jnp.asarray(sampling.temperature, jnp.float32)
    if sampling.top_k is not None:
        logits = _keep_until(logits, jnp.ones_like(logits), sampling.top_k)
    if sampling.top_p is not None:
        logits = _keep_until(logits, jax.nn.softmax(logits), sampling.top_p)
    if sampling.min_p is not None:
        threshold = jnp.max(logits) + jnp.log(jnp.asarray(sampling.min_p, jnp.float32))
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    return logits


def _keep_until(
    logits: Float[Array, " vocab"], weights: Float[Array, " vocab"], total: float | int | Array
) -> Float[Array, " vocab"]:
    """Keeps the largest logits until their weights add up to `total`; the others become minus infinity.

    The threshold is built bit by bit, from the most significant, as the largest value at or above which the weights
    reach `total`. That takes 32 sums, and on a CPU a quarter of the time of sorting a vocabulary.
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    # Integers in the order of the floats. The bits of negative floats count down.
    order = jax.lax.bitcast_convert_type(jnp.where(bits < 0, ~bits, bits ^ jnp.int32(-(2**31))), jnp.uint32)
    total = jnp.asarray(total, jnp.float32)

    def try_bit(i: Array, threshold: Array) -> Array:
        raised = threshold | (jnp.uint32(1) << (jnp.uint32(31) - i.astype(jnp.uint32)))
        return jnp.where(jnp.sum(weights, where=order >= raised) >= total, raised, threshold)

    threshold = jax.lax.fori_loop(0, 32, try_bit, jnp.uint32(0))
    return jnp.where(order >= threshold, logits, -jnp.inf)
