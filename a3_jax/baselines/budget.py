"""What a number of bytes buys: first what a method always reads, then whole rows.

All formulas agree with `a3_jax.metrics.bytes_touched`, where M = 0 and C = K = the rows selected: k rows cost `k (key_dim + value_dim)
element_bytes`. As there, the query, what stays on chip and what is prepared before the query are not counted.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Real, UInt

from a3_jax.metrics import bytes_touched

Budget: TypeAlias = int | float | Real[Array, ""]
Bytes: TypeAlias = int | float | Real[Array, ""]


class Selection(NamedTuple):
    """The rows that a method chooses, and what it reads for that and for them.

    Attributes:
      selected: rows whose scores and values are used.
      bytes_touched: at most the budget. 0, and no rows, where the budget does not pay for what the method always reads.
    """

    selected: Bool[Array, " n"]
    bytes_touched: Float[Array, ""]


def row_bytes(key_dim: int, value_dim: int, element_bytes: int | float) -> float:
    """Of a key and its value."""
    return float(bytes_touched(0, 1, 1, key_dim=key_dim, value_dim=value_dim, element_bytes=element_bytes))


def affordable(budget: Budget, *, overhead: Bytes, price: int | float, limit: Int32[Array, ""]) -> Int32[Array, ""]:
    """How many whole pieces of a price the budget buys after the overhead, no more than there are.

    In float32: a budget above 16 MiB may buy a piece more or less than in exact numbers.
    """
    left = (jnp.asarray(budget, jnp.float32) - overhead) / price
    return jnp.clip(jnp.floor(left), 0, limit).astype(jnp.int32)


def take_largest(scores: Real[Array, " n"], count: Int32[Array, ""], valid: Bool[Array, " n"]) -> Bool[Array, " n"]:
    """As many of the valid rows, those with the largest scores, of equal ones the lower; NaN counts as the least.

    The score of the last row to take is found bit by bit, as in a radix selection: O(n) for each bit, for any `count` that is traced.
    Under `vmap` on a CPU a tenth of the time of sorting 320 rows.
    """
    codes = _ordered_codes(scores)
    bits = 8 * codes.dtype.itemsize

    def with_bit(step: Int32[Array, ""], last: Array) -> Array:
        higher = last | (jnp.ones_like(last) << (bits - 1 - step).astype(codes.dtype))
        return jnp.where(jnp.sum(valid & (codes >= higher)) >= count, higher, last)

    last = jax.lax.fori_loop(0, bits, with_bit, jnp.zeros((), codes.dtype))
    above, equal = valid & (codes > last), valid & (codes == last)
    return above | (equal & (jnp.cumsum(equal) <= count - jnp.sum(above)))


def _ordered_codes(scores: Real[Array, " n"]) -> UInt[Array, " n"]:
    """Unsigned integers that compare as the scores do, 0 and -0 as one."""
    if jnp.issubdtype(scores.dtype, jnp.unsignedinteger):
        return scores
    unsigned = jnp.dtype(f"uint{8 * scores.dtype.itemsize}")
    sign = jnp.asarray(1 << (8 * unsigned.itemsize - 1), unsigned)
    if jnp.issubdtype(scores.dtype, jnp.integer):
        return jax.lax.bitcast_convert_type(scores, unsigned) ^ sign
    codes = jax.lax.bitcast_convert_type(jnp.where(scores == 0, jnp.zeros_like(scores), scores), unsigned)
    return jnp.where(jnp.isnan(scores), jnp.zeros_like(codes), jnp.where(codes < sign, codes | sign, ~codes))


def bill(selected: Bool[Array, " n"], *, overhead: Bytes, price: int | float) -> Selection:
    """The selection with its bytes."""
    count = jnp.sum(selected)
    return Selection(selected, jnp.where(count > 0, overhead + count * price, 0).astype(jnp.float32))
