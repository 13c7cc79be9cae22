"""How many iterations a search takes: a number, a fraction of the valid rows, or a number that only the device knows."""

import fractions
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

# 0.07 and 5/6 are no floats: the fraction that was meant is the nearest one with a small denominator.
_LARGEST_DENOMINATOR = 10**6


class Iterations(NamedTuple):
    """The iterations of one search: `count <= limit <= n * d`, and `limit` is static."""

    limit: int
    count: Int32[Array, ""]


def resolve_iterations(
    num_iterations: Any,
    *,
    max_iterations: int | None,
    num_rows: int,
    num_columns: int,
    num_valid: Int32[Array, ""] | None,
) -> Iterations:
    """The paper's M, clamped to the number of products.

    Args:
      num_iterations: an int, at least 1; a float, which stands for `max(1, ceil(num_iterations * valid rows))`; or an array
        of no axes, which may be traced and is clamped to [0, max_iterations].
      max_iterations: the most that an array may ask for. Unused otherwise.
      num_rows, num_columns: n and d.
      num_valid: the number of rows that a mask leaves; None without a mask.

    Raises:
      ValueError: if `num_iterations` is not positive, or an array comes without `max_iterations`.
    """
    valid = jnp.int32(num_rows) if num_valid is None else num_valid
    if isinstance(num_iterations, float | np.floating):
        wanted = _fractions_of_rows(float(num_iterations), num_rows)
        limit, count = int(wanted[-1]), jnp.asarray(wanted)[valid]
    elif isinstance(num_iterations, jax.Array) or (isinstance(num_iterations, np.ndarray) and num_iterations.ndim == 0):
        limit, count = _traced(num_iterations, max_iterations)
    else:
        limit = _positive(num_iterations)
        count = jnp.int32(min(limit, num_rows * num_columns))
    limit = min(limit, num_rows * num_columns)
    return Iterations(limit, jnp.clip(count, 0, jnp.minimum(limit, valid * num_columns)))


def _positive(number: Any) -> int:
    try:
        number = operator.index(number)
    except TypeError:
        raise ValueError(
            f"num_iterations: wanted an int, a float (a fraction of the valid rows) or an array of no axes, got {number!r}"
        ) from None
    if number < 1:
        raise ValueError(f"num_iterations: wanted at least 1, got {number}; None turns the selection off")
    return number


def _fractions_of_rows(fraction: float, num_rows: int) -> np.ndarray:
    """For 0 to `num_rows` valid rows the number of iterations."""
    if not 0 < fraction < float("inf"):
        raise ValueError(f"num_iterations: wanted a fraction above 0, got {fraction}; None turns the selection off")
    exact = fractions.Fraction(fraction).limit_denominator(_LARGEST_DENOMINATOR)
    wanted = [max(1, -(-rows * exact.numerator // exact.denominator)) for rows in range(num_rows + 1)]
    return np.minimum(wanted, np.iinfo(np.int32).max).astype(np.int32)


def _traced(number: Any, max_iterations: int | None) -> tuple[int, Int32[Array, ""]]:
    if max_iterations is None:
        raise ValueError(
            "max_iterations: wanted the most iterations that the array num_iterations may ask for, got None"
        )
    number = jnp.asarray(number)
    if number.ndim or not jnp.issubdtype(number.dtype, jnp.integer):
        raise ValueError(
            f"num_iterations: wanted an array of one integer and no axes, got {number.dtype}{list(number.shape)}"
        )
    return _positive(max_iterations), number.astype(jnp.int32)
