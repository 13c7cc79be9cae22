"""The threshold of post-scoring selection as an integer (HPCA 2020, section IV-D)."""

import decimal

import jax

_DIGITS = 50
_LARGEST = 2**31 - 1  # above every distance of an int32


def threshold_units(threshold_percent: float | int, *, fraction_bits: int) -> int:
    """The largest distance from the best score, in units of `2^-fraction_bits`, that is kept: `floor(ln(100 / T) 2^fraction_bits)`.

    Distances are whole numbers of units, so that this is exact: a distance is above ln(100 / T) if and only if it is above the
    integer below it. No other rounding has that property. T = 0 keeps everything. ValueError if T is not in [0, 100].
    """
    if isinstance(threshold_percent, jax.Array):
        raise ValueError("threshold_percent: wanted a number known at compile time, as the hardware's is, got an array")
    threshold_percent = float(threshold_percent)
    if not 0 <= threshold_percent <= 100:
        raise ValueError(f"threshold_percent: wanted a number of percent in [0, 100], got {threshold_percent}")
    if threshold_percent == 0:
        return _LARGEST
    with decimal.localcontext(prec=_DIGITS):
        distance = (100 / decimal.Decimal(threshold_percent)).ln() * 2**fraction_bits
    return min(int(distance), _LARGEST)
