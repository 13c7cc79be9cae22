"""Every baseline against a slow one, in whole numbers where order could depend on rounding; and its bytes against the shared formula."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.baselines.budget import Selection, take_largest
from a3_jax.baselines.quest import page_bounds, quest
from a3_jax.baselines.references import exact_top_k, oracle_top_k, random_rows, sliding_window
from a3_jax.baselines.sign_hash import hash_keys, sign_hash
from a3_jax.baselines.sparq import mix_mean_value, sparq, sparq_weight
from a3_jax.metrics import bytes_touched
from tests.a3_jax import baseline_oracles

CASES, NUM_ROWS, DIM, VALUE_DIM, BITS = 400, 22, 6, 5, 15


def cases() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Query, key, mask and budget; products and sums of these numbers are exact in float32, and many are equal."""
    rng = np.random.default_rng(0)
    query, key = rng.integers(-4, 5, (CASES, DIM)), rng.integers(-4, 5, (CASES, NUM_ROWS, DIM))
    mask = rng.random((CASES, NUM_ROWS)) < rng.choice([0.3, 0.9, 1], (CASES, 1))
    mask[:4] = False
    budget = rng.integers(0, 800, CASES)
    budget[::9] = 10**6
    budget[::10] = 22 * rng.integers(0, 30, len(budget[::10]))  # exactly so many rows
    return query.astype(np.float32), key.astype(np.float32), mask, budget.astype(np.float32)


def run_many(select: Callable[..., Selection], *arrays: np.ndarray) -> Selection:
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(select))(*arrays))


@functools.cache
def selections(name: str) -> Selection:
    return run_many(METHODS[name][0], *cases())


SETTINGS = {"value_dim": VALUE_DIM, "element_bytes": 2}
METHODS: dict[str, tuple[Callable[..., Selection], Callable[..., tuple[set[int], float]]]] = {
    "exact_top_k": (
        lambda q, k, m, b: exact_top_k(q, k, budget=b, mask=m, **SETTINGS),
        lambda q, k, valid, b: baseline_oracles.exact_oracle(q, k, valid, b, VALUE_DIM, 2),
    ),
    "oracle_top_k": (
        lambda q, k, m, b: oracle_top_k(q, k, budget=b, mask=m, **SETTINGS),
        lambda q, k, valid, b: baseline_oracles.known_oracle(q, k, valid, b, VALUE_DIM, 2),
    ),
    "sliding_window": (
        lambda q, k, m, b: sliding_window(q, k, budget=b, mask=m, sinks=3, **SETTINGS),
        lambda q, k, valid, b: baseline_oracles.window_oracle(k, valid, b, VALUE_DIM, 2, 3),
    ),
    "sparq": (
        lambda q, k, m, b: sparq(q, k, budget=b, mask=m, num_columns=1 + b.astype(jnp.int32) % DIM, **SETTINGS),
        lambda q, k, valid, b: baseline_oracles.sparq_oracle(q, k, valid, b, VALUE_DIM, 2, 1 + int(b) % DIM),
    ),
    "quest": (
        lambda q, k, m, b: quest(q, k, budget=b, mask=m, page_size=4, **SETTINGS),
        lambda q, k, valid, b: baseline_oracles.quest_oracle(q, k, valid, b, VALUE_DIM, 2, 4),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_rows_and_bytes(name: str) -> None:
    query, key, mask, budget = cases()
    selection, oracle = selections(name), METHODS[name][1]
    for case in range(CASES):
        valid = np.flatnonzero(mask[case]).tolist()
        rows, spent = oracle(query[case].astype(float), key[case].astype(float), valid, float(budget[case]))
        assert set(np.flatnonzero(selection.selected[case]).tolist()) == rows
        assert selection.bytes_touched[case] == spent
        assert spent <= budget[case]
    assert selection.selected.any(1).mean() > 0.3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "int8", "uint8"])
def test_the_largest_rows(dtype: str) -> None:
    """By sorting in Python, any count: ties, both zeros, infinities and NaN, rows that do not take part."""
    rng = np.random.default_rng(1)
    scores = jnp.asarray(rng.integers(0 if dtype == "uint8" else -4, 5, (300, 13)), dtype)
    if jnp.issubdtype(scores.dtype, jnp.floating):
        odd = jnp.asarray([-jnp.inf, jnp.inf, jnp.nan, -0.0, 0.0, jnp.finfo(dtype).tiny, jnp.finfo(dtype).min], dtype)
        scores = jnp.where(rng.random(scores.shape) < 0.4, odd[rng.integers(0, len(odd), scores.shape)], scores)
    valid, counts = rng.random(scores.shape) < 0.7, rng.integers(0, 16, len(scores)).astype(np.int32)
    found = np.asarray(jax.jit(jax.vmap(take_largest))(scores, counts, valid))
    for row, numbers in enumerate(np.asarray(scores.astype(jnp.float32)).tolist()):
        places = [place for place in range(len(numbers)) if valid[row, place]]
        places.sort(key=lambda place: (math.isnan(numbers[place]), -numbers[place], place))
        assert set(np.flatnonzero(found[row])) == set(places[: counts[row]])


def test_sign_hash() -> None:
    query, key, mask, budget = cases()
    angle_bias = np.where(np.arange(CASES) % 2, 0.127, 0).astype(np.float32)
    rng = np.random.default_rng(1)
    # No whole numbers: a projection of 0 would have a sign that depends on rounding.
    query, key = (array + rng.normal(size=array.shape).astype(np.float32) for array in (query, key))
    hashed = jax.jit(jax.vmap(lambda key: hash_keys(key, jax.random.PRNGKey(3), num_bits=BITS)))(key)
    selection = run_many(
        lambda q, h, m, b, a: sign_hash(q, h, budget=b, mask=m, angle_bias=a, **SETTINGS),
        query,
        hashed,
        mask,
        budget,
        angle_bias,
    )
    directions = np.asarray(hashed.directions, np.float64)
    # An odd number of bits: with half of them different an estimate is 0 but for rounding.
    for start in range(0, BITS, DIM):
        basis = directions[0, start : start + DIM]
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), rtol=0, atol=1e-6)
    for case in range(0, CASES, 4):
        valid = np.flatnonzero(mask[case]).tolist()
        rows, spent = baseline_oracles.hash_oracle(
            query[case].astype(float),
            key[case].astype(float),
            directions[case],
            valid,
            float(budget[case]),
            VALUE_DIM,
            2,
            float(angle_bias[case]),
        )
        assert set(np.flatnonzero(selection.selected[case]).tolist()) == rows
        assert selection.bytes_touched[case] == pytest.approx(spent, rel=1e-6)


@jax.jit
@jax.vmap
def drawn(key: jax.Array, random_key: jax.Array, mask: jax.Array, budget: jax.Array) -> Selection:
    return random_rows(key[0], key, random_key, budget=budget, mask=mask, **SETTINGS)


def test_random_rows() -> None:
    _, key, mask, budget = cases()
    for seed in range(5):
        keys = jax.random.split(jax.random.PRNGKey(seed), CASES)
        selection = jax.tree.map(np.asarray, drawn(key, keys, mask, budget))
        count = np.minimum(mask.sum(1), budget // 22)
        np.testing.assert_array_equal(selection.selected.sum(1), count)
        np.testing.assert_array_equal(selection.bytes_touched, count * 22)
        assert not (selection.selected & ~mask).any()
    # 6 of 22 rows, five standard deviations.
    evenly = np.asarray(drawn(key, keys, np.ones_like(mask), np.full(CASES, 132, np.float32)).selected)
    share = 6 / 22
    assert (abs(evenly.mean(0) - share) < 5 * (share * (1 - share) / CASES) ** 0.5).all()


def test_bytes_agree_with_those_of_a3() -> None:
    """k rows cost what `bytes_touched` says for as many candidates and kept rows; what selects them comes on top."""
    _, _, mask, budget = cases()
    sizes = {"key_dim": DIM, "value_dim": VALUE_DIM, "element_bytes": 2}
    num_columns = 1 + budget.astype(int) % DIM
    for name, fixed in (("oracle_top_k", 0), ("sliding_window", 0), ("sparq", mask.sum(1) * num_columns * 2)):
        selection = selections(name)
        count = selection.selected.sum(1)
        np.testing.assert_array_equal(
            selection.bytes_touched, np.where(count > 0, fixed + bytes_touched(0, count, count, **sizes), 0)
        )
    num_valid, count = mask.sum(1), selections("exact_top_k").selected.sum(1)
    np.testing.assert_array_equal(
        selections("exact_top_k").bytes_touched, np.where(count > 0, bytes_touched(0, num_valid, count, **sizes), 0)
    )


def test_no_selection_within_the_same_bytes_has_more_weight_than_the_oracle() -> None:
    query, key, mask, _ = cases()
    weights = np.where(mask, np.exp(np.einsum("bd,bnd->bn", query, key) / 8), 0)
    best = (weights * selections("oracle_top_k").selected).sum(1)
    for name in ("exact_top_k", "sparq", "quest", "sliding_window"):
        assert ((weights * selections(name).selected).sum(1) <= best * (1 + 1e-6)).all()


def test_bounds_of_pages_are_bounds() -> None:
    _, key, mask, _ = cases()
    bounds = jax.vmap(lambda k, m: page_bounds(k, page_size=4, mask=m))(jnp.asarray(key), jnp.asarray(mask))
    smallest, largest = (np.repeat(np.asarray(bound), 4, axis=1)[:, :NUM_ROWS] for bound in bounds)
    assert (smallest[mask] <= key[mask]).all()
    assert (largest[mask] >= key[mask]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: page_bounds(key, page_size=0), "page_size: wanted at least 1 row, got 0"),
        (lambda key: hash_keys(key, jax.random.PRNGKey(0), num_bits=0), "num_bits: wanted at least 1, got 0"),
    ],
)
def test_what_does_not_fit(call: Callable[[jax.Array], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((3, DIM)))


def test_weight_of_sparq() -> None:
    rng = np.random.default_rng(4)
    query, key = rng.normal(size=(CASES, DIM)), rng.normal(size=(CASES, NUM_ROWS, DIM))
    mask = cases()[2]
    selected = rng.random((CASES, NUM_ROWS)) < 0.4
    columns = 1 + np.arange(CASES) % DIM
    query[5] = 0

    def weigh(*arrays: jax.Array) -> jax.Array:
        q, k, s, m, r = arrays
        return sparq_weight(q, k, s, num_columns=r, scale=0.5, mask=m)

    arrays = (query.astype(np.float32), key.astype(np.float32), selected, mask, columns.astype(np.int32))
    weights = np.asarray(jax.jit(jax.vmap(weigh))(*arrays))
    for case in range(CASES):
        valid = np.flatnonzero(mask[case])
        rows = [place for place, row in enumerate(valid) if selected[case, row]]
        expected = 1.0
        if len(valid) and case == 5:
            expected = len(rows) / len(valid)
        elif len(valid):
            expected = baseline_oracles.sparq_weight_oracle(
                query[case] / 2, key[case, valid], rows, num_columns=int(columns[case])
            )
        assert weights[case] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(
        mix_mean_value(jnp.array([4.0, 8.0]), jnp.float32(0.75), jnp.array([0.0, 4.0])), [3.0, 7.0], rtol=1e-6
    )
