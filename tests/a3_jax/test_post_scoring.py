"""Post-scoring against its definition: weight over the largest weight, in percent."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.post_scoring import score_gap, select_post_scoring


@jax.jit
@jax.vmap
def selected(scores: jax.Array, candidates: jax.Array, percent: jax.Array) -> jax.Array:
    return select_post_scoring(scores, candidates, threshold_percent=percent)


def cases() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=3, size=(2000, 9)).astype(np.float32)
    scores[::4] = np.round(scores[::4])
    candidates = rng.random(scores.shape) < 0.6
    candidates[:5] = False
    return scores, candidates, rng.choice([0, 1, 2.5, 5, 10, 20, 50, 100], len(scores)).astype(np.float32)


def test_keeps_weights_of_at_least_t_percent_of_the_largest() -> None:
    scores, candidates, percent = cases()
    kept = np.asarray(selected(scores, candidates, percent))
    for one_scores, one_candidates, one_percent, one_kept in zip(scores, candidates, percent, kept, strict=True):
        exact = [float(score) for score in one_scores]
        largest = max((exact[row] for row in range(9) if one_candidates[row]), default=0.0)
        for row in range(9):
            ratio = 100 * math.exp(exact[row] - largest)
            if one_candidates[row] and abs(ratio - one_percent) < 1e-4 * one_percent and exact[row] != largest:
                continue  # too close for float32 to tell
            assert one_kept[row] == (one_candidates[row] and ratio >= one_percent)


def test_thresholds_of_the_paper() -> None:
    assert [round(float(score_gap(percent)), 3) for percent in (1, 5, 10, 20)] == [4.605, 2.996, 2.303, 1.609]
    assert score_gap(100) == 0
    assert score_gap(0) == math.inf


def test_hundred_keeps_only_the_largest_and_zero_keeps_all() -> None:
    scores, candidates, _ = cases()
    np.testing.assert_array_equal(selected(scores, candidates, np.zeros(2000, np.float32)), candidates)
    largest = np.where(candidates, scores, -np.inf).max(1, keepdims=True)
    only = selected(scores, candidates, np.full(2000, 100, np.float32))
    np.testing.assert_array_equal(only, candidates & (scores == largest))


def test_weight_that_is_dropped_is_bounded() -> None:
    """Of C candidates of which K are kept, at most (C - K) * T / 100 of the kept weight."""
    scores, candidates, percent = cases()
    kept = np.asarray(selected(scores, candidates, percent))
    weights = np.exp(scores.astype(np.float64))
    dropped = np.where(candidates & ~kept, weights, 0).sum(1)
    bound = (candidates.sum(1) - kept.sum(1)) * percent / 100 * np.where(kept, weights, 0).sum(1)
    assert (dropped <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("wrong", [-1.0, 100.5, float("nan")])
def test_what_is_no_percentage(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"wanted a number of percent in \[0, 100\]"):
        select_post_scoring(jnp.zeros(3), jnp.ones(3, bool), threshold_percent=wrong)


def test_a_traced_threshold_is_clamped() -> None:
    scores, candidates, _ = cases()
    for outside, inside in ((150, 100), (-3, 0)):
        np.testing.assert_array_equal(
            selected(scores, candidates, np.full(2000, outside, np.float32)),
            selected(scores, candidates, np.full(2000, inside, np.float32)),
        )
