"""The entries of sorted columns as a search meets them: from the top or from the bottom, masked rows left out.

The largest product of a column with a positive query component is at its top, otherwise at its bottom; the smallest at the other end. An
entry is named by its column and its traversal position: how many valid entries of the column are met before it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.sorted_keys import SortedKeys


class Columns(NamedTuple):
    """Sorted keys and the query that they are multiplied by.

    Attributes:
      query: in the products' type.
      values, rows: see `SortedKeys`.
      order: the places of each column's valid entries, ascending, those past `num_valid` meaningless. None without a mask.
      num_valid: valid rows, which is valid entries of every column.
    """

    query: Real[Array, " d"]
    values: Real[Array, "d n"]
    rows: Int32[Array, "d n"]
    order: Int32[Array, "d n"] | None
    num_valid: Int32[Array, ""]


def product_type(query: Real[Array, " d"], values: Real[Array, "d n"]) -> jnp.dtype:
    """Products of narrow floats are float32, where those of bfloat16 are exact; integers stay int32."""
    joint = jnp.result_type(query, values)
    return jnp.promote_types(joint, jnp.float32 if jnp.issubdtype(joint, jnp.floating) else jnp.int32)


def from_top(query: Real[Array, " d"], *, largest: bool) -> Bool[Array, " d"]:
    """Whether a column's largest (smallest) products are met from its top. 0 counts as not positive."""
    return (query > 0) == largest


def valid_order(rows: Int32[Array, " n"], mask: Bool[Array, " n"]) -> Int32[Array, " n"]:
    """The places of one column's valid entries, ascending; meaningless past their number. O(n)."""
    valid = mask[rows]
    places = jnp.arange(rows.shape[0], dtype=jnp.int32)
    # Those of masked rows are sent out of range, where scatter drops them.
    target = jnp.where(valid, jnp.cumsum(valid, dtype=jnp.int32) - 1, rows.shape[0])
    return jnp.zeros_like(rows).at[target].set(places, mode="drop", unique_indices=False)


def entries(
    columns: Columns, top: Bool[Array, " d"], column: Int32[Array, "*shape"], position: Int32[Array, "*shape"]
) -> tuple[Real[Array, "*shape"], Int32[Array, "*shape"]]:
    """Products and rows of entries; anything of the column where the position is past its valid entries."""
    last = columns.num_valid - 1
    place = jnp.clip(jnp.where(top[column], last - position, position), 0, jnp.maximum(last, 0))
    if columns.order is not None:
        place = columns.order[column, place]
    return columns.values[column, place].astype(columns.query.dtype) * columns.query[column], columns.rows[
        column, place
    ]


def multiply(values: Real[Array, "*shape"], query: Real[Array, "*shape"]) -> Real[Array, "*shape"]:
    """Products in the query's type; -0.0 is made 0.0, which `top_k` would put before it."""
    products = values.astype(query.dtype) * query
    return jnp.where(products == 0, jnp.zeros_like(products), products)


def lowest(dtype: jnp.dtype) -> Array:
    """Stands where there is no entry: below every product."""
    return jnp.array(-jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def masked_columns(query: Real[Array, " d"], keys: SortedKeys, mask: Bool[Array, " n"] | None) -> Columns:
    """The columns with the order of their valid entries, found one column after the other."""
    query = query.astype(product_type(query, keys.values))
    if mask is None:
        return Columns(query, *keys, None, jnp.int32(keys.rows.shape[1]))
    order = jax.lax.map(lambda rows: valid_order(rows, mask), keys.rows)
    return Columns(query, *keys, order, jnp.sum(mask, dtype=jnp.int32))
