"""All products at once: the plain form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.candidates.accumulation import Pops, accumulate
from a3_jax.candidates.columns import from_top, lowest, multiply, product_type
from a3_jax.candidates.iterations import Iterations
from a3_jax.sorted_keys import SortedKeys


def dense_scores(
    query: Real[Array, " d"],
    keys: SortedKeys,
    mask: Bool[Array, " n"] | None,
    *,
    iterations: Iterations,
    skip_heuristic: bool,
) -> tuple[Real[Array, " n"], Int32[Array, ""]]:
    """Greedy scores, and the row of the largest product. O(n d log(n d)) time, O(n d) memory."""
    query = query.astype(product_type(query, keys.values))
    products = multiply(keys.values, jnp.broadcast_to(query[:, None], keys.values.shape))
    valid = None if mask is None else mask[keys.rows]
    largest, smallest = (
        _pops(products if largest else -products, keys.rows, valid, from_top(query, largest=largest), iterations.limit)
        for largest in (True, False)
    )
    smallest = Pops(-smallest.products, smallest.rows)
    scores = accumulate(
        largest, smallest, iterations=iterations, num_rows=keys.rows.shape[1], skip_heuristic=skip_heuristic
    )
    return scores, largest.rows[0]


def _pops(
    products: Real[Array, "d n"],
    rows: Int32[Array, "d n"],
    valid: Bool[Array, "d n"] | None,
    top: Bool[Array, " d"],
    limit: int,
) -> Pops:
    """The largest products in the order of the pops. Of equal ones `top_k` takes the one that stands first: [column, position]."""
    if valid is not None:
        products = jnp.where(valid, products, lowest(products.dtype))
    products = jnp.where(top[:, None], products[:, ::-1], products)
    rows = jnp.where(top[:, None], rows[:, ::-1], rows)
    found, places = jax.lax.top_k(products.ravel(), limit)
    return Pops(found, rows.ravel()[places])
