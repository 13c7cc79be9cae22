"""The key matrix with every column sorted: what A3 prepares before the first query (HPCA 2020, section IV-C)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Real


class SortedKeys(NamedTuple):
    """Every column of a key matrix `[n, d]` in ascending order, stored by column so that a prefix is contiguous.

    The following hold:
      * `values[j]` is column j, ascending; `values[j, p] == key[rows[j, p], j]`.
      * `rows[j]` is a permutation of the rows; equal values stand in ascending order of their rows.

    Figure 8 of the paper: the column (-.6, .1, .8, .5) becomes values (-.6, .1, .5, .8) and rows (0, 1, 3, 2).
    """

    values: Real[Array, "d n"]
    rows: Int32[Array, "d n"]


def sort_keys(key: Real[Array, "n d"]) -> SortedKeys:
    """Sorts every column of a key matrix.

    Args:
      key: floats, or integers of a fixed-point format; finite. A row is one key.

    Time O(n d log n), once for all queries on these keys. Memory: a second copy of the keys and four bytes an entry.
    """
    columns = jax.lax.stop_gradient(key).T
    rows = jax.lax.broadcasted_iota(jnp.int32, columns.shape, 1)
    values, rows = jax.lax.sort((columns, rows), dimension=1, is_stable=True, num_keys=1)
    return SortedKeys(values, rows)
