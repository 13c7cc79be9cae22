"""Selections that no method should do better or worse than: the true top rows, rows at random, the last rows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

from a3_jax.attention.exact import score_rows
from a3_jax.baselines.budget import Budget, Selection, affordable, bill, row_bytes, take_largest
from a3_jax.merging import Rows, window_rows


def exact_top_k(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    *,
    budget: Budget,
    value_dim: int,
    element_bytes: int | float = 2,
    mask: Bool[Array, " n"] | None = None,
) -> Selection:
    """The rows with the largest dot products, found by reading all keys.

        bytes = n d element_bytes + k value_dim element_bytes

    Args:
      budget: bytes; may be traced. So are the following functions' arguments.
      value_dim: columns of the value matrix.
      element_bytes: of one number of keys and values.
      mask: rows that take part; n of the formulas is their number.

    O(n (d + log n)).
    """
    valid, num_valid = _valid(key, mask)
    overhead = num_valid * key.shape[1] * element_bytes
    price = value_dim * element_bytes
    count = affordable(budget, overhead=overhead, price=price, limit=num_valid)
    return bill(take_largest(score_rows(query, key), count, valid), overhead=overhead, price=price)


def oracle_top_k(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    *,
    budget: Budget,
    value_dim: int,
    element_bytes: int | float = 2,
    mask: Bool[Array, " n"] | None = None,
) -> Selection:
    """The rows with the largest dot products, known without reading: for k rows no selection has more softmax weight.

        bytes = k (d + value_dim) element_bytes

    Arguments are those of `exact_top_k`. O(n (d + log n)).
    """
    valid, num_valid = _valid(key, mask)
    price = row_bytes(key.shape[1], value_dim, element_bytes)
    count = affordable(budget, overhead=0, price=price, limit=num_valid)
    return bill(take_largest(score_rows(query, key), count, valid), overhead=0, price=price)


def random_rows(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    random_key: PRNGKeyArray | UInt32[Array, " 2"],
    *,
    budget: Budget,
    value_dim: int,
    element_bytes: int | float = 2,
    mask: Bool[Array, " n"] | None = None,
) -> Selection:
    """Rows drawn without replacement, every set of k as likely.

        bytes = k (d + value_dim) element_bytes

    Arguments are those of `exact_top_k`, and a key of `jax.random`. O(n log n).
    """
    valid, num_valid = _valid(key, mask)
    price = row_bytes(key.shape[1], value_dim, element_bytes)
    count = affordable(budget, overhead=0, price=price, limit=num_valid)
    draws = jax.random.uniform(random_key, key.shape[:1])
    return bill(take_largest(draws, count, valid), overhead=0, price=price)


def sliding_window(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    *,
    budget: Budget,
    value_dim: int,
    element_bytes: int | float = 2,
    sinks: Rows = 4,
    mask: Bool[Array, " n"] | None = None,
) -> Selection:
    """The first rows, then the last: StreamingLLM (Xiao et al., ICLR 2024), which keeps four sinks.

        bytes = k (d + value_dim) element_bytes

    Arguments are those of `exact_top_k`, and `sinks`, how many of the k rows are the first ones; if k is less, all of them. O(n).
    """
    valid, num_valid = _valid(key, mask)
    price = row_bytes(key.shape[1], value_dim, element_bytes)
    count = affordable(budget, overhead=0, price=price, limit=num_valid)
    first = jnp.minimum(sinks, count)
    return bill(window_rows(valid, window=count - first, sinks=first), overhead=0, price=price)


def _valid(key: Array, mask: Array | None) -> tuple[Array, Array]:
    valid = jnp.ones(key.shape[0], bool) if mask is None else mask
    return valid, jnp.sum(valid, dtype=jnp.int32)
