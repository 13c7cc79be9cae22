"""SparQ attention: rows by scores from the query's largest components, and the mean value for the rest (Ribar et al., ICML 2024)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from a3_jax.attention.exact import scale_query, score_rows
from a3_jax.baselines.budget import Budget, Selection, affordable, bill, row_bytes, take_largest


def sparq(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    *,
    budget: Budget,
    num_columns: int | Int32[Array, ""],
    value_dim: int,
    element_bytes: int | float = 2,
    mask: Bool[Array, " n"] | None = None,
) -> Selection:
    """The rows with the largest sums of products over the r columns where the query is largest in magnitude.

        bytes = n r element_bytes + k (d + value_dim) element_bytes

    as in the paper, less the query and the mean value, which it also reads. The columns are read from a second copy of the keys, stored by
    column: as much memory again, and no sorting. The selection alone: `sparq_weight` and `mix_mean_value` are what comes after attention.

    Args:
      budget: bytes; may be traced.
      num_columns: r, 1 to d; may be traced. Of equal components the lower column is taken.
      value_dim, element_bytes, mask: as for `exact_top_k`.

    O(n (d + log n)) here, where all columns are multiplied and those that are not read by 0.
    """
    valid = jnp.ones(key.shape[0], bool) if mask is None else mask
    num_valid = jnp.sum(valid, dtype=jnp.int32)
    overhead = num_valid * jnp.asarray(num_columns * element_bytes, jnp.float32)
    price = row_bytes(key.shape[1], value_dim, element_bytes)
    count = affordable(budget, overhead=overhead, price=price, limit=num_valid)
    estimates = score_rows(_largest_components(query, num_columns), key)
    return bill(take_largest(estimates, count, valid), overhead=overhead, price=price)


def sparq_weight(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    selected: Bool[Array, " n"],
    *,
    num_columns: int | Int32[Array, ""],
    scale: int | float | Float[Array, ""] = 1.0,
    mask: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """The softmax weight of the selected rows as the estimated scores have it: alpha in the paper, in [0, 1]; 1 where no row takes part.

    Estimates are divided by `sqrt(sum |q[j]| over the r columns / sum |q[j]|)` before the softmax, since r columns spread less than d.
    What is read for it was read for the selection. O(n d) here.
    """
    valid = jnp.ones(key.shape[0], bool) if mask is None else mask
    query = scale_query(query, scale)
    few = _largest_components(query, num_columns)
    whole = jnp.sum(jnp.abs(query))
    temperature = jnp.sqrt(jnp.where(whole > 0, jnp.sum(jnp.abs(few)) / jnp.where(whole > 0, whole, 1), 1))
    weights = jax.nn.softmax(score_rows(few / temperature, key), where=valid)
    return jnp.where(jnp.any(valid), jnp.sum(weights, where=selected & valid), 1.0)


def mix_mean_value(
    output: Float[Array, " dv"], weight: Float[Array, ""], mean_value: Float[Array, " dv"]
) -> Float[Array, " dv"]:
    """`weight output + (1 - weight) mean_value`: what was not selected is taken to be worth the mean of all values.

    The mean is kept beside the cache: a row of `dv` elements more to read.
    """
    return weight * output + (1 - weight) * mean_value


def _largest_components(query: Float[Array, " d"], num_columns: int | Int32[Array, ""]) -> Float[Array, " d"]:
    """The others are 0."""
    read = take_largest(jnp.abs(query), jnp.asarray(num_columns, jnp.int32), jnp.ones(query.shape, bool))
    return jnp.where(read, query, 0)
