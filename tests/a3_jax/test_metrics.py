"""Metrics against their definitions and the example that the formula of bytes comes from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.metrics import bytes_touched, output_error, softmax_mass, top_k_recall

SCORES = jnp.array([1.0, 3.0, 3.0, -2.0, 0.5])


def test_recall_counts_the_largest_scores_of_equal_ones_the_first() -> None:
    only = jnp.array([False, True, False, False, True])
    assert float(top_k_recall(SCORES, only, k=1)) == 1
    assert float(top_k_recall(SCORES, only, k=2)) == 0.5
    assert float(top_k_recall(SCORES, only, k=4)) == 0.5
    assert float(top_k_recall(SCORES, only, k=99)) == pytest.approx(0.4)


def test_recall_of_fewer_rows_than_wanted() -> None:
    only = jnp.array([False, True, False, False, True])
    assert float(top_k_recall(SCORES, only, k=3, mask=jnp.array([True, False, False, False, True]))) == 0.5
    assert float(top_k_recall(SCORES, only, k=3, mask=jnp.zeros(5, bool))) == 1


def test_mass_and_error_bound_each_other() -> None:
    rng = np.random.default_rng(0)
    scores, value = rng.normal(scale=2, size=(200, 7)), rng.normal(size=(200, 7, 3))
    selected = rng.random((200, 7)) < 0.6
    selected[:, 0] = True
    mass = jax.jit(jax.vmap(softmax_mass))(scores.astype(np.float32), selected)
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    wanted = (weights * selected).sum(1)
    np.testing.assert_allclose(mass, wanted, rtol=1e-5)
    exact = np.einsum("qn,qnd->qd", weights, value)
    output = np.einsum("qn,qnd->qd", weights * selected, value) / wanted[:, None]
    bound = 2 * (1 - wanted) * np.linalg.norm(value, axis=2).max(1)
    error = jax.jit(jax.vmap(output_error))(output.astype(np.float32), exact.astype(np.float32))
    assert (np.asarray(error) * np.linalg.norm(exact, axis=1) <= bound + 1e-6).all()


def test_mass_of_masked_rows_does_not_count() -> None:
    selected, mask = jnp.array([True, False, True, False, False]), jnp.array([True, True, False, False, False])
    weights = np.exp([1.0, 3.0])
    assert float(softmax_mass(SCORES, selected, mask=mask)) == pytest.approx(weights[0] / weights.sum())
    assert float(softmax_mass(SCORES, selected, mask=jnp.zeros(5, bool))) == 1


def test_error_is_relative() -> None:
    assert float(output_error(jnp.array([3.0, 4.0]), jnp.array([0.0, 4.0]))) == 0.75
    assert float(output_error(jnp.zeros(2), jnp.zeros(2))) == 0
    assert float(output_error(jnp.ones(2), jnp.zeros(2))) == float("inf")


def test_bytes_of_half_as_many_iterations_as_rows() -> None:
    """d = 128 in bfloat16 with 4-byte ids, M = n/2, C = n/5, K = n/20: 6 n + 51.2 n + 12.8 n of 512 n bytes."""
    n = 1000
    touched = bytes_touched(n / 2, n / 5, n / 20, key_dim=128, value_dim=128)
    assert touched == pytest.approx((6 + 51.2 + 12.8) * n)
    assert bytes_touched(0, n, n, key_dim=128, value_dim=128) == 512 * n
    assert bytes_touched(np.array([1, 0]), np.array([0, 1]), 0, key_dim=3, value_dim=3).tolist() == [12, 6]
