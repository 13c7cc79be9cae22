"""Post-scoring selection: candidates whose weight would be small are dropped (HPCA 2020, section IV-D)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Percent = int | float | Float[Array, ""]


def score_gap(threshold_percent: Percent) -> float | Float[Array, ""]:
    """The paper's t = ln(100 / T): how far below the largest score a row may be. 0 for T = 100, infinite for T = 0.

    Raises:
      ValueError: if a threshold that is known now is not in [0, 100]. One that is traced is clamped.
    """
    if isinstance(threshold_percent, jax.Array):
        return jnp.log(100 / jnp.clip(threshold_percent, 0, 100))
    if not 0 <= threshold_percent <= 100:
        raise ValueError(f"threshold_percent: wanted a number of percent in [0, 100], got {threshold_percent}")
    return math.log(100 / threshold_percent) if threshold_percent else math.inf


def select_post_scoring(
    scores: Float[Array, " n"], candidates: Bool[Array, " n"], *, threshold_percent: Percent
) -> Bool[Array, " n"]:
    """Keeps the candidates whose softmax weight is at least T % of the largest one's.

    A row is dropped if the largest score of a candidate exceeds its own by more than t = ln(100 / T). (Section V-B of the paper says
    the opposite of IV-D once; IV-D is right.)

    Args:
      scores: full dot products of query and keys. Those of rows that are no candidates are not looked at.
      threshold_percent: T of the paper, in [0, 100]; may be traced. 100 keeps the largest only, all of them if they are equal; 0
        keeps every candidate.

    Raises:
      ValueError: if T is known now and not in [0, 100].

    O(n). No gradient flows.
    """
    scores = jax.lax.stop_gradient(scores)
    largest = jnp.max(scores, where=candidates, initial=-jnp.inf)
    gap = jnp.asarray(score_gap(threshold_percent), scores.dtype)
    # A score of -inf, where nothing else is a candidate, is no further from itself than any other.
    return candidates & ((scores == largest) | (largest - scores <= gap))
