"""Fixed-point numbers: integers with a binary point."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

_FLOAT32_BITS = 24  # integers up to 2^24 are floats of 32 bits


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """Numbers `k / 2^fraction_bits` for integers k of `integer_bits + fraction_bits` bits and a sign.

    Both may be any integers whose sum is at least 1; the range is symmetric, `|k| < 2^(integer_bits + fraction_bits)`, as the paper
    has it (HPCA 2020, section III-B).
    """

    integer_bits: int
    fraction_bits: int

    @property
    def bits(self) -> int:
        """Of the magnitude, without the sign."""
        return self.integer_bits + self.fraction_bits

    @property
    def largest(self) -> int:
        """The largest k."""
        return 2**self.bits - 1

    def quantize(self, x: Float[Array | np.ndarray, "*shape"]) -> Int32[Array, "*shape"]:
        """The nearest k to x as float32, of two equally near the even one; what is out of range becomes its end. NaN becomes any number.

        ValueError if the numbers have more than 24 bits, which no float32 tells apart.
        """
        if self.bits > _FLOAT32_BITS:
            raise ValueError(f"quantize: wanted at most {_FLOAT32_BITS} bits and a sign, got {self.bits}")
        # Scaling by a power of two is exact, or overflows to what is clamped anyway.
        scaled = jnp.round(jnp.asarray(x, jnp.float32) * jnp.float32(2.0**self.fraction_bits))
        return jnp.clip(scaled, -self.largest, self.largest).astype(jnp.int32)

    def to_float(self, k: Int32[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`k / 2^fraction_bits` as float32: exact for |k| up to 2^24, rounded beyond."""
        return k.astype(jnp.float32) * jnp.float32(2.0**-self.fraction_bits)
