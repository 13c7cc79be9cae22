"""Bounds against every row's score, exact top rows against sorting all of them, pops against products in Python."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.candidates.selection import greedy_scores
from a3_jax.certificate import (
    Certificate,
    TopRows,
    certified_rows,
    certify,
    check_order,
    count_max_pops,
    search_top_k,
    unseen_weight,
)
from a3_jax.sorted_keys import sort_keys

NUM_ROWS, DIM, CASES = 12, 4, 600
NUMBERS = st.floats(-(2.0**20), 2.0**20, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-20)


def cases(dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    if dtype is np.int32:
        query, key = rng.integers(-3, 4, (CASES, DIM)), rng.integers(-3, 4, (CASES, NUM_ROWS, DIM))
    else:
        query, key = rng.normal(size=(CASES, DIM)), rng.normal(size=(CASES, NUM_ROWS, DIM))
        query[::5, 1] = 0
        key[1::5] = np.round(key[1::5])
    mask = rng.random((CASES, NUM_ROWS)) < rng.choice([0.3, 0.8, 1], (CASES, 1))
    mask[:3] = False
    return query.astype(dtype), key.astype(dtype), mask


def orders(query: np.ndarray, key: np.ndarray, mask: np.ndarray) -> list[list[tuple[float, int]]]:
    """Every column's valid products, falling, with their rows."""
    rows = np.flatnonzero(mask)
    columns = []
    for j in range(DIM):
        ascending = sorted((float(key[row, j]), int(row)) for row in rows)
        met = ascending[::-1] if query[j] > 0 else ascending
        columns.append([(float(query[j]) * value, row) for value, row in met])
    return columns


@functools.partial(jax.jit, static_argnames="num_iterations")
def certificates(
    query: jax.Array, key: jax.Array, mask: jax.Array, num_iterations: int
) -> tuple[jax.Array, Certificate, jax.Array]:
    def one(query: jax.Array, key: jax.Array, mask: jax.Array) -> tuple[jax.Array, Certificate, jax.Array]:
        keys = sort_keys(key)
        pops = count_max_pops(query, keys, num_iterations=num_iterations, mask=mask)
        certificate = certify(query, keys, pops, mask=mask)
        scores = key @ query
        weight = jnp.float32(0) if scores.dtype == jnp.int32 else unseen_weight(scores, certificate, mask=mask)
        return pops, certificate, weight

    return jax.vmap(one)(query, key, mask)


class TestCertificate:
    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    def test_pops_rows_and_bounds(self, dtype: type) -> None:
        query, key, mask = cases(dtype)
        pops, certificate, _ = jax.tree.map(np.asarray, certificates(query, key, mask, 10))
        for case in range(CASES):
            columns = orders(query[case], key[case], mask[case])
            entries = [
                (-product, j, place) for j, column in enumerate(columns) for place, (product, _) in enumerate(column)
            ]
            taken = sorted(entries)[:10]
            wanted = [sum(j == column for _, column, _ in taken) for j in range(DIM)]
            if dtype is np.int32:  # products in float64 are not those in float32, and may order otherwise
                assert pops[case].tolist() == wanted
            seen = {columns[j][place][1] for j in range(DIM) for place in range(pops[case, j])}
            assert set(np.flatnonzero(certificate.seen[case]).tolist()) == seen
            unseen = [row for row in np.flatnonzero(mask[case]) if row not in seen]
            scores = key[case].astype(np.float64) @ query[case]
            if unseen:
                heads = sum(columns[j][pops[case, j]][0] for j in range(DIM))
                assert certificate.bound[case] >= max(scores[unseen])
                # No looser than the heads and what rounding of four products of numbers below 5 may do.
                assert certificate.bound[case] <= heads + (0 if dtype is np.int32 else 4 * 25 * 12 * 2**-23)
            elif any(pops[case] >= len(columns[0])):
                assert certificate.bound[case] == (np.iinfo(np.int32).min if dtype is np.int32 else -np.inf)

    def test_certified_rows_are_the_top(self) -> None:
        query, key, mask = cases(np.float32)
        _, certificate, _ = certificates(query, key, mask, 10)
        scores = np.einsum("bnd,bd->bn", key, query)
        certified = np.asarray(jax.vmap(certified_rows)(scores, certificate))
        assert certified.any(1).mean() > 0.1
        for case in range(CASES):
            rest = mask[case] & ~certified[case]
            assert not (certified[case] & ~mask[case]).any()
            if certified[case].any() and rest.any():
                assert scores[case][certified[case]].min() > scores[case][rest].max() - 1e-5

    def test_weight_of_what_was_not_seen_is_bounded(self) -> None:
        query, key, mask = cases(np.float32)
        _, certificate, weight = jax.tree.map(np.asarray, certificates(query, key, mask, 10))
        scores = np.einsum("bnd,bd->bn", key.astype(np.float64), query)
        weights = np.where(mask, np.exp(scores), 0)
        lost = np.where(certificate.seen, 0, weights).sum(1) / np.maximum(weights.sum(1), 1e-30)
        assert (lost <= weight * (1 + 1e-5)).all()
        assert (weight <= 1).all()
        assert (weight[(mask & ~certificate.seen).sum(1) == 0] == 0).all()
        assert (weight < 0.9).any()

    def test_rows_that_a3_finds_were_seen(self) -> None:
        query, key, mask = cases(np.float32)
        pops, certificate, _ = jax.tree.map(np.asarray, certificates(query, key, mask, 10))
        greedy = np.asarray(searches(query, key, mask))
        assert (greedy > 0).any(1).mean() > 0.9
        assert not (greedy > 0)[~certificate.seen].any()
        assert (pops.sum(1) == np.minimum(10, mask.sum(1) * DIM)).all()


@jax.jit
@jax.vmap
def searches(query: jax.Array, key: jax.Array, mask: jax.Array) -> jax.Array:
    return greedy_scores(query, sort_keys(key), num_iterations=10, mask=mask)


@functools.partial(jax.jit, static_argnames=("k", "order", "pops_per_step"))
def top(query: jax.Array, key: jax.Array, mask: jax.Array, k: int, order: str, pops_per_step: int | None) -> TopRows:
    def one(query: jax.Array, key: jax.Array, mask: jax.Array) -> TopRows:
        return search_top_k(query, key, sort_keys(key), k=k, order=order, pops_per_step=pops_per_step, mask=mask)  # pyright: ignore[reportArgumentType]

    return jax.vmap(one)(query, key, mask)


class TestTopRows:
    @pytest.mark.parametrize(
        ("dtype", "order", "pops"),
        [
            (np.float32, "depth", None),
            (np.float32, "largest", 3),
            (np.int32, "depth", None),
            (np.int32, "largest", None),
        ],
    )
    def test_equals_sorting_all_scores(self, dtype: type, order: str, pops: int | None) -> None:
        query, key, mask = cases(dtype)
        found = jax.tree.map(np.asarray, top(query, key, mask, 3, order, pops))
        scores = np.asarray(jax.vmap(jnp.matmul)(key, query))
        for case in range(CASES):
            wanted = sorted(np.flatnonzero(mask[case]), key=lambda row: (-scores[case, row].astype(float), row))[:3]
            assert found.rows[case][: len(wanted)].tolist() == wanted
            np.testing.assert_array_equal(found.scores[case][: len(wanted)], scores[case][wanted])
            assert found.pops[case] <= mask[case].sum() * DIM
            assert found.num_seen[case] <= mask[case].sum()

    def test_depth_is_the_threshold_algorithm(self) -> None:
        """Fagin's, one depth after the other, in whole numbers."""
        query, key, mask = cases(np.int32)
        found = jax.tree.map(np.asarray, top(query, key, mask, 3, "depth", None))
        for case in range(CASES):
            columns = orders(query[case], key[case], mask[case])
            scores, seen, depth, length = key[case] @ query[case], set(), 0, int(mask[case].sum())
            while depth < length:
                best = sorted((int(scores[row]) for row in seen), reverse=True)[:3]
                if len(best) == 3 and best[-1] > sum(column[depth][0] for column in columns):
                    break
                seen |= {column[depth][1] for column in columns}
                depth += 1
            assert found.pops[case] == depth * DIM
            assert found.num_seen[case] == len(seen)

    def test_stops_early_where_one_row_stands_out(self) -> None:
        rng = np.random.default_rng(1)
        key = rng.uniform(-1, 1, (CASES, NUM_ROWS, DIM)).astype(np.float32)
        key[:, 5] = 10
        mask = np.ones((CASES, NUM_ROWS), bool)
        query = np.abs(rng.normal(size=(CASES, DIM))).astype(np.float32) + 0.1
        for order, pops in (("depth", None), ("largest", 3)):
            found = top(query, key, mask, 3, order, pops)
            assert (np.asarray(found.rows)[:, 0] == 5).all()

    @hypothesis.given(st.lists(NUMBERS, min_size=1, max_size=6), st.integers(0, 2**32 - 1))
    @hypothesis.settings(max_examples=15)
    def test_any_numbers(self, numbers: list[float], seed: int) -> None:
        """Few numbers of very different size: dot products round, cancel and are equal."""
        rng = np.random.default_rng(seed)
        query, key = (rng.choice(np.float32(numbers), shape) for shape in ((CASES, DIM), (CASES, NUM_ROWS, DIM)))
        found = top(query, key, np.ones((CASES, NUM_ROWS), bool), 3, "depth", None)
        scores = np.asarray(products_of(query, key))
        order = np.argsort(-scores, axis=1, kind="stable")
        np.testing.assert_array_equal(found.rows, order[:, :3])


@jax.jit
@jax.vmap
def products_of(query: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.matmul(key, query)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 13}, "1 to the number of rows, 12, got 13"),
        ({"k": 1, "pops_per_step": 3}, 'None with "depth", got 3'),
        ({"k": 1, "order": "largest", "pops_per_step": 0}, "at least 1"),
    ],
)
def test_what_does_not_fit(settings: dict, message: str) -> None:
    key = jnp.ones((NUM_ROWS, DIM))
    with pytest.raises(ValueError, match=message):
        search_top_k(jnp.ones(DIM), key, sort_keys(key), **settings)


def test_an_unknown_order() -> None:
    with pytest.raises(ValueError, match="wanted one of depth, largest, got 'width'"):
        check_order("width")
