"""How far one distribution is from another."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# KL is summed by a second-order formula where the log-probabilities differ by less than this.
_SMALL_DIFFERENCE = 0.5


def kl_divergence(
    expected: Float[Array, "*batch vocab"], predicted: Float[Array, "*batch vocab"]
) -> Float[Array, "*batch"]:
    """KL(expected || predicted) of log-probabilities, in nats.

    With p, q the probabilities and d = log p - log q, the sum of p d is also that of p d + q - p = p (exp(-d) - 1 + d),
    since both distributions sum to 1. Those terms are of second order in d and never negative, so rounding
    errors of d, which in the plain sum are errors of KL, are multiplied by d: KLs of 1e-6 and less keep their digits in
    float32.
    """
    difference = expected - predicted
    p = jnp.exp(expected)
    small = p * (jnp.expm1(-difference) + difference)
    large = p * difference + (jnp.exp(predicted) - p)
    return jnp.sum(jnp.where(jnp.abs(difference) < _SMALL_DIFFERENCE, small, large), axis=-1)
