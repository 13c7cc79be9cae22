"""One iteration after the other, in the hardware's order."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.candidates.columns import columns_of, entries
from a3_jax.candidates.iterations import Iterations
from a3_jax.sorted_keys import SortedKeys


class _State(NamedTuple):
    """By side: the next entry of every column with its position, and what was popped so far."""

    products: Real[Array, "2 d"]
    rows: Int32[Array, "2 d"]
    positions: Int32[Array, "2 d"]
    totals: Real[Array, " 2"]
    scores: Real[Array, "2 n"]


def sequential_scores(
    query: Real[Array, " d"],
    keys: SortedKeys,
    mask: Bool[Array, " n"] | None,
    *,
    iterations: Iterations,
    skip_heuristic: bool,
) -> tuple[Real[Array, " n"], Int32[Array, ""]]:
    """Greedy scores, and the row of the largest product.

    O(M d) time in a loop of M steps, O(n + d) memory. With a mask the valid entries of every column are found first: O(n d) time and
    memory more.
    """
    num_columns, num_rows = keys.rows.shape
    columns = columns_of(query, keys, mask)
    sides = jnp.arange(2, dtype=jnp.int32)
    positions = jnp.zeros((2, num_columns), jnp.int32)
    every_column = jnp.broadcast_to(jnp.arange(num_columns, dtype=jnp.int32), positions.shape)
    products, rows = entries(columns, jnp.broadcast_to(sides[:, None], positions.shape), every_column, positions)
    zeros = jnp.zeros((2, num_rows), products.dtype)

    def iterate(_: Int32[Array, ""], state: _State) -> _State:
        # Of equal products `argmax` takes that of the lowest column.
        leading = jnp.argmax(state.products, axis=1).astype(jnp.int32)
        amounts = jnp.maximum(state.products[sides, leading], 0)
        popped = jnp.ones(2, bool)
        if skip_heuristic:
            popped = popped.at[1].set(state.totals[0] + amounts[0] >= state.totals[1])
        amounts = jnp.where(popped, amounts, 0)
        moved = state.positions[sides, leading] + popped
        product, row = entries(columns, sides, leading, moved)
        return _State(
            products=state.products.at[sides, leading].set(product),
            rows=state.rows.at[sides, leading].set(row),
            positions=state.positions.at[sides, leading].set(moved),
            totals=state.totals + amounts,
            scores=state.scores.at[sides, state.rows[sides, leading]].add(amounts),
        )

    start = _State(products, rows, positions, jnp.zeros(2, products.dtype), zeros)
    gained, lost = jax.lax.fori_loop(0, iterations.count, iterate, start).scores
    return gained - lost, rows[0, jnp.argmax(products[0])]
