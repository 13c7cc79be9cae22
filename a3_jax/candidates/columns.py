"""The entries of sorted columns as a search meets them: from the top or from the bottom, masked rows left out.

The largest product of a column with a positive query component is at its top, otherwise at its bottom; the smallest at the other end. An
entry is named by its column and its traversal position: how many valid entries of the column are met before it.

Searches have two sides, the largest and the smallest products, in this order wherever an axis has two elements. The products of the
second are negated, so that the largest leads on either side.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.sorted_keys import SortedKeys


class Columns(NamedTuple):
    """Sorted keys and the query that they are multiplied by.

    Attributes:
      query: by side, in the products' type.
      from_top: by side, whether a column is met from its top.
      values, rows: see `SortedKeys`.
      order: the places of each column's valid entries, ascending; meaningless past `num_valid`. None without a mask.
      num_valid: valid rows, which is valid entries of every column.
    """

    query: Real[Array, "2 d"]
    from_top: Bool[Array, "2 d"]
    values: Real[Array, "d n"]
    rows: Int32[Array, "d n"]
    order: Int32[Array, "d n"] | None
    num_valid: Int32[Array, ""]


def signed_query(query: Real[Array, " d"], values: Real[Array, "d n"]) -> Real[Array, "2 d"]:
    """The query of both sides. Products of narrow floats are float32, where those of bfloat16 are exact; integers stay int32."""
    joint = jnp.result_type(query, values)
    query = query.astype(jnp.promote_types(joint, jnp.float32 if jnp.issubdtype(joint, jnp.floating) else jnp.int32))
    return jnp.stack([query, -query])


def met_from_top(query: Real[Array, " d"]) -> Bool[Array, "2 d"]:
    """Whether a side meets a column from its top. A component of 0 counts as not positive."""
    return jnp.stack([query > 0, query <= 0])


def multiply(values: Real[Array, "*shape"], query: Real[Array, "*shape"]) -> Real[Array, "*shape"]:
    """Products in the query's type; -0.0 is made 0.0, which `top_k` would put before it."""
    products = values.astype(query.dtype) * query
    return jnp.where(products == 0, jnp.zeros_like(products), products)


def lowest(dtype: jnp.dtype) -> Array:
    """Stands where there is no entry: below every product."""
    return jnp.array(-jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def valid_order(rows: Int32[Array, " n"], mask: Bool[Array, " n"]) -> Int32[Array, " n"]:
    """The places of one column's valid entries, ascending; meaningless past their number. O(n)."""
    valid = mask[rows]
    places = jnp.arange(rows.shape[0], dtype=jnp.int32)
    # Those of masked rows are sent out of range, where scatter drops them.
    target = jnp.where(valid, jnp.cumsum(valid, dtype=jnp.int32) - 1, rows.shape[0])
    return jnp.zeros_like(rows).at[target].set(places, mode="drop")


def columns_of(query: Real[Array, " d"], keys: SortedKeys, mask: Bool[Array, " n"] | None) -> Columns:
    """The columns, with a mask the order of their valid entries, found one column after the other in O(n d)."""
    order = None if mask is None else jax.lax.map(lambda rows: valid_order(rows, mask), keys.rows)
    num_valid = jnp.int32(keys.rows.shape[1]) if mask is None else jnp.sum(mask, dtype=jnp.int32)
    return Columns(signed_query(query, keys.values), met_from_top(query), *keys, order, num_valid)


def entries(
    columns: Columns,
    side: Int32[Array, "*shape"],
    column: Int32[Array, "*shape"],
    position: Int32[Array, "*shape"],
) -> tuple[Real[Array, "*shape"], Int32[Array, "*shape"]]:
    """Products and rows; below every product where a column has no such entry."""
    last = columns.num_valid - 1
    place = jnp.where(columns.from_top[side, column], last - position, position)
    place = jnp.clip(place, 0, columns.rows.shape[1] - 1)
    if columns.order is not None:
        place = columns.order[column, place]
    products = multiply(columns.values[column, place], columns.query[side, column])
    return jnp.where(position <= last, products, lowest(products.dtype)), columns.rows[column, place]
