"""Only the ends of the sorted columns: M pops cannot take more than M entries from one of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.candidates.accumulation import Pops, accumulate
from a3_jax.candidates.columns import from_top, lowest, multiply, product_type, valid_order
from a3_jax.candidates.iterations import Iterations
from a3_jax.sorted_keys import SortedKeys


def sorted_scores(
    query: Real[Array, " d"],
    keys: SortedKeys,
    mask: Bool[Array, " n"] | None,
    *,
    iterations: Iterations,
    skip_heuristic: bool,
) -> tuple[Real[Array, " n"], Int32[Array, ""]]:
    """Greedy scores, and the row of the largest product.

    With m = min(M, n): O(d m log(d m)) time, and nothing but the scores is larger than 2 d m elements. A mask is looked up at every entry,
    one column after the other, because the first m valid entries may lie anywhere: O(n d) time more, and n elements more.
    """
    query = query.astype(product_type(query, keys.values))
    length = min(iterations.limit, keys.rows.shape[1])
    ends, num_valid = _ends(keys, mask, length)
    largest, smallest = (_pops(query, keys, ends, num_valid, iterations.limit, largest) for largest in (True, False))
    scores = accumulate(
        largest, smallest, iterations=iterations, num_rows=keys.rows.shape[1], skip_heuristic=skip_heuristic
    )
    return scores, largest.rows[0]


def _ends(
    keys: SortedKeys, mask: Bool[Array, " n"] | None, length: int
) -> tuple[tuple[SortedKeys, SortedKeys], Int32[Array, ""] | None]:
    """The last entries of every column from the top, the first from the bottom; and the number of valid rows, if masked."""
    values, rows = keys
    if mask is None:
        first = rows.shape[1] - length
        return (
            SortedKeys(values[:, first:][:, ::-1], rows[:, first:][:, ::-1]),
            SortedKeys(values[:, :length], rows[:, :length]),
        ), None
    num_valid, position = jnp.sum(mask, dtype=jnp.int32), jnp.arange(length, dtype=jnp.int32)

    def ends_of(column: SortedKeys) -> tuple[SortedKeys, SortedKeys]:
        order = valid_order(column.rows, mask)
        top, bottom = order[jnp.maximum(num_valid - 1 - position, 0)], order[:length]
        return SortedKeys(*(array[top] for array in column)), SortedKeys(*(array[bottom] for array in column))

    return jax.lax.map(ends_of, keys), num_valid


def _pops(
    query: Real[Array, " d"],
    keys: SortedKeys,
    ends: tuple[SortedKeys, SortedKeys],
    num_valid: Int32[Array, ""] | None,
    limit: int,
    largest: bool,
) -> Pops:
    top, bottom = ends
    met_from_top = from_top(query, largest=largest)[:, None]
    values = jnp.where(met_from_top, top.values, bottom.values)
    products = multiply(values, jnp.broadcast_to(query[:, None], values.shape))
    signed = products if largest else -products
    if num_valid is not None:
        position = jax.lax.broadcasted_iota(jnp.int32, products.shape, 1)
        signed = jnp.where(position < num_valid, signed, lowest(signed.dtype))
    found, places = jax.lax.top_k(signed.ravel(), limit)
    column, position = places // products.shape[1], places % products.shape[1]
    rows = jnp.where(
        met_from_top[column, 0],
        top.rows[column, position],
        bottom.rows[column, position],
    )
    return Pops(found if largest else -found, rows)
