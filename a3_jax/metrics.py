"""How much an approximation loses, and what it reads."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Count: TypeAlias = int | float | np.ndarray | jax.Array


def top_k_recall(
    scores: Float[Array, " n"], selected: Bool[Array, " n"], *, k: int, mask: Bool[Array, " n"] | None = None
) -> Float[Array, ""]:
    """The share of the k rows with the largest scores that were selected (HPCA 2020, section VI-B, figure 13).

    Args:
      scores: full dot products. Of equal ones the lower row counts as the larger.
      selected: candidates, or rows kept.
      mask: rows that take part; where they are fewer than k, all of them are looked for. 1 where there are none.
    """
    valid = jnp.ones_like(selected) if mask is None else mask
    _, rows = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), min(k, scores.shape[0]))
    wanted = valid[rows]
    found = jnp.sum(selected[rows] & wanted)
    return jnp.where(jnp.any(wanted), found / jnp.maximum(jnp.sum(wanted), 1), 1.0)


def softmax_mass(
    scores: Float[Array, " n"], selected: Bool[Array, " n"], *, mask: Bool[Array, " n"] | None = None
) -> Float[Array, ""]:
    """The sum of exact softmax weights of the selected rows, in [0, 1]; 1 where no row takes part, and nothing is lost.

    The output is off by at most `2 * (1 - mass)` times the largest norm of a value.
    """
    valid = jnp.ones_like(selected) if mask is None else mask
    largest = jnp.max(scores, where=valid, initial=-jnp.inf)
    weights = jnp.where(valid, jnp.exp(jnp.where(valid, scores - largest, 0)), 0)
    kept = jnp.sum(jnp.where(selected, weights, 0))
    return jnp.where(jnp.any(valid), kept / jnp.maximum(jnp.sum(weights), 1), 1.0)


def output_error(output: Float[Array, " dv"], exact: Float[Array, " dv"]) -> Float[Array, ""]:
    """The distance of two outputs over the length of the exact one; 0 where both are zeros, infinite where only the exact one is."""
    distance, length = jnp.linalg.norm(output - exact), jnp.linalg.norm(exact)
    return jnp.where(distance == 0, 0.0, distance / length)


def bytes_touched(
    M: Count,
    C: Count,
    K: Count,
    *,
    key_dim: int,
    value_dim: int,
    element_bytes: int | float = 2,
    id_bytes: int | float = 4,
) -> Count:
    """What the accelerator's algorithm reads for one query: `2 M` words of sorted keys, C rows of keys, K rows of values.

        2 M (element_bytes + id_bytes) + C key_dim element_bytes + K value_dim element_bytes

    Args:
      M, C, K: of `Info`; numbers or arrays. M = 0 and C = K = n is exact attention.
      key_dim, value_dim: d of keys and of values.
      element_bytes: of one number, 2 for bfloat16; the paper's nine bits are 9 / 8.
      id_bytes: of the row that stands beside every sorted number.

    Assumed: every iteration reads one word on each side, although the skip heuristic spares some; the first word of every column,
    `2 d` of them, and the query, greedy scores and output, which stay on chip, are not counted; nor is sorting.
    """
    return 2 * M * (element_bytes + id_bytes) + (C * key_dim + K * value_dim) * element_bytes
