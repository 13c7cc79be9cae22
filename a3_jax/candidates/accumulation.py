"""From the products in the order of the pops to greedy scores: which min pops are skipped, without a loop over iterations.

Let a be the entries of the max pops and b those of the min pops that would follow one another, both with the wrong sign set to 0. The skip
heuristic changes only *when* the j-th min pop happens, and so how many happen. With A_k = a_1 + .. + a_k and B_j = b_1 + .. + b_(j-1)

    r_j = the first iteration k with A_k >= -B_j
    t_j = j + max over i <= j of (r_i - i)            the iteration of the j-th min pop

and the j-th min pop happens if t_j <= M.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.candidates.iterations import Iterations


class Pops(NamedTuple):
    """The entries that the two sides would pop, in order: first the side of the largest, then that of the smallest.

    Products of the second side are negated: what leads, on either side, is the largest.
    """

    products: Real[Array, "2 limit"]
    rows: Int32[Array, "2 limit"]


def accumulate(pops: Pops, *, iterations: Iterations, num_rows: int, skip_heuristic: bool) -> Real[Array, " n"]:
    """Greedy scores: per row the sum of its max pops less that of its min pops, each added up in the order of the pops.

    O(M log M) time, O(M + n) memory.
    """
    active = jnp.arange(iterations.limit, dtype=jnp.int32) < iterations.count
    amounts = jnp.where(active, jnp.maximum(pops.products, 0), 0)
    if skip_heuristic:
        happens = jnp.stack([active, _happens(amounts, iterations.count)])
        amounts = jnp.where(happens, amounts, 0)
    # One scatter for both: the rows of the second side lie behind those of the first.
    places = pops.rows + jnp.array([[0], [num_rows]], jnp.int32)
    gained, lost = jnp.zeros(2 * num_rows, amounts.dtype).at[places.ravel()].add(amounts.ravel()).reshape(2, num_rows)
    return gained - lost


def _happens(amounts: Real[Array, "2 limit"], count: Int32[Array, ""]) -> Bool[Array, " limit"]:
    """Whether each min pop happens within `count` iterations. Iterations count from 0 here."""
    gained, lost = _running_sum(amounts)
    lost_before = jnp.concatenate([jnp.zeros_like(lost[:1]), lost[:-1]])
    ready = jnp.searchsorted(gained, lost_before, side="left").astype(jnp.int32)
    turn = jnp.arange(lost.shape[0], dtype=jnp.int32)
    return turn + jax.lax.cummax(ready - turn) < count


def _running_sum(amounts: Real[Array, "2 limit"]) -> Real[Array, "2 limit"]:
    """Sums up to and with each element. Floats are added from left to right, so that every form rounds alike."""
    if jnp.issubdtype(amounts.dtype, jnp.integer):
        return jnp.cumsum(amounts, axis=1, dtype=amounts.dtype)

    def add(total: Real[Array, " 2"], element: Real[Array, " 2"]) -> tuple[Real[Array, " 2"], Real[Array, " 2"]]:
        total = total + element
        return total, total

    return jax.lax.scan(add, jnp.zeros_like(amounts[:, 0]), amounts.T)[1].T
