"""All products at once: the plain form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.candidates.accumulation import Pops, accumulate
from a3_jax.candidates.columns import lowest, met_from_top, multiply, signed_query
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
    shape = (2, *keys.values.shape)
    signed = signed_query(query, keys.values)[:, :, None]
    products = multiply(jnp.broadcast_to(keys.values, shape), jnp.broadcast_to(signed, shape))
    if mask is not None:
        products = jnp.where(mask[keys.rows], products, lowest(products.dtype))
    top = met_from_top(query)[:, :, None]
    products = jnp.where(top, products[..., ::-1], products).reshape(2, -1)
    rows = jnp.where(top, keys.rows[:, ::-1], keys.rows).reshape(2, -1)
    # Of equal products `top_k` takes the one that stands first: lowest column, then lowest traversal position.
    found, places = jax.lax.top_k(products, iterations.limit)
    pops = Pops(found, jnp.take_along_axis(rows, places, axis=1))
    scores = accumulate(pops, iterations=iterations, num_rows=keys.rows.shape[1], skip_heuristic=skip_heuristic)
    return scores, pops.rows[0, 0]
