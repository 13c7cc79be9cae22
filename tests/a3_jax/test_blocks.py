"""Blocks by loops over rows; and what a kernel over pages makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.attention.exact import attend
from a3_jax.blocks import Blocks, block_scores, check_reduction, rows_of_blocks, select_blocks

NUM_ROWS, SIZE, MOST = 22, 4, 3  # 6 blocks, the last of 2 rows


@jax.jit
@jax.vmap
def selected(scores: jax.Array, mask: jax.Array, required: jax.Array) -> tuple[jax.Array, jax.Array, Blocks, jax.Array]:
    best = block_scores(scores, block_size=SIZE, mask=mask)
    summed = block_scores(scores, block_size=SIZE, reduction="sum", mask=mask)
    blocks = select_blocks(best, num_blocks=MOST, block_size=SIZE, num_rows=NUM_ROWS, required=required, mask=mask)
    return best, summed, blocks, rows_of_blocks(blocks, num_rows=NUM_ROWS, block_size=SIZE)


def cases() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores are small whole numbers: many are equal, and sums exact."""
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (800, NUM_ROWS)).astype(np.float32)
    mask = rng.random(scores.shape) < rng.choice([0.1, 0.5, 1], (800, 1))
    required = rng.random((800, 6)) < rng.choice([0, 0.3, 0.9], (800, 1))
    return scores, mask, required


def test_scores_and_selection_by_hand() -> None:
    scores, mask, required = cases()
    best, summed, blocks, rows = jax.tree.map(np.asarray, selected(scores, mask, required))
    for case in range(len(scores)):
        valid = [[r for r in range(4 * b, min(4 * b + 4, NUM_ROWS)) if mask[case, r]] for b in range(6)]
        of_rows = [[float(scores[case, r]) for r in rows_] for rows_ in valid]
        assert best[case].tolist() == [max(s, default=-np.inf) for s in of_rows]
        assert summed[case].tolist() == [sum(s) if s else -np.inf for s in of_rows]
        wanted = [b for b in range(6) if of_rows[b] and (required[case, b] or max(of_rows[b]) > 0)]
        wanted = sorted(sorted(wanted, key=lambda b: (not required[case, b], -max(of_rows[b]), b))[:MOST])
        assert blocks.count[case] == len(wanted)
        assert blocks.numbers[case].tolist() == wanted + [0] * (MOST - len(wanted))
        assert blocks.num_rows[case] == sum(len(valid[b]) for b in wanted)
        assert np.flatnonzero(rows[case]).tolist() == [r for r in range(NUM_ROWS) if r // 4 in wanted]


def test_integers() -> None:
    least = np.iinfo(np.int32).min
    scores = jnp.array([1, -2, 3, 4, 5], jnp.int32)
    mask = jnp.array([True, True, False, False, True])
    assert block_scores(scores, block_size=2, mask=mask).tolist() == [1, least, 5]
    assert block_scores(scores, block_size=2, reduction="sum").tolist() == [-1, 7, 5]


def test_a_paged_kernel_reads_these_rows() -> None:
    """Pages in any order, `num_rows` rows of those listed: attention as over the rows of the blocks."""
    rng = np.random.default_rng(1)
    length = 18  # rows that are there; the last block has 2 of 4
    mask = np.arange(NUM_ROWS) < length
    scores, value = rng.normal(size=(50, NUM_ROWS)).astype(np.float32), rng.normal(size=(24, 3)).astype(np.float32)
    required = np.zeros((50, 6), bool)
    required[:, 4] = True
    _, _, blocks, rows = jax.tree.map(
        np.asarray, selected(*(np.resize(array, (800, array.shape[-1])) for array in (scores, mask, required)))
    )
    rows = rows[:50]
    outputs, _ = jax.jit(jax.vmap(attend, (0, 0, None)))(scores, rows & mask, value[:NUM_ROWS])
    blocks, outputs = jax.tree.map(np.asarray, (blocks, outputs))
    table = rng.permutation(6)
    pages = np.zeros((6, SIZE, 3), np.float32)
    pages[table] = value.reshape(6, SIZE, 3)
    for case in range(50):
        numbers, count, num_rows = (part[case] for part in blocks)
        read = pages[table[numbers[:count]]].reshape(-1, 3)[:num_rows]
        their_scores = np.concatenate([scores[case, 4 * b : 4 * b + 4] for b in numbers[:count]])[:num_rows]
        weights = np.exp(their_scores.astype(np.float64))
        np.testing.assert_allclose(outputs[case], weights @ read / weights.sum(), rtol=1e-4, atol=1e-5)


def test_what_does_not_fit() -> None:
    scores = jnp.zeros(6)
    with pytest.raises(ValueError, match="wanted at least 1 row, got 0"):
        block_scores(scores, block_size=0)
    with pytest.raises(ValueError, match="wanted one of max, sum, got 'mean'"):
        check_reduction("mean")
    with pytest.raises(ValueError, match="wanted one for every 4 of 30 rows, got 6"):
        select_blocks(scores, num_blocks=2, block_size=4, num_rows=30)
    with pytest.raises(ValueError, match="1 to the number of blocks, 6, got 7"):
        select_blocks(scores, num_blocks=7, block_size=4, num_rows=22)
