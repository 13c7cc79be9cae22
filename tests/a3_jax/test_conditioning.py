"""Centring and rotation: softmax stays as it is, and a search finds more where keys are biased or stretched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.attention.approximate import approx_attention
from a3_jax.attention.exact import attend, exact_attention, score_rows
from a3_jax.candidates.selection import select_candidates
from a3_jax.conditioning import Conditioning, condition_keys, condition_query, fit_conditioning, score_shift
from a3_jax.metrics import softmax_mass, top_k_recall
from a3_jax.sorted_keys import sort_keys

RNG = np.random.default_rng(0)
DIM, NUM_ROWS = 8, 40


@jax.jit
@jax.vmap
def conditioned(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, conditioning: Conditioning
) -> tuple[jax.Array, jax.Array, jax.Array]:
    scores = score_rows(condition_query(query, conditioning), condition_keys(key, conditioning))
    output, lse = attend(scores, mask, value)
    return scores, output, lse + score_shift(query, conditioning)


def plain(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    scores = np.einsum("bd,bnd->bn", query, key)
    weights = np.where(mask, np.exp(scores), 0)
    total = weights.sum(1)
    return scores, np.einsum("bn,bnv->bv", weights, value) / total[:, None], np.log(total)


class TestSoftmaxStays:
    def test_bit_for_bit_where_nothing_rounds(self) -> None:
        """Small whole numbers, a whole mean, and a rotation that permutes columns and turns signs."""
        cases = 200
        query, key = RNG.integers(-4, 5, (cases, DIM)), RNG.integers(-8, 9, (cases, NUM_ROWS, DIM))
        mean, mask = RNG.integers(-5, 6, (cases, DIM)), RNG.random((cases, NUM_ROWS)) < 0.6
        mask[:, 0] = True
        value = RNG.normal(size=(cases, NUM_ROWS, 3))
        order = np.argsort(RNG.random((cases, DIM)))
        rotation = np.eye(DIM)[order] * RNG.choice([-1, 1], (cases, 1, DIM))
        arrays = [array.astype(np.float32) for array in (query, key, value)]
        scores, output, lse = conditioned(
            *arrays, mask, Conditioning(mean.astype(np.float32), rotation.astype(np.float32))
        )
        shift = np.einsum("bd,bd->b", query, mean)
        np.testing.assert_array_equal(np.asarray(scores), np.einsum("bd,bnd->bn", query, key) - shift[:, None])
        identity = Conditioning(
            np.zeros((cases, DIM), np.float32), np.tile(np.eye(DIM, dtype=np.float32), (cases, 1, 1))
        )
        _, unchanged, unchanged_lse = conditioned(*arrays, mask, identity)
        np.testing.assert_array_equal(output, unchanged)
        np.testing.assert_allclose(lse, unchanged_lse, rtol=1e-6, atol=1e-5)

    @pytest.mark.parametrize(("center", "rotate"), [(True, True), (True, False), (False, True)])
    def test_of_what_was_fitted(self, center: bool, rotate: bool) -> None:
        cases = 50
        query, key, value, mask = random_cases(cases)
        fitted = fit_many(key, mask, center=center, rotate=rotate)
        _, output, lse = conditioned(query, key, value, mask, fitted)
        _, wanted, wanted_lse = plain(*(array.astype(np.float64) for array in (query, key, value)), mask)
        # Scores are sums of d products of numbers below 20 and 4, and errors of scores are errors of exponents.
        tolerance = 4 * DIM * 20 * 4 * DIM**0.5 * np.finfo(np.float32).eps
        np.testing.assert_allclose(lse, wanted_lse, rtol=0, atol=tolerance)
        np.testing.assert_allclose(output, wanted, rtol=0, atol=tolerance * np.abs(value).max())

    def test_kept_rows_of_exact_scores_stay(self) -> None:
        """Post-scoring compares scores with the largest: a shift drops no other rows."""
        query = RNG.integers(-3, 4, DIM).astype(np.float32)
        key = RNG.integers(-3, 4, (NUM_ROWS, DIM)).astype(np.float32)
        value, mask = RNG.normal(size=(NUM_ROWS, 3)).astype(np.float32), np.arange(NUM_ROWS) % 3 > 0
        conditioning = Conditioning(jnp.full(DIM, 2.0), jnp.eye(DIM)[::-1])
        kept = [
            approx_attention(
                one_query, one_key, jnp.asarray(value), None, threshold_percent=10, mask=jnp.asarray(mask)
            )[1].kept
            for one_query, one_key in (
                (jnp.asarray(query), jnp.asarray(key)),
                (condition_query(jnp.asarray(query), conditioning), condition_keys(jnp.asarray(key), conditioning)),
            )
        ]
        np.testing.assert_array_equal(kept[0], kept[1])
        assert kept[0].any()

    def test_keys_that_came_later(self) -> None:
        query, key, value, mask = random_cases(1)
        fitted = fit_many(key[:, :10], mask[:, :10], center=True, rotate=True)
        _, output, _ = conditioned(query, key, value, np.ones_like(mask), fitted)
        wanted = exact_attention(jnp.asarray(query[0]), jnp.asarray(key[0]), jnp.asarray(value[0]))
        np.testing.assert_allclose(output[0], wanted, rtol=0, atol=1e-2)


class TestFit:
    def test_mean_and_components(self) -> None:
        _, key, _, mask = random_cases(20)
        fitted = fit_many(key, mask, center=True, rotate=True)
        for one_key, one_mask, mean, rotation in zip(key, mask, *map(np.asarray, fitted), strict=True):
            rows = one_key[one_mask].astype(np.float64)
            np.testing.assert_allclose(mean, rows.mean(0), rtol=0, atol=1e-5 * np.abs(rows).max())
            np.testing.assert_allclose(rotation.T @ rotation, np.eye(DIM), rtol=0, atol=1e-5)
            components = (rows - rows.mean(0)) @ rotation
            covariance = components.T @ components / len(rows)
            variances = np.diagonal(covariance)
            np.testing.assert_allclose(covariance - np.diag(variances), 0, rtol=0, atol=1e-5 * variances.max())
            assert (np.diff(variances) <= 1e-5 * variances.max()).all()

    def test_what_is_left_out(self) -> None:
        _, key, _, mask = random_cases(1)
        plain_mean = fit_many(key, mask, center=False, rotate=True)
        np.testing.assert_array_equal(plain_mean.mean, 0)
        plain_rotation = fit_many(key, mask, center=True, rotate=False)
        np.testing.assert_array_equal(plain_rotation.rotation[0], np.eye(DIM))

    def test_no_row(self) -> None:
        fitted = fit_many(
            np.ones((1, NUM_ROWS, DIM), np.float32), np.zeros((1, NUM_ROWS), bool), center=True, rotate=True
        )
        np.testing.assert_array_equal(fitted.mean, 0)
        np.testing.assert_allclose(fitted.rotation[0] @ fitted.rotation[0].T, np.eye(DIM), rtol=0, atol=1e-6)


class TestSearchFindsMore:
    """M = n / 8 and n / 2, 100 queries."""

    def test_a_few_channels_with_large_means(self) -> None:
        """As keys of language models have them. Their products are the largest, in every row: pops are spent on what tells nothing."""
        key, query = search_cases(bias=8.0, stretch=0.0)
        raw, centred, both = (found(query, key, c, r) for c, r in ((False, False), (True, False), (True, True)))
        assert centred["few"] > raw["few"] + 0.1
        assert both["few"] > raw["few"] + 0.1
        assert centred["many"] > raw["many"]

    def test_stretched_directions(self) -> None:
        key, query = search_cases(bias=0.0, stretch=1.5)
        raw, rotated = (found(query, key, False, rotate) for rotate in (False, True))
        assert rotated["few"] > raw["few"]
        assert rotated["mass"] > raw["mass"]

    def test_neither_is_no_gain(self) -> None:
        key, query = search_cases(bias=0.0, stretch=0.0)
        raw, both = (found(query, key, c, c) for c in (False, True))
        # Shares of 500 rows: three standard deviations of the difference of two.
        assert abs(raw["few"] - both["few"]) < 3 * (2 * 0.25 / 500) ** 0.5


def random_cases(cases: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    query = np.clip(RNG.normal(size=(cases, DIM)), -4, 4)
    key = np.clip(RNG.normal(size=(cases, NUM_ROWS, DIM)) * np.linspace(0.3, 2, DIM) + 5, -20, 20)
    value, mask = RNG.normal(size=(cases, NUM_ROWS, 3)), RNG.random((cases, NUM_ROWS)) < 0.7
    mask[:, 0] = True
    return query.astype(np.float32), key.astype(np.float32), value.astype(np.float32), mask


def fit_many(key: np.ndarray, mask: np.ndarray, *, center: bool, rotate: bool) -> Conditioning:
    return jax.vmap(lambda key, mask: fit_conditioning(key, mask=mask, center=center, rotate=rotate))(
        jnp.asarray(key), jnp.asarray(mask)
    )


def search_cases(*, bias: float, stretch: float) -> tuple[jax.Array, jax.Array]:
    """512 keys of 64 components, 4 of which are biased; directions are stretched by exp(normal * stretch). A query looks for one key."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    key = (rng.normal(size=(512, 64)) * np.exp(stretch * rng.normal(size=64))) @ basis
    key /= key.std()
    query = 0.3 * key[rng.integers(0, 512, 100)] + 0.3 * rng.normal(size=(100, 64))
    means = bias * rng.choice([-1, 1], 64) * (np.arange(64) < 4)
    return jnp.asarray(key + means, jnp.float32), jnp.asarray(query, jnp.float32)


@jax.jit
@jax.vmap
def selections(query: jax.Array, keys: tuple[jax.Array, ...], scores: jax.Array) -> tuple[jax.Array, ...]:
    key = keys[0]
    sorted_keys = sort_keys(key)
    few, many = (select_candidates(query, sorted_keys, num_iterations=count) for count in (64, 256))
    return (
        top_k_recall(scores, few, k=5),
        top_k_recall(scores, many, k=5),
        softmax_mass(scores, many),
    )


def found(query: jax.Array, key: jax.Array, center: bool, rotate: bool) -> dict[str, float]:
    conditioning = fit_conditioning(key, center=center, rotate=rotate)
    changed = jnp.broadcast_to(condition_keys(key, conditioning), (len(query), *key.shape))
    queries = jax.vmap(condition_query, (0, None))(query, conditioning)
    measured = selections(queries, (changed,), query @ key.T)
    return dict(zip(("few", "many", "mass"), (float(m.mean()) for m in measured), strict=True))
