"""Centring and rotation: softmax stays as it is, and a search finds more where keys are biased or stretched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.attention.exact import attend, score_rows
from a3_jax.candidates.selection import select_candidates
from a3_jax.conditioning import Conditioning, condition_keys, condition_query, fit_conditioning, score_shift
from a3_jax.metrics import softmax_mass, top_k_recall
from a3_jax.sorted_keys import sort_keys

RNG = np.random.default_rng(0)
DIM, NUM_ROWS, CASES = 8, 40, 50


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
        cases = CASES
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
        cases = CASES
        query, key, value, mask = random_cases(cases)
        fitted = fit_many(key, mask, center=center, rotate=rotate)
        _, output, lse = conditioned(query, key, value, mask, fitted)
        _, wanted, wanted_lse = plain(*(array.astype(np.float64) for array in (query, key, value)), mask)
        # Scores are sums of d products of numbers below 20 and 4, and errors of scores are errors of exponents.
        tolerance = 4 * DIM * 20 * 4 * DIM**0.5 * np.finfo(np.float32).eps
        np.testing.assert_allclose(lse, wanted_lse, rtol=0, atol=tolerance)
        np.testing.assert_allclose(output, wanted, rtol=0, atol=tolerance * np.abs(value).max())

    def test_keys_that_came_later(self) -> None:
        query, key, value, mask = random_cases(CASES)
        early = mask & (np.arange(NUM_ROWS) < 10)
        _, output, _ = conditioned(query, key, value, mask, fit_many(key, early, center=True, rotate=True))
        _, wanted, _ = plain(*(array.astype(np.float64) for array in (query, key, value)), mask)
        tolerance = 4 * DIM * 20 * 4 * DIM**0.5 * np.finfo(np.float32).eps
        np.testing.assert_allclose(output, wanted, rtol=0, atol=tolerance * np.abs(value).max())


class TestFit:
    def test_mean_and_components(self) -> None:
        _, key, _, mask = random_cases(CASES)
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
        _, key, _, mask = random_cases(CASES)
        plain_mean = fit_many(key, mask, center=False, rotate=True)
        np.testing.assert_array_equal(plain_mean.mean, 0)
        plain_rotation = fit_many(key, mask, center=True, rotate=False)
        np.testing.assert_array_equal(plain_rotation.rotation[0], np.eye(DIM))

    def test_no_row(self) -> None:
        fitted = fit_many(
            np.ones((CASES, NUM_ROWS, DIM), np.float32), np.zeros((CASES, NUM_ROWS), bool), center=True, rotate=True
        )
        np.testing.assert_array_equal(fitted.mean, 0)
        np.testing.assert_allclose(fitted.rotation[0] @ fitted.rotation[0].T, np.eye(DIM), rtol=0, atol=1e-6)


class TestSearchFindsMore:
    def test_a_few_channels_with_large_means(self) -> None:
        """As keys of language models have them. Their products are the largest, in every row: pops are spent on what tells nothing."""
        query, key = search_cases(bias=8.0, stretch=0.0)
        raw, centred, both = (found(query, key, fit_one(key, *how))[0] for how in ((0, 0), (1, 0), (1, 1)))
        assert centred > raw + 0.1
        assert both > raw + 0.1

    def test_stretched_directions(self) -> None:
        query, key = search_cases(bias=0.0, stretch=1.5)
        raw, rotated = (found(query, key, fit_one(key, 0, rotate)) for rotate in (0, 1))
        assert rotated[0] > raw[0]
        assert rotated[1] > raw[1]

    def test_neither_is_no_gain(self) -> None:
        query, key = search_cases(bias=0.0, stretch=0.0)
        raw, both = (found(query, key, fit_one(key, how, how))[0] for how in (0, 1))
        # Shares of 500 rows: three standard deviations of the difference of two.
        assert abs(raw - both) < 3 * (2 * 0.25 / 500) ** 0.5


def random_cases(cases: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    query = np.clip(RNG.normal(size=(cases, DIM)), -4, 4)
    key = np.clip(RNG.normal(size=(cases, NUM_ROWS, DIM)) * np.linspace(0.3, 2, DIM) + 5, -20, 20)
    value, mask = RNG.normal(size=(cases, NUM_ROWS, 3)), RNG.random((cases, NUM_ROWS)) < 0.7
    mask[:, 0] = True
    return query.astype(np.float32), key.astype(np.float32), value.astype(np.float32), mask


@functools.partial(jax.jit, static_argnums=(1, 2))
def fit_one(key: jax.Array, center: int, rotate: int) -> Conditioning:
    return fit_conditioning(key, center=bool(center), rotate=bool(rotate))


@functools.partial(jax.jit, static_argnames=("center", "rotate"))
def fit_many(key: jax.Array | np.ndarray, mask: jax.Array | np.ndarray, *, center: bool, rotate: bool) -> Conditioning:
    return jax.vmap(lambda key, mask: fit_conditioning(key, mask=mask, center=center, rotate=rotate))(key, mask)


def search_cases(*, bias: float, stretch: float) -> tuple[jax.Array, jax.Array]:
    """Queries for a key each, and 512 keys of 64 components, 4 of them biased; directions are stretched by exp(normal * stretch)."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    key = (rng.normal(size=(512, 64)) * np.exp(stretch * rng.normal(size=64))) @ basis
    key /= key.std()
    query = 0.3 * key[rng.integers(0, 512, 100)] + 0.3 * rng.normal(size=(100, 64))
    means = bias * rng.choice([-1, 1], 64) * (np.arange(64) < 4)
    return jnp.asarray(query, jnp.float32), jnp.asarray(key + means, jnp.float32)


@jax.jit
def found(query: jax.Array, key: jax.Array, conditioning: Conditioning) -> tuple[jax.Array, jax.Array]:
    """Recall of the five largest scores and weight of the candidates, over all queries, with M = n / 8."""
    keys = sort_keys(condition_keys(key, conditioning))

    def search(query: jax.Array) -> tuple[jax.Array, jax.Array]:
        selected = select_candidates(
            condition_query(query, conditioning), keys, num_iterations=64, implementation="sorted"
        )
        return top_k_recall(key @ query, selected, k=5), softmax_mass(key @ query, selected)

    recall, mass = jax.vmap(search)(query)
    return recall.mean(), mass.mean()
