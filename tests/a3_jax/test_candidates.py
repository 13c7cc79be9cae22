"""The forms of the greedy search: one class of tests for all, against heaps and pointers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from a3_jax.candidates.selection import greedy_scores, greedy_search
from a3_jax.sorted_keys import SortedKeys, sort_keys
from tests.a3_jax.selection_oracles import greedy_one_register, greedy_oracle

FORMS = ("dense", "sorted", "threshold", "sequential")
CASES = 400

Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@functools.cache
def cases(kind: str, num_rows: int, num_columns: int) -> Case:
    """Queries, keys, numbers of iterations and masks. Small integers tie often; some keys repeat, some products are all negative."""
    rng = np.random.default_rng([num_rows, num_columns, kind == "int"])
    shape = (CASES, num_rows, num_columns)
    if kind == "int":
        query, key = rng.integers(-2, 3, (CASES, num_columns)), rng.integers(-3, 4, shape)
    else:
        query, key = rng.normal(size=(CASES, num_columns)), rng.normal(size=shape)
        query[::5] = rng.integers(-1, 2, query[::5].shape)
        key[1::5] = np.round(key[1::5])
    key[2::7] = key[2::7, :1]  # all rows alike
    query[3::7], key[3::7] = np.abs(query[3::7]), -np.abs(key[3::7])
    key[4::31] = 0
    iterations = rng.integers(1, num_rows * num_columns + 4, CASES)
    mask = rng.random((CASES, num_rows)) < 0.7
    mask[: CASES // 4], mask[-1] = True, False
    dtype = np.int32 if kind == "int" else np.float32
    return query.astype(dtype), key.astype(dtype), iterations.astype(np.int32), mask


@functools.cache
def expected(kind: str, shape: tuple[int, int], masked: bool, skip: bool) -> tuple[np.ndarray, np.ndarray]:
    found = [
        greedy_oracle(query, key, count, mask=mask if masked else None, skip_heuristic=skip)
        for query, key, count, mask in zip(*cases(kind, *shape), strict=True)
    ]
    return np.stack([scores for scores, _ in found]), np.array([row for _, row in found])


@functools.cache
def prepared(kind: str, num_rows: int, num_columns: int) -> SortedKeys:
    return jax.jit(jax.vmap(sort_keys))(cases(kind, num_rows, num_columns)[1])


# Kind, shape, mask, heuristic: enough of them to meet every line of every form; the slow ones are the rest.
COMBINATIONS = (
    ("float", (5, 3), True, True),
    ("int", (5, 3), True, False),
    ("float", (6, 1), True, True),
    ("int", (1, 3), False, True),
)
ALL_COMBINATIONS = itertools.product(("int", "float"), ((1, 1), (6, 1), (1, 3), (5, 3)), (True, False), (True, False))
SLOW = [pytest.param(*one, marks=pytest.mark.slow) for one in ALL_COMBINATIONS if one not in COMBINATIONS]


@pytest.mark.parametrize("form", FORMS)
class TestForms:
    @pytest.mark.parametrize(("kind", "shape", "masked", "skip"), [*COMBINATIONS, *SLOW])
    def test_bits_of_the_oracle(self, form: str, kind: str, shape: tuple[int, int], masked: bool, skip: bool) -> None:
        def search(query: Array, keys: SortedKeys, count: Array, mask: Array) -> tuple[Array, ...]:
            return greedy_search(
                query,
                keys,
                num_iterations=count,
                max_iterations=shape[0] * shape[1] + 4,
                mask=mask if masked else None,
                skip_heuristic=skip,
                implementation=form,
            )

        query, _, iterations, mask = cases(kind, *shape)
        scores, rows, counts = jax.jit(jax.vmap(search))(query, prepared(kind, *shape), iterations, mask)
        want_scores, want_rows = expected(kind, shape, masked, skip)
        np.testing.assert_array_equal(np.asarray(scores), want_scores)
        valid = want_rows >= 0
        np.testing.assert_array_equal(np.asarray(rows)[valid], want_rows[valid])
        num_valid = mask.sum(1) if masked else shape[0]
        np.testing.assert_array_equal(np.asarray(counts), np.minimum(iterations, num_valid * shape[1]))

    def test_ties_where_places_do_not_fit_fifteen_bits(self, form: str) -> None:
        query, key = big_case()
        assert key.size > 2**15
        keys = sort_keys(jnp.asarray(key))
        scores = jax.jit(functools.partial(greedy_scores, num_iterations=300, implementation=form))(query, keys)
        np.testing.assert_array_equal(np.asarray(scores), big_expected())


@functools.cache
def big_case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return rng.integers(-2, 3, 64).astype(np.int32), rng.integers(-3, 4, (520, 64)).astype(np.int32)


@functools.cache
def big_expected() -> np.ndarray:
    return greedy_oracle(*big_case(), 300)[0]


def test_bfloat16_is_multiplied_in_float32() -> None:
    query, key = (jnp.asarray(array[:50], jnp.bfloat16) for array in cases("float", 5, 3)[:2])
    search = functools.partial(greedy_scores, num_iterations=9)
    scores = jax.jit(jax.vmap(lambda query, key: search(query, sort_keys(key))))(query, key)
    assert scores.dtype == jnp.float32
    wide = (np.asarray(array).astype(np.float32) for array in (query, key))
    want = [greedy_oracle(one_query, one_key, 9)[0] for one_query, one_key in zip(*wide, strict=True)]
    np.testing.assert_array_equal(np.asarray(scores), np.stack(want))


def test_heaps_and_one_register_agree_where_nothing_is_rounded() -> None:
    """The two oracles, written apart: pointers and two registers a row; all products sorted and one register."""
    for query, key, count, _ in zip(*cases("int", 5, 3), strict=True):
        for skip in (True, False):
            pointers, _ = greedy_oracle(query, key, count, skip_heuristic=skip)
            np.testing.assert_array_equal(pointers, greedy_one_register(query, key, count, skip_heuristic=skip))
