"""Quotients with more fraction bits than an int32 has room for the dividend."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from a3_jax.fixed_point.formats import WORD_BITS, Rounding


def divide(
    numerator: Int32[Array, "*shape"],
    denominator: Int32[Array, ""],
    *,
    fraction_bits: int,
    denominator_bits: int,
    rounding: Rounding,
) -> Int32[Array, "*shape"]:
    """`numerator / denominator` in units of `2^-fraction_bits`, towards minus infinity or to the nearest, halves up.

    Args:
      denominator: at least 1, of at most `denominator_bits < 31` bits.

    Digit by digit as by hand, each digit of as many bits as a remainder leaves room for; the quotient must fit.
    """
    quotient = numerator // denominator
    remainder = numerator - quotient * denominator
    while fraction_bits:
        digit_bits = min(WORD_BITS - denominator_bits, fraction_bits)
        fraction_bits -= digit_bits
        shifted = remainder << digit_bits
        # Both are at least 0, where truncating is flooring.
        digit = jax.lax.div(shifted, jnp.broadcast_to(denominator, shifted.shape))
        quotient, remainder = (quotient << digit_bits) + digit, shifted - digit * denominator
    if rounding == "nearest":
        quotient += (2 * remainder >= denominator).astype(jnp.int32)
    return quotient
