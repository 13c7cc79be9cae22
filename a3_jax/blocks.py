"""Rows selected by the block, so that what is found can drive a kernel that reads whole pages of a cache. Not in the paper."""

from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Real

from a3_jax.candidates.columns import lowest

BlockReduction: TypeAlias = Literal["max", "sum"]


class Blocks(NamedTuple):
    """The blocks to read, and how much of them.

    Attributes:
      numbers: the selected blocks, ascending, then zeros. Of a cache in pages, `page_table[numbers]` are the pages.
      count: how many of `numbers` are selected.
      num_rows: valid rows in them. Where the valid rows are the first ones of the cache, this is the length that a paged kernel takes: only
        the last block can be partly filled, and it stands last.
    """

    numbers: Int32[Array, " selected"]
    count: Int32[Array, ""]
    num_rows: Int32[Array, ""]


def block_scores(
    scores: Real[Array, " n"],
    *,
    block_size: int = 128,
    reduction: BlockReduction = "max",
    mask: Bool[Array, " n"] | None = None,
) -> Real[Array, " blocks"]:
    """One score for every `block_size` rows, the last of which may be fewer.

    Args:
      scores: greedy scores; or any others, such as bounds.
      reduction: "max" finds blocks with one good row, "sum" those with much in them, from which bad rows take away.
      mask: rows that take part. A block without any has the lowest score of the type (-inf for floats).

    Raises:
      ValueError: if the block size is not positive, or the reduction unknown.

    O(n).
    """
    check_reduction(reduction)
    valid = _by_block(jnp.ones_like(scores, bool) if mask is None else mask, block_size, False)
    least = lowest(scores.dtype)
    if reduction == "max":
        return jnp.max(jnp.where(valid, _by_block(scores, block_size, least), least), axis=1)
    summed = jnp.sum(jnp.where(valid, _by_block(scores, block_size, 0), 0), axis=1, dtype=scores.dtype)
    return jnp.where(jnp.any(valid, axis=1), summed, least)


def select_blocks(
    scores: Real[Array, " blocks"],
    *,
    num_blocks: int,
    block_size: int = 128,
    num_rows: int,
    required: Bool[Array, " blocks"] | None = None,
    mask: Bool[Array, " n"] | None = None,
) -> Blocks:
    """The blocks with the largest scores, as many as are above 0 and no more than `num_blocks`.

    Args:
      scores: of `block_scores`. Of equal ones the lower block is taken.
      num_blocks: the most to select; the size of the result.
      num_rows: n, rows in all blocks.
      required: blocks that are selected before all others, whatever their score: those of a window and of sinks, with
        `block_scores(rows, ..) > 0`. Where they are more than `num_blocks`, the ones with the largest scores.
      mask: rows that take part. A block without any is not selected.

    Raises:
      ValueError: if sizes do not fit.

    O(blocks log(blocks)).
    """
    total = scores.shape[0]
    if total != -(-num_rows // block_size):
        raise ValueError(f"scores: wanted one for every {block_size} of {num_rows} rows, got {total}")
    if not 1 <= num_blocks <= total:
        raise ValueError(f"num_blocks: wanted 1 to the number of blocks, {total}, got {num_blocks}")
    valid = _by_block(jnp.ones(num_rows, bool) if mask is None else mask, block_size, False)
    needed = jnp.zeros(total, bool) if required is None else required
    filled = jnp.any(valid, axis=1)
    rank = jnp.where(needed & filled, 2, jnp.where((scores > 0) & filled, 1, 0))
    number = jnp.arange(total, dtype=jnp.int32)
    # In descending order of rank and score, then ascending of number: sorted from the back, stably, and turned round.
    _, _, order = jax.lax.sort((rank[::-1], scores[::-1], number[::-1]), num_keys=2, is_stable=True)
    first = order[::-1][:num_blocks]
    count = jnp.sum(rank[first] > 0, dtype=jnp.int32)
    numbers = jnp.sort(jnp.where(rank[first] > 0, first, total))
    in_blocks = jnp.sum(valid, axis=1, dtype=jnp.int32)
    taken = jnp.sum(jnp.where(rank[first] > 0, in_blocks[first], 0), dtype=jnp.int32)
    return Blocks(jnp.where(numbers < total, numbers, 0), count, taken)


def rows_of_blocks(blocks: Blocks, *, num_rows: int, block_size: int = 128) -> Bool[Array, " n"]:
    """The rows that are read: all of the selected blocks, masked ones among them. O(n)."""
    slot = jnp.arange(blocks.numbers.shape[0], dtype=jnp.int32)
    target = jnp.where(slot < blocks.count, blocks.numbers, num_rows)
    selected = jnp.zeros(-(-num_rows // block_size), bool).at[target].set(True, mode="drop")
    return jnp.repeat(selected, block_size)[:num_rows]


def check_reduction(name: str) -> None:
    if name not in get_args(BlockReduction):
        raise ValueError(f"reduction: wanted one of {', '.join(get_args(BlockReduction))}, got {name!r}")


def _by_block(rows: Array, block_size: int, padding: bool | int | Array) -> Array:
    if block_size < 1:
        raise ValueError(f"block_size: wanted at least 1 row, got {block_size}")
    return jnp.pad(rows, (0, -rows.shape[0] % block_size), constant_values=padding).reshape(-1, block_size)
