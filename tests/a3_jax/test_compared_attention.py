"""Attention by every method, a query at a time in NumPy, with the selections of the papers' descriptions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.baselines.sign_hash import hash_keys
from a3_jax.workloads.compared_attention import (
    Baseline,
    Measured,
    Method,
    Search,
    attend_by,
    attend_steps_by,
    num_columns,
)
from a3_jax.workloads.decode_inputs import StepInputs
from tests.a3_jax import baseline_oracles
from tests.a3_jax.selection_oracles import greedy_oracle

BATCH, HEADS, QUERIES, ROWS, DIM, VALUE_DIM = (
    2,
    2,
    3,
    13,
    5,
    6,
)  # an odd number of bits, or estimates of angles are 0 but for rounding
LENGTHS = (13, 9)
PRICE = 2 * (DIM + VALUE_DIM)
SHARES = (0.8, 0.35, 0.1)


@functools.cache
def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Keys are off centre and stretched."""
    rng = np.random.default_rng(2)
    query = rng.normal(size=(BATCH, HEADS, QUERIES, DIM))
    key = rng.normal(size=(BATCH, HEADS, ROWS, DIM)) * (2, 1, 0.5, 1, 1) + rng.normal(size=(BATCH, HEADS, 1, DIM))
    value = rng.normal(size=(BATCH, HEADS, ROWS, VALUE_DIM))
    mask = np.arange(ROWS)[None, :] < np.array(LENGTHS)[:, None]
    return query.astype(np.float32), key.astype(np.float32), value.astype(np.float32), mask


def run(method: Method) -> tuple[np.ndarray, Measured]:
    query, key, value, mask = inputs()
    arrays = (jnp.asarray(array) for array in (query, key, value))
    return jax.tree.map(np.asarray, attend_by(method, *arrays, mask, np.ones((BATCH, QUERIES), bool)))


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def check(method: Method, select, compensate=None) -> None:
    """`select(query, key, place)` gives rows and bytes, in float64 and of valid rows only."""
    output, measured = run(method)
    query, key, value, _ = (array.astype(np.float64) for array in inputs())
    for batch, head, number in np.ndindex(BATCH, HEADS, QUERIES):
        n, place = LENGTHS[batch], (batch, head, number)
        q, k, v = query[place], key[batch, head, :n], value[batch, head, :n]
        rows, spent = select(q, k, place)
        rows = sorted(rows)
        weights = softmax(k @ q)
        exact = weights @ v
        expected = softmax(k[rows] @ q) @ v[rows] if rows else np.zeros(VALUE_DIM)
        if compensate is not None:
            alpha = compensate(q, k, rows)
            expected = alpha * expected + (1 - alpha) * v.mean(0)
        np.testing.assert_allclose(output[place], expected, rtol=0, atol=2e-5)
        top = np.argsort(-weights)[:5]
        wanted = Measured(
            spent,
            n * PRICE,
            weights[rows].sum(),
            np.isin(top, rows).mean(),
            np.linalg.norm(expected - exact) / np.linalg.norm(exact),
        )
        for name, found, number_wanted in zip(Measured._fields, measured, wanted, strict=True):
            assert found[place] == pytest.approx(number_wanted, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "name", ["oracle top k", "exact top k", "SparQ", "SparQ, mean value", "Quest", "sliding window"]
)
def test_baselines(name: str, share: float) -> None:
    columns = num_columns(share, DIM, VALUE_DIM)

    def select(query, key, place):
        valid, budget = list(range(len(key))), share * len(key) * PRICE
        if name == "oracle top k":
            return baseline_oracles.known_oracle(query, key, valid, budget, VALUE_DIM, 2)
        if name == "exact top k":
            return baseline_oracles.exact_oracle(query, key, valid, budget, VALUE_DIM, 2)
        if name == "sliding window":
            return baseline_oracles.window_oracle(key, valid, budget, VALUE_DIM, 2, 4)
        if name == "Quest":
            return baseline_oracles.quest_oracle(query, key, valid, budget, VALUE_DIM, 2, 3)
        rows, spent = baseline_oracles.sparq_oracle(query, key, valid, budget, VALUE_DIM, 2, columns)
        return rows, spent + (2 * VALUE_DIM if "mean" in name else 0)

    compensate = functools.partial(baseline_oracles.sparq_weight_oracle, num_columns=columns)
    check(Baseline(name=name, share=share, page_size=3), select, compensate if "mean" in name else None)


def test_sign_hash() -> None:
    directions = np.asarray(hash_keys(jnp.zeros((1, DIM)), jax.random.key(0)).directions, np.float64)

    def select(query, key, place):
        budget = 0.6 * len(key) * PRICE
        return baseline_oracles.hash_oracle(query, key, directions, list(range(len(key))), budget, VALUE_DIM, 2, 0.0)

    check(Baseline(name="sign hash", share=0.6), select)


def test_random_rows_differ_from_query_to_query() -> None:
    _, measured = run(Baseline(name="random", share=0.35))
    np.testing.assert_array_equal(measured.bytes, np.floor(0.35 * measured.exact_bytes / PRICE) * PRICE)
    assert len(np.unique(measured.mass)) == measured.mass.size


def conditioned(key: np.ndarray, method: Search) -> tuple[np.ndarray, np.ndarray]:
    """Mean and rotation, in float64; what signs the components have is no matter to products."""
    mean = key.mean(0)
    _, vectors = np.linalg.eigh(np.cov(key.T, bias=True))
    return mean if method.center else 0 * mean, vectors if method.rotate else np.eye(DIM)


SEARCHES = [Search(iterations=share) for share in SHARES] + [
    Search(iterations=0.35, threshold_percent=30, center=center, rotate=rotate, shared=shared)
    for center, rotate, shared in [(True, False, False), (False, True, False), (True, True, False), (True, True, True)]
]


@pytest.mark.parametrize("method", SEARCHES, ids=lambda method: f"{method.name}, {method.iterations}")
def test_searches(method: Search) -> None:
    keys = inputs()[1].astype(np.float64)

    def select(query, key, place):
        fitted = key
        if method.shared:
            fitted = np.concatenate([keys[batch, place[1], :n] for batch, n in enumerate(LENGTHS)])
        mean, rotation = conditioned(fitted, method)
        iterations = int(np.ceil(method.iterations * len(key)))
        greedy, first = greedy_oracle(query @ rotation, (key - mean) @ rotation, iterations)
        candidates = np.flatnonzero(greedy > 0) if (greedy > 0).any() else np.array([first])
        scores = key @ query
        largest = scores[candidates].max()
        kept = [row for row in candidates if np.exp(scores[row] - largest) >= method.threshold_percent / 100]
        spent = 2 * iterations * (2 + 4) + len(candidates) * DIM * 2 + len(kept) * VALUE_DIM * 2
        return kept, spent

    check(method, select)


def test_conditioning_changes_what_is_found() -> None:
    plain = run(Search(iterations=0.35))[1].mass
    assert all((run(Search(iterations=0.35, **{word: True}))[1].mass != plain).any() for word in ("center", "rotate"))


def test_masked_queries_ask_for_nothing() -> None:
    query, key, value, mask = inputs()
    asking = np.array([[True, True, False], [True, False, False]])
    some = attend_by(Search(iterations=0.35), *map(jnp.asarray, (query, key, value)), mask, asking)
    for found, wanted in zip(jax.tree.leaves(some), jax.tree.leaves(run(Search(iterations=0.35))), strict=True):
        for batch, count in enumerate((2, 1)):
            np.testing.assert_allclose(found[batch, :, :count], wanted[batch, :, :count], rtol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        Search(iterations=0.35),
        Search(iterations=0.35, center=True, rotate=True),
        *(Baseline(name=name, share=0.45, page_size=3) for name in ("SparQ, mean value", "Quest", "sign hash")),
    ],
    ids=lambda method: method.name,
)
def test_a_step_is_a_query_of_the_rows_up_to_its_own(method: Method) -> None:
    """By `attend_by` with those rows alone; conditioning is fitted on what the first step sees, which is the first step's case."""
    steps, group = 3, 2
    rng = np.random.default_rng(7)
    query = rng.normal(size=(HEADS * group, steps, DIM)).astype(np.float32)
    _, keys, values, _ = inputs()
    key, value = keys[0], values[0]
    output, measured = attend_steps_by(method, StepInputs(query, key, value[..., :DIM]))
    for step in range(1 if isinstance(method, Search) and method.center else steps):
        seen = ROWS - steps + step + 1
        arrays = (
            query.reshape(1, HEADS, group * steps, DIM)[:, :, step::steps],
            key[None, :, :seen],
            value[None, :, :seen],
        )
        one = (jnp.asarray(array) for array in (*arrays[:2], arrays[2][..., :DIM]))
        found = attend_by(method, *one, np.ones((1, seen), bool), np.ones((1, group), bool))
        for whole, part in zip(jax.tree.leaves((output, measured)), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(whole[:, step].ravel(), np.asarray(part)[0].ravel(), rtol=1e-4, atol=1e-5)


def test_what_is_refused() -> None:
    with pytest.raises((ValueError, TypeError), match="oracle top k"):
        Baseline(name="oracle", share=0.5)
    for share in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="share: wanted"):
            Baseline(name="Quest", share=share)
