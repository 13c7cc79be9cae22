"""What a search can promise: no row that it has not met scores more than the next products of all columns, the frontier, add up to.

The entries of a sorted column fall, so a row that none of the max pops met has in every column a product no larger than the next one there.
The sum of these is the bound of Fagin's threshold algorithm (Fagin, Lotem and Naor, JCSS 2003). A3 does not use it. With it the best of
the rows that were met are known to be the best of all, and the softmax weight of the others is bounded.

Bounds on floats hold for dot products added up in float32, in any order: what rounding can do is added. They do not hold for the shortened
products (TF32) that a GPU may use.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Real

from a3_jax.attention.exact import score_rows
from a3_jax.candidates.columns import Columns, columns_of, entries, lowest, met_from_top, multiply, signed_query
from a3_jax.candidates.iterations import resolve_iterations
from a3_jax.sorted_keys import SortedKeys

PopOrder: TypeAlias = Literal["depth", "largest"]


class Certificate(NamedTuple):
    """What is known after some max pops.

    Attributes:
      seen: rows with a product among the pops.
      bound: no other row that takes part scores more; the lowest number of the type where all were seen.
    """

    seen: Bool[Array, " n"]
    bound: Real[Array, ""]


class TopRows(NamedTuple):
    """The k rows with the largest scores, and what it took.

    Attributes:
      rows: in descending order of scores, of equal ones the lower row first.
      scores: the lowest number of the type where fewer than k rows take part; the row beside it means nothing.
      pops: entries of sorted keys that were read.
      num_seen: rows that were met, whose dot products are needed.
      bound: see `Certificate`; less than the last score, unless all rows were seen.
    """

    rows: Int32[Array, " k"]
    scores: Real[Array, " k"]
    pops: Int32[Array, ""]
    num_seen: Int32[Array, ""]
    bound: Real[Array, ""]


def count_max_pops(
    query: Real[Array, " d"],
    sorted_keys: SortedKeys,
    *,
    num_iterations: int | float,
    mask: Bool[Array, " n"] | None = None,
) -> Int32[Array, " d"]:
    """How many entries of each column the max pops of A3's search take: those of the M largest products.

    Arguments are those of `greedy_scores`. O(n d log(n d)).
    """
    num_columns, num_rows = sorted_keys.rows.shape
    num_valid = None if mask is None else jnp.sum(mask, dtype=jnp.int32)
    iterations = resolve_iterations(
        num_iterations, max_iterations=None, num_rows=num_rows, num_columns=num_columns, num_valid=num_valid
    )
    signed = signed_query(query, sorted_keys.values)[0][:, None]
    products = multiply(sorted_keys.values, jnp.broadcast_to(signed, sorted_keys.values.shape))
    if mask is not None:
        products = jnp.where(mask[sorted_keys.rows], products, lowest(products.dtype))
    products = jnp.where(met_from_top(query)[0][:, None], products[:, ::-1], products)
    _, places = jax.lax.top_k(products.ravel(), iterations.limit)
    counted = jnp.arange(iterations.limit, dtype=jnp.int32) < iterations.count
    return jnp.zeros(num_columns, jnp.int32).at[places // num_rows].add(counted.astype(jnp.int32))


def certify(
    query: Real[Array, " d"],
    sorted_keys: SortedKeys,
    num_pops: Int32[Array, " d"],
    *,
    mask: Bool[Array, " n"] | None = None,
) -> Certificate:
    """The rows that were met when `num_pops[j]` entries of column j were read from its large end, and a bound on the others' scores.

    Args:
      num_pops: of `count_max_pops`, or any others.
      mask: rows that take part; the others' entries are passed over, and not read.

    O(d) for the bound, O(n d) for the rows.
    """
    columns = columns_of(query, sorted_keys, mask)
    num_columns, num_rows = sorted_keys.rows.shape
    place = jax.lax.broadcasted_iota(jnp.int32, (num_columns, num_rows), 1)
    column = jax.lax.broadcasted_iota(jnp.int32, (num_columns, num_rows), 0)
    met = place < jnp.minimum(num_pops, columns.num_valid)[:, None]
    _, rows = entries(columns, jnp.zeros_like(column), column, place)
    seen = jnp.zeros(num_rows, bool).at[jnp.where(met, rows, num_rows)].set(True, mode="drop")
    return Certificate(seen, _bound(columns, num_pops))


def certified_rows(scores: Real[Array, " n"], certificate: Certificate) -> Bool[Array, " n"]:
    """The rows that score more than any row that was not seen: with k of them, exactly the top k. O(n)."""
    return certificate.seen & (scores > certificate.bound)


def unseen_weight(
    scores: Float[Array, " n"], certificate: Certificate, *, mask: Bool[Array, " n"] | None = None
) -> Float[Array, ""]:
    """A bound on the softmax weight of all rows that were not seen; 1 minus it bounds `softmax_mass` of the seen ones from below.

    Looks at the scores of seen rows only. The output over seen rows is off by at most twice this times the largest norm of a value. It may
    say no more than 1. O(n).
    """
    valid = jnp.ones_like(certificate.seen) if mask is None else mask
    seen = certificate.seen & valid
    num_unseen = jnp.sum(valid & ~seen)
    largest = jnp.maximum(jnp.max(scores, where=seen, initial=-jnp.inf), certificate.bound)
    shift = jnp.where(largest > -jnp.inf, largest, 0)
    known = jnp.sum(jnp.where(seen, jnp.exp(jnp.where(seen, scores - shift, 0)), 0))
    unknown = num_unseen * jnp.exp(certificate.bound - shift)
    return jnp.where(num_unseen > 0, unknown / jnp.maximum(known + unknown, jnp.finfo(scores.dtype).tiny), 0)


def search_top_k(
    query: Real[Array, " d"],
    key: Real[Array, "n d"],
    sorted_keys: SortedKeys,
    *,
    k: int,
    order: PopOrder = "depth",
    pops_per_step: int | None = None,
    mask: Bool[Array, " n"] | None = None,
) -> TopRows:
    """The k rows with the largest dot products, found by reading sorted keys until nothing unseen can be among them.

    The result is that of looking at every row, ties included: it stops when the k-th score is above the bound, or all rows were seen.

    Args:
      query, key: floats, or integers that neither overflow nor round in int32.
      order: which entries are read: "depth" the next of every column, the threshold algorithm; "largest" the largest product
        that is left, as A3 does.
      pops_per_step: entries read between two looks at the bound; None for d with "largest", and always d with "depth".
      mask: rows that take part.

    Raises:
      ValueError: if k is not in 1 to n, the order is unknown, or steps of another size than d are asked for with "depth".

    Every step takes O(d) time for the bound and O(n) for the best so far, "largest" O(d) more for each pop; the dot products of all rows
    are computed beforehand, those of unseen rows not looked at. What a machine that computed only those would read is `pops` and
    `num_seen`. Under `jax.vmap` all queries take as many steps as the slowest.
    """
    num_columns, num_rows = sorted_keys.rows.shape
    _check_search(k, num_rows, order, pops_per_step, num_columns)
    columns = columns_of(query, sorted_keys, mask)
    dot_products = _dot_products(query, key)
    least = lowest(dot_products.dtype)
    advance = _advance_depth if order == "depth" else _advance_largest(pops_per_step or num_columns)

    def best(state: "_Search") -> tuple[Array, Array]:
        scores, rows = jax.lax.top_k(jnp.where(state.seen, dot_products, least), k)
        return scores, rows

    def unfinished(state: "_Search") -> Bool[Array, ""]:
        all_read = jnp.any(state.positions >= columns.num_valid)
        return ~all_read & ~(best(state)[0][-1] > _bound(columns, state.positions))

    start = _Search(jnp.zeros(num_columns, jnp.int32), jnp.zeros(num_rows, bool))
    final = jax.lax.while_loop(unfinished, lambda state: advance(columns, state), start)
    scores, rows = best(final)
    pops = jnp.sum(jnp.minimum(final.positions, columns.num_valid), dtype=jnp.int32)
    num_seen = jnp.sum(final.seen, dtype=jnp.int32)
    return TopRows(rows, scores, pops, num_seen, _bound(columns, final.positions))


class _Search(NamedTuple):
    positions: Int32[Array, " d"]
    seen: Bool[Array, " n"]


def _advance_depth(columns: Columns, state: _Search) -> _Search:
    """One entry more of every column."""
    column = jnp.arange(state.positions.shape[0], dtype=jnp.int32)
    _, rows = entries(columns, jnp.zeros_like(column), column, state.positions)
    return _Search(state.positions + 1, state.seen.at[rows].set(True))


def _advance_largest(num_pops: int) -> Callable[[Columns, _Search], _Search]:
    """So many of the largest products that are left, of equal ones the lowest column's; none more once a column is read."""

    def pop(columns: Columns, state: _Search) -> _Search:
        column = jnp.arange(state.positions.shape[0], dtype=jnp.int32)
        products, rows = entries(columns, jnp.zeros_like(column), column, state.positions)
        first = jnp.argmax(products)
        there = ~jnp.any(state.positions >= columns.num_valid)
        target = jnp.where(there, rows[first], state.seen.shape[0])
        return _Search(
            state.positions.at[first].add(there.astype(jnp.int32)), state.seen.at[target].set(True, mode="drop")
        )

    def advance(columns: Columns, state: _Search) -> _Search:
        return jax.lax.fori_loop(0, num_pops, lambda _, state: pop(columns, state), state)

    return advance


def _bound(columns: Columns, num_pops: Int32[Array, " d"]) -> Real[Array, ""]:
    """The sum of the next products of all columns, rounding allowed for; the lowest number once a column, and so every row, was read."""
    column = jnp.arange(num_pops.shape[0], dtype=jnp.int32)
    side = jnp.zeros_like(column)
    frontier, _ = entries(columns, side, column, num_pops)
    all_read = jnp.any(num_pops >= columns.num_valid)
    bound = jnp.sum(jnp.where(all_read, 0, frontier), dtype=frontier.dtype)
    if jnp.issubdtype(frontier.dtype, jnp.floating):
        bound = bound + _rounding(columns)
    return jnp.where(all_read, lowest(frontier.dtype), bound)


def _rounding(columns: Columns) -> Float[Array, ""]:
    """How much a rounded dot product and a rounded bound can be off together.

    A sum of d rounded products is off by at most `d u / (1 - d u)` times the sum of their magnitudes, u half of the last bit of 1. (Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.1.) Magnitudes are largest at the ends of columns. One d is added for this
    sum's own rounding.
    """
    num_columns = columns.rows.shape[0]
    column = jnp.arange(num_columns, dtype=jnp.int32)
    side = jnp.zeros_like(column)
    first, _ = entries(columns, side, column, jnp.zeros_like(column))
    last, _ = entries(columns, side, column, jnp.broadcast_to(columns.num_valid - 1, column.shape))
    magnitude = jnp.sum(jnp.where(columns.num_valid > 0, jnp.maximum(jnp.abs(first), jnp.abs(last)), 0))
    unit = float(jnp.finfo(magnitude.dtype).eps) / 2
    return 3 * num_columns * unit / (1 - 3 * num_columns * unit) * magnitude


def _dot_products(query: Real[Array, " d"], key: Real[Array, "n d"]) -> Real[Array, " n"]:
    if jnp.issubdtype(jnp.result_type(query, key), jnp.floating):
        return score_rows(query, key)
    return jnp.matmul(key, query, preferred_element_type=jnp.int32)


def check_order(name: str) -> None:
    if name not in get_args(PopOrder):
        raise ValueError(f"order: wanted one of {', '.join(get_args(PopOrder))}, got {name!r}")


def _check_search(k: int, num_rows: int, order: str, pops_per_step: int | None, num_columns: int) -> None:
    if not 1 <= k <= num_rows:
        raise ValueError(f"k: wanted 1 to the number of rows, {num_rows}, got {k}")
    check_order(order)
    if pops_per_step is not None and (pops_per_step < 1 or (order == "depth" and pops_per_step != num_columns)):
        raise ValueError(
            f'pops_per_step: wanted at least 1 with order="largest", and None with "depth", got {pops_per_step}'
        )
