"""Sums, means and maxima over the neighbours of a block, as gathers and dense reductions: no scatter forwards.

Where a mask is False, what is read there may be anything finite: neither results nor gradients depend on it. Importing this module
imports jax.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from ginex_jax.batch import Block, DegreeBlock, DegreeTable


def aggregate_sum(
    block: Block | DegreeBlock, x: Float[Array | np.ndarray, "sources features"], *, weighted: bool = False
) -> Float[Array, "destinations features"]:
    """The sum of `x` over the neighbours of every destination, 0 where it has none; every edge times its weight if `weighted`.

    Traceable; the block's arrays may be tracers. O(places of the block * features), at most four times the edges of a `DegreeBlock`.
    """
    x = jnp.asarray(x)
    sums = [_row_sums(x, table.entries, table.mask, _weights(table.weights, weighted)) for table in tables_of(block)]
    return combined(block, sums, jnp.sum, 0.0)


def aggregate_mean(
    block: Block | DegreeBlock, x: Float[Array | np.ndarray, "sources features"]
) -> Float[Array, "destinations features"]:
    """The mean of `x` over the neighbours of every destination, 0 where it has none."""
    total = aggregate_sum(block, x)
    return total / jnp.maximum(num_neighbors(block), 1)[:, None].astype(total.dtype)


def aggregate_max(
    block: Block | DegreeBlock, x: Float[Array | np.ndarray, "sources features"]
) -> Float[Array, "destinations features"]:
    """The maximum of `x`, feature by feature, over the neighbours of every destination, 0 where it has none.

    The gradient goes to the neighbours that attain it in shares that sum to one: in equal shares where the list lies in one row.
    """
    x = jnp.asarray(x)
    result = combined(
        block, [_row_maxima(x, table.entries, table.mask) for table in tables_of(block)], jnp.max, -jnp.inf
    )
    return jnp.where(jnp.isneginf(result), 0, result)


def num_neighbors(block: Block | DegreeBlock) -> Int32[Array, " destinations"]:
    """Neighbours of every destination in the block."""
    if isinstance(block, DegreeBlock):
        return jnp.asarray(block.degrees)
    return jnp.sum(jnp.asarray(block.mask), axis=1, dtype=jnp.int32)


def tables_of(block: Block | DegreeBlock) -> tuple[DegreeTable, ...]:
    """The tables that entries lie in; a `Block` is one whose rows are the destinations."""
    return block.tables if isinstance(block, DegreeBlock) else (DegreeTable(*block),)


def combined(
    block: Block | DegreeBlock,
    row_results: Sequence[Float[Array, "_ ..."]],
    reduce: Callable[..., Array],
    identity: float,
) -> Float[Array, "destinations ..."]:
    """What every destination gets of the rows of `tables_of(block)`, once these are reduced: pieces of a long list together.

    Args:
      row_results: one array for each table, one result a row.
      reduce: `jnp.sum` or the like, with `axis`.
      identity: what it gives for nothing.
    """
    if isinstance(block, Block):
        return row_results[0]
    nothing = jnp.full((1, *row_results[0].shape[1:]), identity, row_results[0].dtype)
    pieces = jnp.concatenate([nothing, *row_results])
    parts = [pieces]
    for table in block.combines:
        if table.entries.shape[0]:
            mask = jnp.asarray(table.mask).reshape(*table.mask.shape, *[1] * (pieces.ndim - 1))
            parts.append(reduce(jnp.where(mask, pieces[jnp.asarray(table.entries)], identity), axis=1))
    return jnp.concatenate(parts)[jnp.asarray(block.rows)]


def _weights(
    weights: Float32[Array | np.ndarray, "rows width"] | None, weighted: bool
) -> Float32[Array | np.ndarray, "rows width"] | None:
    if weighted and weights is None:
        raise ValueError("a weighted sum needs a block with weights: sample a graph that has them")
    return weights if weighted else None


def _row_sums(
    x: Float[Array, "sources features"],
    entries: Int32[Array | np.ndarray, "rows width"],
    mask: Bool[Array | np.ndarray, "rows width"],
    weights: Float32[Array | np.ndarray, "rows width"] | None,
) -> Float[Array, "rows features"]:
    if entries.shape[0] == 0 or x.shape[0] == 0:
        return jnp.zeros((entries.shape[0], x.shape[1]), x.dtype)
    terms = jnp.where(jnp.asarray(mask)[:, :, None], x[jnp.asarray(entries)], 0)
    if weights is not None:
        terms = terms * jnp.asarray(weights)[:, :, None].astype(x.dtype)
    return jnp.sum(terms, axis=1)


def _row_maxima(
    x: Float[Array, "sources features"],
    entries: Int32[Array | np.ndarray, "rows width"],
    mask: Bool[Array | np.ndarray, "rows width"],
) -> Float[Array, "rows features"]:
    if entries.shape[0] == 0 or x.shape[0] == 0:
        return jnp.full((entries.shape[0], x.shape[1]), -jnp.inf, x.dtype)
    return jnp.max(jnp.where(jnp.asarray(mask)[:, :, None], x[jnp.asarray(entries)], -jnp.inf), axis=1)
