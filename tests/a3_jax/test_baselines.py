"""Every baseline against a slow one, in whole numbers where order could depend on rounding; and its bytes against the shared formula."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.baselines.budget import Selection
from a3_jax.baselines.quest import page_bounds, quest
from a3_jax.baselines.references import exact_top_k, oracle_top_k, random_rows, sliding_window
from a3_jax.baselines.sign_hash import hash_keys, sign_hash
from a3_jax.baselines.sparq import sparq
from a3_jax.metrics import bytes_touched
from tests.a3_jax import baseline_oracles

CASES, NUM_ROWS, DIM, VALUE_DIM, BITS = 400, 22, 6, 5, 16


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
        lambda q, k, m, b: sparq(q, k, budget=b, mask=m, num_columns=2, **SETTINGS),
        lambda q, k, valid, b: baseline_oracles.sparq_oracle(q, k, valid, b, VALUE_DIM, 2, 2),
    ),
    "quest": (
        lambda q, k, m, b: quest(q, k, budget=b, mask=m, page_size=4, **SETTINGS),
        lambda q, k, valid, b: baseline_oracles.quest_oracle(q, k, valid, b, VALUE_DIM, 2, 4),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_rows_and_bytes(name: str) -> None:
    select, oracle = METHODS[name]
    query, key, mask, budget = cases()
    selection = run_many(select, query, key, mask, budget)
    for case in range(CASES):
        valid = np.flatnonzero(mask[case]).tolist()
        rows, spent = oracle(query[case].astype(float), key[case].astype(float), valid, float(budget[case]))
        assert set(np.flatnonzero(selection.selected[case]).tolist()) == rows
        assert selection.bytes_touched[case] == spent
        assert spent <= budget[case]
    assert selection.selected.any(1).mean() > 0.3


@pytest.mark.parametrize("angle_bias", [0.0, 0.127])
def test_sign_hash(angle_bias: float) -> None:
    query, key, mask, budget = cases()
    rng = np.random.default_rng(1)
    # No whole numbers: a projection of 0 would have a sign that depends on rounding.
    query, key = (array + rng.normal(size=array.shape).astype(np.float32) for array in (query, key))
    hashed = jax.jit(jax.vmap(lambda key: hash_keys(key, jax.random.PRNGKey(3), num_bits=BITS)))(key)
    selection = run_many(
        lambda q, h, m, b: sign_hash(q, h, budget=b, mask=m, angle_bias=angle_bias, **SETTINGS),
        query,
        hashed,
        mask,
        budget,
    )
    directions = np.asarray(hashed.directions, np.float64)
    for start in range(0, BITS, DIM):
        basis = directions[0, start : start + DIM]
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), rtol=0, atol=1e-6)
    for case in range(CASES):
        valid = np.flatnonzero(mask[case]).tolist()
        rows, spent = baseline_oracles.hash_oracle(
            query[case].astype(float),
            key[case].astype(float),
            directions[case],
            valid,
            float(budget[case]),
            VALUE_DIM,
            2,
            angle_bias,
        )
        assert set(np.flatnonzero(selection.selected[case]).tolist()) == rows
        assert selection.bytes_touched[case] == pytest.approx(spent, rel=1e-6)


class TestRandom:
    def test_number_and_bytes(self) -> None:
        query, key, mask, budget = cases()
        keys = jax.random.split(jax.random.PRNGKey(0), CASES)
        selection = run_many(
            lambda q, k, r, m, b: random_rows(q, k, r, budget=b, mask=m, **SETTINGS), query, key, keys, mask, budget
        )
        count = np.minimum(mask.sum(1), budget // 22)
        np.testing.assert_array_equal(selection.selected.sum(1), count)
        np.testing.assert_array_equal(selection.bytes_touched, count * 22)
        assert not (selection.selected & ~mask).any()

    def test_every_row_is_as_likely(self) -> None:
        keys = jax.random.split(jax.random.PRNGKey(1), 2000)
        selection = run_many(lambda r: random_rows(jnp.ones(DIM), jnp.ones((8, DIM)), r, budget=44, **SETTINGS), keys)
        # 2 of 8 rows, five standard deviations.
        assert (abs(selection.selected.mean(0) - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5).all()


def test_bytes_agree_with_those_of_a3() -> None:
    """k rows cost what `bytes_touched` says for as many candidates and kept rows; what selects them comes on top."""
    query, key, _, budget = cases()
    mask = np.ones((CASES, NUM_ROWS), bool)
    sizes = {"key_dim": DIM, "value_dim": VALUE_DIM, "element_bytes": 2}
    overhead = {"oracle_top_k": 0, "sliding_window": 0, "sparq": NUM_ROWS * 2 * 2, "quest": 6 * 2 * DIM * 2}
    for name, fixed in overhead.items():
        selection = run_many(METHODS[name][0], query, key, mask, budget)
        bought = selection.selected.any(1)
        count = selection.selected.sum(1)
        if name == "quest":
            count = 4 * selection.selected.reshape(CASES, -1)[:, ::4].sum(1)  # pages are read whole
        np.testing.assert_array_equal(
            selection.bytes_touched[bought], fixed + bytes_touched(0, count, count, **sizes)[bought]
        )
    everything = exact_top_k(jnp.asarray(query[0]), jnp.asarray(key[0]), budget=10**6, **SETTINGS)
    assert everything.bytes_touched == bytes_touched(0, NUM_ROWS, NUM_ROWS, **sizes)


def test_no_selection_of_as_many_rows_has_more_weight_than_the_oracle() -> None:
    query, key, mask, budget = cases()
    weights = np.where(mask, np.exp(np.einsum("bd,bnd->bn", query, key) / 8), 0)
    best = run_many(METHODS["oracle_top_k"][0], query, key, mask, budget)
    for name in ("sparq", "quest", "sliding_window"):
        other = run_many(METHODS[name][0], query, key, mask, budget)
        assert ((weights * other.selected).sum(1) <= (weights * best.selected).sum(1) * (1 + 1e-6)).all()


def test_all_columns_of_sparq_are_the_exact_top() -> None:
    query, key, mask, _ = cases()
    both = run_many(
        lambda q, k, m, r: (
            sparq(q, k, budget=10 * 22 + 22 * DIM * 2, num_columns=r, mask=m, **SETTINGS).selected,
            oracle_top_k(q, k, budget=10 * 22 + (22 - jnp.sum(m)) * DIM * 2, mask=m, **SETTINGS).selected,
        ),
        query,
        key,
        mask,
        np.full(CASES, DIM, np.int32),
    )
    np.testing.assert_array_equal(*both)


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
