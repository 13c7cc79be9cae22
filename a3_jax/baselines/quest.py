"""Quest's selection: whole pages, by the largest score that a page's bounds allow (Tang et al., ICML 2024)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from a3_jax.baselines.budget import Budget, Selection, affordable, row_bytes, take_largest


class PageBounds(NamedTuple):
    """The smallest and the largest number of every column in every page; where no row of a page is valid, +inf and -inf."""

    smallest: Float[Array, "pages d"]
    largest: Float[Array, "pages d"]


def page_bounds(key: Float[Array, "n d"], *, page_size: int = 16, mask: Bool[Array, " n"] | None = None) -> PageBounds:
    """Bounds of every `page_size` rows, the last of which may be fewer. O(n d), once for all queries.

    Raises:
      ValueError: if the page size is not positive.
    """
    pages = _pages(jnp.ones(key.shape[0], bool) if mask is None else mask, page_size)[:, :, None]
    rows = jnp.pad(key, ((0, -key.shape[0] % page_size), (0, 0))).reshape(-1, page_size, key.shape[1])
    return PageBounds(
        jnp.min(jnp.where(pages, rows, jnp.inf), axis=1), jnp.max(jnp.where(pages, rows, -jnp.inf), axis=1)
    )


def quest(
    query: Float[Array, " d"],
    key: Float[Array, "n d"],
    bounds: PageBounds | None = None,
    *,
    budget: Budget,
    value_dim: int,
    element_bytes: int | float = 2,
    page_size: int = 16,
    mask: Bool[Array, " n"] | None = None,
) -> Selection:
    """The pages with the largest bounds on a score, `sum over j of max(q[j] smallest[j], q[j] largest[j])`; of equal ones the lower.

        bytes = 2 d element_bytes pages + page_size (d + value_dim) element_bytes (pages selected)

    where `pages` counts those with a valid row. A page that is selected is paid for and read whole; only its valid rows are selected.

    Args:
      bounds: of `page_bounds` with the same page size and mask; None to compute them here.
      page_size: rows; 16 in the paper.
      budget, value_dim, element_bytes, mask: as for `exact_top_k`.

    Raises:
      ValueError: if the page size is not positive.

    O(n / page_size (d + log n) + n), with bounds.
    """
    num_rows, dim = key.shape
    valid = jnp.ones(num_rows, bool) if mask is None else mask
    if bounds is None:
        bounds = page_bounds(key, page_size=page_size, mask=mask)
    filled = jnp.any(_pages(valid, page_size), axis=1)
    num_filled = jnp.sum(filled, dtype=jnp.int32)
    overhead = num_filled * jnp.float32(2 * dim * element_bytes)
    price = page_size * row_bytes(dim, value_dim, element_bytes)
    count = affordable(budget, overhead=overhead, price=price, limit=num_filled)
    largest_products = jnp.where(query[None] > 0, query[None] * bounds.largest, query[None] * bounds.smallest)
    # Of a component of 0 no product is NaN, and a page without valid rows takes no part.
    estimates = jnp.sum(jnp.where((query[None] != 0) & filled[:, None], largest_products, 0), axis=1)
    pages = take_largest(estimates, count, filled)
    touched = jnp.where(count > 0, overhead + count * price, 0).astype(jnp.float32)
    return Selection(jnp.repeat(pages, page_size)[:num_rows] & valid, touched)


def _pages(rows: Bool[Array, " n"], page_size: int) -> Bool[Array, "pages page_size"]:
    if page_size < 1:
        raise ValueError(f"page_size: wanted at least 1 row, got {page_size}")
    return jnp.pad(rows, (0, -rows.shape[0] % page_size)).reshape(-1, page_size)
