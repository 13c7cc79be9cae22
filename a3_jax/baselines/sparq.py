"""SparQ attention's selection: scores from the query's largest components only (Ribar et al., ICML 2024)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from a3_jax.attention.exact import score_rows
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
    column: as much memory again, and no sorting. The selection alone; the paper also mixes the mean value into the output.

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
    read = take_largest(jnp.abs(query), jnp.asarray(num_columns, jnp.int32), jnp.ones(query.shape, bool))
    estimates = score_rows(jnp.where(read, query, 0), key)
    return bill(take_largest(estimates, count, valid), overhead=overhead, price=price)
