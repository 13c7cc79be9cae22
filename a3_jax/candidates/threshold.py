"""The M-th largest product first, by bisection on the sorted columns; then exactly the M entries that are not below it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Integer, Real

from a3_jax.candidates.accumulation import Pops, accumulate
from a3_jax.candidates.columns import Columns, columns_of, entries
from a3_jax.candidates.iterations import Iterations
from a3_jax.sorted_keys import SortedKeys


class _Bracket(NamedTuple):
    """Where the M-th largest product lies, by side, as an ordered integer: `low <= it < high`.

    Attributes:
      most, least: how many entries of every column reach `low` and `high`.
    """

    low: Integer[Array, " 2"]
    high: Integer[Array, " 2"]
    most: Int32[Array, "2 d"]
    least: Int32[Array, "2 d"]


def threshold_scores(
    query: Real[Array, " d"],
    keys: SortedKeys,
    mask: Bool[Array, " n"] | None,
    *,
    iterations: Iterations,
    skip_heuristic: bool,
) -> tuple[Real[Array, " n"], Int32[Array, ""]]:
    """Greedy scores, and the row of the largest product.

    O(b d log n + M log M) time for products of b bits, O(M + n + d) memory. With a mask the valid entries of every column are found
    first: O(n d) time and memory more.
    """
    columns = columns_of(query, keys, mask)
    lengths = _lengths(columns, iterations)
    pops = _gather(columns, lengths, iterations.limit)
    scores = accumulate(pops, iterations=iterations, num_rows=keys.rows.shape[1], skip_heuristic=skip_heuristic)
    return scores, pops.rows[0, 0]


def _lengths(columns: Columns, iterations: Iterations) -> Int32[Array, "2 d"]:
    """How many entries the M pops take from every column, of either side."""
    start = _outer_bracket(columns, iterations.limit)

    def open_sides(bracket: _Bracket) -> Bool[Array, " 2"]:
        return (bracket.low < bracket.high - 1) & (jnp.sum(bracket.most, axis=1) > iterations.count)

    def halve(bracket: _Bracket) -> _Bracket:
        # Rounded down, and without the overflow of a sum.
        middle = (bracket.low & bracket.high) + ((bracket.low ^ bracket.high) >> 1)
        reaching = _reaching(columns, middle, bracket)
        narrow, enough = open_sides(bracket), jnp.sum(reaching, axis=1) >= iterations.count
        up, down = narrow & enough, narrow & ~enough
        return _Bracket(
            low=jnp.where(up, middle, bracket.low),
            high=jnp.where(down, middle, bracket.high),
            most=jnp.where(up[:, None], reaching, bracket.most),
            least=jnp.where(down[:, None], reaching, bracket.least),
        )

    bracket = jax.lax.while_loop(lambda bracket: jnp.any(open_sides(bracket)), halve, start)
    # Of the products that equal the M-th largest, those of the lowest columns are popped.
    equal = bracket.most - bracket.least
    left = (iterations.count - jnp.sum(bracket.least, axis=1))[:, None]
    before = jnp.cumsum(equal, axis=1, dtype=jnp.int32) - equal
    return bracket.least + jnp.clip(left - before, 0, equal)


def _outer_bracket(columns: Columns, limit: int) -> _Bracket:
    """From the least product that a column's first entries can hold to one more than the largest."""
    shape = columns.query.shape
    side, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    length = jnp.broadcast_to(jnp.minimum(columns.num_valid, limit), shape)
    largest, smallest = (
        _ordered(entries(columns, side, column, position)[0]) for position in (jnp.zeros_like(side), length - 1)
    )
    return _Bracket(jnp.min(smallest, axis=1), jnp.max(largest, axis=1) + 1, length, jnp.zeros_like(length))


def _reaching(columns: Columns, threshold: Integer[Array, " 2"], bracket: _Bracket) -> Int32[Array, "2 d"]:
    """How many of a column's first entries are at least the threshold: products fall with their position."""
    side, column = (jax.lax.broadcasted_iota(jnp.int32, bracket.most.shape, axis) for axis in (0, 1))

    def step(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        least, most = bounds
        middle = (least + most) // 2
        reaches = _ordered(entries(columns, side, column, middle)[0]) >= threshold[:, None]
        return jnp.where((least < most) & reaches, middle + 1, least), jnp.where(reaches, most, middle)

    bounds = bracket.least, bracket.most
    return jax.lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), step, bounds)[0]


def _ordered(products: Real[Array, "*shape"]) -> Integer[Array, "*shape"]:
    """Integers in the order of the products: of negative floats all bits but the sign are turned over."""
    if jnp.issubdtype(products.dtype, jnp.integer):
        return products
    bits = jax.lax.bitcast_convert_type(products, f"int{products.dtype.itemsize * 8}")
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _gather(columns: Columns, lengths: Int32[Array, "2 d"], limit: int) -> Pops:
    """The first entries of every column, in the order of the pops."""
    ends = jnp.cumsum(lengths, axis=1, dtype=jnp.int32)
    slot = jnp.arange(limit, dtype=jnp.int32)
    # A column starts in the slot behind the end of the one before it; columns that give nothing start in the same one.
    starts = jnp.zeros((2, limit + 1), jnp.int32).at[jnp.arange(2)[:, None], ends].add(1, mode="drop")
    column = jnp.minimum(jnp.cumsum(starts[:, :limit], axis=1, dtype=jnp.int32), lengths.shape[1] - 1)
    side = jax.lax.broadcasted_iota(jnp.int32, column.shape, 0)
    position = slot[None] - jnp.take_along_axis(ends - lengths, column, axis=1)
    used = slot[None] < ends[:, -1:]
    products, rows = entries(columns, side, column, jnp.where(used, position, columns.num_valid))
    # Slots are in the order of columns and positions, and `top_k` is stable.
    products, order = jax.lax.top_k(products, limit)
    return Pops(products, jnp.take_along_axis(rows, order, axis=1))
