"""The exponent unit: two half tables and a multiplier (HPCA 2020, section III-A)."""

import decimal
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from a3_jax.fixed_point.formats import AttentionFormat, Rounding

_DIGITS = 40  # e^-k/2^b is irrational but for k = 0: none is so near to half an entry that 40 digits do not tell


def exponent_tables(format: AttentionFormat) -> tuple[Int32[np.ndarray, " upper"], Int32[np.ndarray, " lower"]]:
    """The tables of the upper and of the lower half of an index, in units of `2^-entry_bits`.

    exp(-(a + b)) = exp(-a) exp(-b), so that with 16 bits of index two tables of 256 entries do for one of 65,536. The lower half
    has the fewer bits if their number is odd. Entry 0 of each is 1.0. Made once for a format.
    """
    bits = format.index_integer_bits + format.index_fraction_bits
    lower = bits // 2
    entry = {"entry_bits": format.entry_bits, "rounding": format.entry_rounding}
    return (
        _table(2 ** (bits - lower), lower - format.index_fraction_bits, **entry),
        _table(2**lower, -format.index_fraction_bits, **entry),
    )


@functools.lru_cache(maxsize=64)
def _table(size: int, step: int, entry_bits: int, rounding: Rounding) -> Int32[np.ndarray, " size"]:
    """`exp(-k 2^step)` for k below `size`."""
    mode = decimal.ROUND_FLOOR if rounding == "floor" else decimal.ROUND_HALF_EVEN
    # Factors of e are multiplied up, at a hundredth of the time of as many exponentials.
    with decimal.localcontext(prec=_DIGITS + 10):
        ratio, power, entries = (-(decimal.Decimal(2) ** step)).exp(), decimal.Decimal(1), []
        for _ in range(size):
            entries.append(int((power * 2**entry_bits).to_integral_value(mode)))
            power *= ratio
    table = np.asarray(entries, np.int32)
    table.flags.writeable = False
    return table


def exponent(distance: Int32[Array, "*shape"], format: AttentionFormat) -> Int32[Array, "*shape"]:
    """The score of dot products that lie `distance` below the largest: `exp(-distance)` in 2f fraction bits.

    Args:
      distance: at least 0, in units of `2^-2f`.

    The index is the distance with its fraction bits cut off or filled with zeros, at most the largest index. What is nearer to 0 than half
    a unit (a unit, with floored scores) is 0.
    """
    upper, lower = (jnp.asarray(table) for table in exponent_tables(format))
    index, half = _index(distance, format), (lower.shape[0] - 1).bit_length()
    product, product_bits = _product(upper[index >> half], lower[index & (lower.shape[0] - 1)], format.entry_bits)
    shift = product_bits - 2 * format.fraction_bits
    if format.score_rounding == "nearest":
        product += 1 << (shift - 1)
    return jnp.minimum(product >> shift, format.largest_score)


def _index(distance: Int32[Array, "*shape"], format: AttentionFormat) -> Int32[Array, "*shape"]:
    largest = format.signals()["index"].bound
    shift = format.index_fraction_bits - 2 * format.fraction_bits
    if shift <= 0:
        return jnp.minimum(distance >> -shift, largest)
    return jnp.where(distance > largest >> shift, largest, distance << shift)


def _product(
    a: Int32[Array, "*shape"], b: Int32[Array, "*shape"], entry_bits: int
) -> tuple[Int32[Array, "*shape"], int]:
    """`floor(a b / 2^h)` and its fraction bits, for half of an entry's bits h: b's upper bits are multiplied first, then its lower."""
    half = entry_bits // 2
    low = jax.lax.bitwise_and(b, jnp.int32((1 << half) - 1))
    return a * (b >> half) + (a * low >> half), 2 * entry_bits - half
