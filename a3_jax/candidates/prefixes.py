"""Only the ends of the sorted columns: M pops cannot take more than M entries from one of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.candidates.accumulation import Pops, accumulate
from a3_jax.candidates.columns import lowest, met_from_top, multiply, signed_query, valid_order
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

    With m = min(M, n): O(d m log(d m)) time, and but for the scores nothing is larger than 2 d m elements. A mask is looked up at every
    entry, one column after the other, because the first m valid entries may lie anywhere: O(n d) time and n elements more.
    """
    num_rows = keys.rows.shape[1]
    length = min(iterations.limit, num_rows)
    top, bottom, num_valid = _ends(keys, mask, length)
    from_top, signed = met_from_top(query), signed_query(query, keys.values)[:, :, None]
    values = jnp.where(from_top[:, :, None], top.values, bottom.values)
    products = multiply(values, jnp.broadcast_to(signed, values.shape))
    if num_valid is not None:
        products = jnp.where(jnp.arange(length) < num_valid, products, lowest(products.dtype))
    found, places = jax.lax.top_k(products.reshape(2, -1), iterations.limit)
    column = places // length
    met = from_top[0][column] == jnp.array([[True], [False]])
    pops = Pops(found, jnp.where(met, top.rows.ravel()[places], bottom.rows.ravel()[places]))
    scores = accumulate(pops, iterations=iterations, num_rows=num_rows, skip_heuristic=skip_heuristic)
    return scores, pops.rows[0, 0]


def _ends(
    keys: SortedKeys, mask: Bool[Array, " n"] | None, length: int
) -> tuple[SortedKeys, SortedKeys, Int32[Array, ""] | None]:
    """Of every column so many valid entries from the top down and from the bottom up; and the number of valid rows, if masked."""
    if mask is None:
        first = keys.rows.shape[1] - length
        top, bottom = (
            [array[:, first:][:, ::-1] for array in keys],
            [array[:, :length] for array in keys],
        )
        return SortedKeys(*top), SortedKeys(*bottom), None
    num_valid, position = jnp.sum(mask, dtype=jnp.int32), jnp.arange(length, dtype=jnp.int32)

    def ends_of(column: SortedKeys) -> tuple[SortedKeys, SortedKeys]:
        order = valid_order(column.rows, mask)
        top, bottom = order[jnp.maximum(num_valid - 1 - position, 0)], order[:length]
        return SortedKeys(column.values[top], column.rows[top]), SortedKeys(column.values[bottom], column.rows[bottom])

    return *jax.lax.map(ends_of, keys), num_valid
