"""One iteration after the other, in the hardware's order."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.candidates.columns import Columns, entries, from_top, lowest, masked_columns
from a3_jax.candidates.iterations import Iterations
from a3_jax.sorted_keys import SortedKeys


class _Side(NamedTuple):
    """One of the two searches: the next entry of every column, and what was popped so far. Products of min pops are negated."""

    products: Real[Array, " d"]
    rows: Int32[Array, " d"]
    positions: Int32[Array, " d"]
    total: Real[Array, ""]
    scores: Real[Array, " n"]


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
    columns = masked_columns(query, keys, mask)
    tops = {largest: from_top(query, largest=largest) for largest in (True, False)}
    largest, smallest = (_start(columns, tops[largest], largest) for largest in (True, False))
    first_row = largest.rows[jnp.argmax(largest.products)]

    def iterate(_: Int32[Array, ""], sides: tuple[_Side, _Side]) -> tuple[_Side, _Side]:
        largest, smallest = sides
        largest = _pop(columns, tops[True], largest, True, jnp.bool_(True))
        popped = (largest.total >= smallest.total) if skip_heuristic else jnp.bool_(True)
        return largest, _pop(columns, tops[False], smallest, False, popped)

    largest, smallest = jax.lax.fori_loop(0, iterations.count, iterate, (largest, smallest))
    return largest.scores - smallest.scores, first_row


def _start(columns: Columns, top: Bool[Array, " d"], largest: bool) -> _Side:
    every = jnp.arange(columns.rows.shape[0], dtype=jnp.int32)
    products, rows = _front(columns, top, every, jnp.zeros_like(every), largest)
    scores = jnp.zeros(columns.rows.shape[1], products.dtype)
    return _Side(products, rows, jnp.zeros_like(every), jnp.zeros((), products.dtype), scores)


def _front(
    columns: Columns,
    top: Bool[Array, " d"],
    column: Int32[Array, "*shape"],
    position: Int32[Array, "*shape"],
    largest: bool,
) -> tuple[Real[Array, "*shape"], Int32[Array, "*shape"]]:
    """The next entry of columns; a column that has run out is never chosen."""
    products, rows = entries(columns, top, column, position)
    products = products if largest else -products
    return jnp.where(position < columns.num_valid, products, lowest(products.dtype)), rows


def _pop(columns: Columns, top: Bool[Array, " d"], side: _Side, largest: bool, popped: Bool[Array, ""]) -> _Side:
    """Takes the entry that leads, of equal ones that of the lowest column, and moves its pointer."""
    column = jnp.argmax(side.products).astype(jnp.int32)
    gained = jnp.where(popped, jnp.maximum(side.products[column], 0), 0)
    position = side.positions[column] + popped
    product, row = _front(columns, top, column, position, largest)
    return _Side(
        products=side.products.at[column].set(product),
        rows=side.rows.at[column].set(row),
        positions=side.positions.at[column].set(position),
        total=side.total + gained,
        scores=side.scores.at[side.rows[column]].add(gained),
    )
