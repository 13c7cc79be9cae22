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

_UNROLL = 8  # additions in a row, which the compiler would otherwise loop over one by one


class Pops(NamedTuple):
    """The entries that one side would pop, in order."""

    products: Real[Array, " limit"]
    rows: Int32[Array, " limit"]


def accumulate(
    largest: Pops, smallest: Pops, *, iterations: Iterations, num_rows: int, skip_heuristic: bool
) -> Real[Array, " n"]:
    """Greedy scores: per row the sum of its max entries plus the sum of its min entries, each added up in the order of the pops.

    O(M log M) time, O(M) memory.
    """
    iteration = jnp.arange(iterations.limit, dtype=jnp.int32)
    active = iteration < iterations.count
    gained = jnp.where(active, jnp.maximum(largest.products, 0), 0)
    lost = jnp.where(active, jnp.minimum(smallest.products, 0), 0)
    if skip_heuristic:
        lost = jnp.where(_happens(gained, lost, iterations.count), lost, 0)
    zeros = jnp.zeros(num_rows, gained.dtype)
    return zeros.at[largest.rows].add(gained) + zeros.at[smallest.rows].add(lost)


def _happens(
    gained: Real[Array, " limit"], lost: Real[Array, " limit"], count: Int32[Array, ""]
) -> Bool[Array, " limit"]:
    """Whether each min pop happens within `count` iterations. Iterations count from 0 here."""
    debt = -jnp.concatenate([jnp.zeros_like(lost[:1]), running_sum(lost)[:-1]])
    paid = jnp.searchsorted(running_sum(gained), debt, side="left").astype(jnp.int32)
    turn = jnp.arange(lost.shape[0], dtype=jnp.int32)
    return turn + jax.lax.cummax(paid - turn) < count


def running_sum(x: Real[Array, " limit"]) -> Real[Array, " limit"]:
    """The sum up to and with each element. Floats are added from left to right, so that every form rounds alike."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.cumsum(x, dtype=x.dtype)
    return jax.lax.scan(lambda total, element: (total + element,) * 2, jnp.zeros_like(x[0]), x, unroll=_UNROLL)[1]
