"""ELSA's selection: angles estimated from signs of random projections, times the norm of the key (Ham et al., ISCA 2021)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

from a3_jax.attention.exact import score_rows
from a3_jax.baselines.budget import Budget, Selection, affordable, bill, row_bytes, take_largest


class HashedKeys(NamedTuple):
    """What is stored of every key, and what queries are hashed with.

    Attributes:
      directions: of projection; orthonormal within every d of them.
      signs: whether a key's projection is above 0.
      norms: Euclidean.
    """

    directions: Float[Array, "bits d"]
    signs: Bool[Array, "n bits"]
    norms: Float[Array, " n"]


def hash_keys(
    key: Float[Array, "n d"], random_key: PRNGKeyArray | UInt32[Array, " 2"], *, num_bits: int | None = None
) -> HashedKeys:
    """Signs of every key's projections onto random directions, and its norm.

    Args:
      num_bits: of a hash; None for d, as in the paper. Every d directions are an orthogonal basis, as there, drawn uniformly.

    Raises:
      ValueError: if the number of bits is not positive.

    O(n d bits), once for all queries.
    """
    dim = key.shape[1]
    bits = dim if num_bits is None else num_bits
    if bits < 1:
        raise ValueError(f"num_bits: wanted at least 1, got {bits}")
    key = key.astype(jnp.promote_types(key.dtype, jnp.float32))
    directions = jax.random.orthogonal(random_key, dim, (-(-bits // dim),), dtype=key.dtype).reshape(-1, dim)[:bits]
    return HashedKeys(directions, jnp.matmul(key, directions.T) > 0, jnp.linalg.norm(key, axis=1))


def sign_hash(
    query: Float[Array, " d"],
    hashed: HashedKeys,
    *,
    budget: Budget,
    value_dim: int,
    element_bytes: int | float = 2,
    angle_bias: int | float | Float[Array, ""] = 0.0,
    mask: Bool[Array, " n"] | None = None,
) -> Selection:
    """The rows with the largest `norm cos(pi / bits (signs that differ) - angle_bias)`.

        bytes = n (bits / 8 + element_bytes) + k (d + value_dim) element_bytes

    The paper selects rows above a threshold that it learns for each layer; here as many as the budget buys.

    Args:
      hashed: of `hash_keys`.
      angle_bias: radians that the paper takes off an estimated angle, no further than to 0, so that few are too large.
      budget, value_dim, element_bytes, mask: as for `exact_top_k`.

    O(n (bits + log n) + d bits).
    """
    num_rows, num_bits = hashed.signs.shape
    valid = jnp.ones(num_rows, bool) if mask is None else mask
    num_valid = jnp.sum(valid, dtype=jnp.int32)
    overhead = num_valid * jnp.float32(num_bits / 8 + element_bytes)
    price = row_bytes(query.shape[0], value_dim, element_bytes)
    count = affordable(budget, overhead=overhead, price=price, limit=num_valid)
    signs = score_rows(query.astype(hashed.directions.dtype), hashed.directions) > 0
    differing = jnp.sum(hashed.signs != signs[None], axis=1)
    angles = jnp.maximum(jnp.pi / num_bits * differing - angle_bias, 0)
    return bill(take_largest(hashed.norms * jnp.cos(angles), count, valid), overhead=overhead, price=price)
