"""Softmax attention over the neighbours of a block, without scatter forwards. Importing this module imports jax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from ginex_jax.batch import Block, DegreeBlock, DegreeTable
from ginex_jax.sampling.aggregation import combined, tables_of


def aggregate_attention(
    block: Block | DegreeBlock,
    values: Float[Array | np.ndarray, "sources heads features"],
    source_scores: Float[Array | np.ndarray, "sources heads"],
    destination_scores: Float[Array | np.ndarray, "destinations heads"],
    *,
    negative_slope: float = 0.2,
    self_edge: bool = True,
) -> Float[Array, "destinations heads features"]:
    """A weighted mean of `values` over the neighbours of every destination and, with `self_edge`, the destination itself.

    The weights are the softmax, over these, of LeakyReLU(source_scores[neighbour] + destination_scores[destination]), for each head
    (Velickovic et al., Graph Attention Networks, ICLR 2018, equations 3 and 4). An edge counts as often as it is in the block; an edge
    from a node to itself counts beside the self edge. 0 where there is nothing to attend to. Scores are handled in float32, and never
    overflow.

    Traceable. O(places of the block * heads * features); for a `DegreeBlock` besides a sort of its destinations.
    """
    values = jnp.asarray(values)
    sources = jnp.asarray(source_scores).astype(jnp.float32)
    targets = jnp.asarray(destination_scores).astype(jnp.float32)
    tables, owners = tables_of(block), table_owners(block)
    logits = [
        _row_logits(table, sources, targets[owner], negative_slope) for table, owner in zip(tables, owners, strict=True)
    ]
    peaks = combined(block, [jnp.max(logit, axis=1) for logit in logits], jnp.max, -jnp.inf)
    own = jax.nn.leaky_relu(sources[: block.num_destinations] + targets, negative_slope)
    if self_edge:
        peaks = jnp.maximum(peaks, own)
    peaks = jax.lax.stop_gradient(jnp.where(jnp.isneginf(peaks), 0, peaks))
    shares = [jnp.exp(logit - peaks[owner][:, None]) for logit, owner in zip(logits, owners, strict=True)]
    row_sums = [_row_sums(table, values, share) for table, share in zip(tables, shares, strict=True)]
    sums = combined(block, row_sums, jnp.sum, 0.0)
    result, total = sums[:, :, :-1], sums[:, :, -1]
    if self_edge:
        share = jnp.exp(own - peaks)
        total, result = total + share, result + share[:, :, None] * values[: block.num_destinations]
    return (result / jnp.where(total == 0, 1, total)[:, :, None]).astype(values.dtype)


def table_owners(block: Block | DegreeBlock) -> tuple[Int32[Array, " _"], ...]:
    """For each of `tables_of(block)`, the destination whose list every row is in; any destination for a row of padding.

    The inverse of `rows` by sorting: the pieces of a long list lie one after the other, and the first of them is known.
    """
    if isinstance(block, Block):
        return (jnp.arange(block.num_destinations, dtype=jnp.int32),)
    rows = jnp.asarray(block.rows)
    keys, owners = rows, jnp.arange(len(rows), dtype=jnp.int32)
    num_tables = 1 + sum(block.num_rows.tables)
    combines = [table for table in block.combines if len(table.mask)]
    if combines:
        numbers = num_tables + jnp.arange(sum(len(table.mask) for table in combines), dtype=jnp.int32)
        lists = _last_at_most(numbers, keys, owners)
        never = np.iinfo(np.int32).max
        first = [jnp.where(jnp.asarray(t.mask)[:, 0], jnp.asarray(t.entries)[:, 0], never) for t in combines]
        keys, owners = jnp.concatenate([keys, *first]), jnp.concatenate([owners, lists])
    found = _last_at_most(jnp.arange(num_tables, dtype=jnp.int32), keys, owners)
    bounds = np.cumsum([1, *block.num_rows.tables])
    return tuple(found[start:stop] for start, stop in itertools.pairwise(bounds))


def _last_at_most(
    numbers: Int32[Array, " numbers"], keys: Int32[Array, " keys"], values: Int32[Array, " keys"]
) -> Int32[Array, " numbers"]:
    """For each number, the value of the largest key that is not beyond it, or of the smallest key."""
    order = jnp.argsort(keys)
    places = jnp.searchsorted(keys[order], numbers, side="right") - 1
    return values[order][jnp.maximum(places, 0)]


def _row_logits(
    table: DegreeTable,
    source_scores: Float32[Array, "sources heads"],
    row_scores: Float32[Array, "rows heads"],
    negative_slope: float,
) -> Float32[Array, "rows width heads"]:
    """Scores of the entries, -inf where there is none."""
    if table.entries.shape[0] == 0 or source_scores.shape[0] == 0:
        return jnp.full((*table.entries.shape, source_scores.shape[1]), -jnp.inf, jnp.float32)
    logits = jax.nn.leaky_relu(source_scores[jnp.asarray(table.entries)] + row_scores[:, None], negative_slope)
    return jnp.where(jnp.asarray(table.mask)[:, :, None], logits, -jnp.inf)


def _row_sums(
    table: DegreeTable, values: Float[Array, "sources heads features"], shares: Float32[Array, "rows width heads"]
) -> Float32[Array, "rows heads features_plus_one"]:
    """Sums of the values by their shares; behind the last feature, that of the shares."""
    if table.entries.shape[0] == 0 or values.shape[0] == 0:
        return jnp.zeros((len(table.mask), values.shape[1], values.shape[2] + 1), jnp.float32)
    total = jnp.sum(shares[..., None] * values[jnp.asarray(table.entries)], axis=1)
    return jnp.concatenate([total, jnp.sum(shares, axis=1)[..., None]], axis=-1)
