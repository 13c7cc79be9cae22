"""Sums over the neighbours of a block, as gathers and dense sums: no scatter forwards. Importing this module imports jax."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from ginex_jax.batch import Block, DegreeBlock


def aggregate_sum(
    block: Block | DegreeBlock, x: Float[Array | np.ndarray, "sources features"], *, weighted: bool = False
) -> Float[Array, "destinations features"]:
    """The sum of `x` over the neighbours of every destination, 0 where it has none; every edge times its weight if `weighted`.

    Traceable; the block's arrays may be tracers. O(places of the block * features), at most four times the edges of a `DegreeBlock`.
    """
    x = jnp.asarray(x)
    if isinstance(block, Block):
        return _row_sums(x, block.neighbors, block.mask, _weights(block.weights, weighted))
    sums = [jnp.zeros((1, x.shape[1]), x.dtype)]
    sums += [_row_sums(x, table.entries, table.mask, _weights(table.weights, weighted)) for table in block.tables]
    pieces = jnp.concatenate(sums)
    sums = [pieces] + [_row_sums(pieces, table.entries, table.mask, None) for table in block.combines]
    return jnp.concatenate(sums)[jnp.asarray(block.rows)]


def aggregate_mean(
    block: Block | DegreeBlock, x: Float[Array | np.ndarray, "sources features"]
) -> Float[Array, "destinations features"]:
    """The mean of `x` over the neighbours of every destination, 0 where it has none."""
    counts = jnp.asarray(block.degrees) if isinstance(block, DegreeBlock) else jnp.sum(block.mask, axis=1)
    total = aggregate_sum(block, x)
    return total / jnp.maximum(counts, 1)[:, None].astype(total.dtype)


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
