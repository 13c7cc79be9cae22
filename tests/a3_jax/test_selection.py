"""Candidate selection: the paper's example, what must hold for any keys, iterations, and what each form touches."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.candidates.columns import valid_order
from a3_jax.candidates.iterations import resolve_iterations
from a3_jax.candidates.selection import form, greedy_scores, select_candidates
from a3_jax.sorted_keys import SortedKeys, sort_keys
from tests.a3_jax.jaxprs import largest_intermediate, primitives

# Figures 6 and 8.
KEY = np.array([[-0.6, 0.1, 0.8], [0.1, -0.2, -0.9], [0.8, 0.6, 0.7], [0.5, 0.7, 0.5]], np.float32)
QUERY = np.array([0.8, -0.3, 0.4], np.float32)
FORMS = ("dense", "sorted", "threshold", "sequential")


@jax.jit
def figure(query: jax.Array, keys: SortedKeys, count: jax.Array) -> jax.Array:
    return greedy_scores(query, keys, num_iterations=count, max_iterations=3)


class TestFigures:
    def test_sorted_columns_of_figure_8(self) -> None:
        keys = sort_keys(jnp.asarray(KEY))
        np.testing.assert_array_equal(
            np.asarray(keys.values),
            np.array([[-0.6, 0.1, 0.5, 0.8], [-0.2, 0.1, 0.6, 0.7], [-0.9, 0.5, 0.7, 0.8]], np.float32),
        )
        np.testing.assert_array_equal(np.asarray(keys.rows), [[0, 1, 3, 2], [1, 0, 2, 3], [1, 3, 2, 0]])
        assert keys.rows.dtype == jnp.int32

    @pytest.mark.parametrize(
        ("num_iterations", "scores"),
        [(1, [-0.48, 0, 0.64, 0]), (2, [-0.48, -0.36, 0.64, 0.40]), (3, [-0.16, -0.36, 0.64, 0.19])],
    )
    def test_greedy_scores_of_figure_6(self, num_iterations: int, scores: list[float]) -> None:
        found = figure(jnp.asarray(QUERY), sort_keys(jnp.asarray(KEY)), jnp.int32(num_iterations))
        np.testing.assert_allclose(np.asarray(found), scores, atol=1e-6)

    def test_candidates_of_figure_6(self) -> None:
        select = jax.jit(lambda query, key: select_candidates(query, sort_keys(key), num_iterations=3))
        found = select(jnp.asarray(QUERY), jnp.asarray(KEY))
        assert found.tolist() == [False, False, True, True]

    def test_errata_of_figure_6(self) -> None:
        """Product [1][0] is printed as -0.08; the true scores of rows 1 and 3, printed as -.38 and .19, are -.22 and .39."""
        assert float(KEY[1, 0] * QUERY[0]) == pytest.approx(0.08)
        np.testing.assert_allclose(KEY @ QUERY, [-0.19, -0.22, 0.74, 0.39], atol=1e-6)


@functools.cache
def many(seed: int = 0) -> tuple[jax.Array, jax.Array, SortedKeys]:
    rng = np.random.default_rng(seed)
    key = jnp.asarray(rng.normal(size=(300, 12, 4)), jnp.float32)
    return jnp.asarray(rng.normal(size=(300, 4)), jnp.float32), key, jax.jit(jax.vmap(sort_keys))(key)


@functools.partial(jax.jit, static_argnames="skip_heuristic")
def scores_of(query: jax.Array, keys: SortedKeys, count: jax.Array, skip_heuristic: bool = True) -> jax.Array:
    search = functools.partial(greedy_scores, max_iterations=60, skip_heuristic=skip_heuristic)
    return jax.vmap(lambda query, keys, count: search(query, keys, num_iterations=count))(query, keys, count)


COUNTS = jnp.asarray(np.random.default_rng(1).integers(1, 60, 300), jnp.int32)


class TestProperties:
    def test_at_most_one_candidate_an_iteration(self) -> None:
        query, key, keys = many()
        candidates = jnp.sum(scores_of(query, keys, COUNTS) > 0, axis=1)
        assert (candidates <= jnp.minimum(COUNTS, key.shape[1])).all()

    def test_all_products_without_the_heuristic_are_the_exact_scores(self) -> None:
        query, key, keys = many()
        everything = jnp.full(300, 48, jnp.int32)
        exact = np.einsum("qnd,qd->qn", np.asarray(key, np.float64), np.asarray(query, np.float64))
        magnitude = np.einsum("qnd,qd->qn", np.abs(key), np.abs(query))
        tolerance = (
            8 * np.finfo(np.float32).eps * magnitude
        )  # four products a row, each product and each sum rounded once
        found = np.asarray(scores_of(query, keys, everything, skip_heuristic=False))
        assert (np.abs(found - exact) <= tolerance).all()
        # So the candidates are the rows of positive scores, not all rows: A3 does not tend to exact attention.
        assert ((found > 0) == (exact > 0))[np.abs(exact) > tolerance].all()
        with_heuristic = np.asarray(scores_of(query, keys, everything))
        assert (with_heuristic >= exact - tolerance).all()

    def test_a_longer_query_has_the_same_candidates(self) -> None:
        query, _, keys = many()
        np.testing.assert_array_equal(scores_of(4 * query, keys, COUNTS), 4 * scores_of(query, keys, COUNTS))

    def test_order_of_rows_does_not_matter(self) -> None:
        query, key, keys = many()
        order = np.random.default_rng(2).permutation(key.shape[1])
        permuted = jax.vmap(sort_keys)(key[:, order])
        np.testing.assert_array_equal(scores_of(query, permuted, COUNTS), scores_of(query, keys, COUNTS)[:, order])

    def test_order_of_columns_does_not_matter(self) -> None:
        query, key, keys = many()
        order = np.random.default_rng(2).permutation(key.shape[2])
        permuted = jax.vmap(sort_keys)(key[:, :, order])
        np.testing.assert_array_equal(scores_of(query[:, order], permuted, COUNTS), scores_of(query, keys, COUNTS))

    def test_a_constant_added_to_all_keys_changes_candidates(self) -> None:
        """Softmax does not see it: the score of every row changes by as much."""
        query, key, keys = many()
        shifted = jax.vmap(sort_keys)(key + 1)
        assert ((scores_of(query, keys, COUNTS) > 0) != (scores_of(query, shifted, COUNTS) > 0)).any()

    def test_no_gradient(self) -> None:
        keys = sort_keys(jnp.asarray(KEY))
        gradient = jax.grad(lambda query: greedy_scores(query, keys, num_iterations=3).sum())(jnp.asarray(QUERY))
        assert not gradient.any()


def resolved(num_iterations: Any, num_valid: int | None = None, *, n: int = 10, d: int = 3) -> tuple[int, int]:
    valid = None if num_valid is None else jnp.int32(num_valid)
    iterations = resolve_iterations(num_iterations, max_iterations=None, num_rows=n, num_columns=d, num_valid=valid)
    return iterations.limit, int(iterations.count)


class TestIterations:
    def test_never_more_than_products(self) -> None:
        assert resolved(7) == (7, 7)
        assert resolved(np.int64(31)) == (30, 30)
        assert resolved(10**12) == (30, 30)
        assert resolved(29, 4) == (29, 12)

    def test_a_fraction_is_of_valid_rows_rounded_up(self) -> None:
        assert resolved(0.5) == (5, 5)
        assert resolved(0.5, 5) == (5, 3)
        assert resolved(0.01) == (1, 1)
        assert resolved(0.5, 0) == (5, 0)
        assert resolved(2.0, 4) == (20, 8)
        assert resolved(1e9) == (30, 30)

    @pytest.mark.parametrize(
        ("fraction", "n", "wanted"), [(0.07, 100, 7), (5 / 6, 6, 5), (1 / 3, 9, 3), (0.29, 100, 29)]
    )
    def test_a_fraction_is_the_one_that_was_meant(self, fraction: float, n: int, wanted: int) -> None:
        """0.07 * 100 is above 7 in floats, and 0.29 * 100 below 29."""
        assert resolved(fraction, n=n) == (wanted, wanted)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (0, "at least 1, got 0"),
            (-1.0, "above 0, got -1.0"),
            (float("nan"), "above 0"),
            (float("inf"), "above 0"),
            ("many", "got 'many'"),
            (jnp.int32(3), "max_iterations: wanted the most"),
        ],
    )
    def test_what_is_no_number_of_iterations(self, wrong: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            resolved(wrong)

    def test_arrays_that_are_no_number(self) -> None:
        for wrong in (jnp.float32(0.5), jnp.zeros(2, jnp.int32)):
            with pytest.raises(ValueError, match="one integer and no axes"):
                resolve_iterations(wrong, max_iterations=4, num_rows=3, num_columns=3, num_valid=None)

    def test_unknown_form(self) -> None:
        with pytest.raises(ValueError, match="wanted one of dense, sorted, threshold, sequential, got 'fast'"):
            form("fast")


@pytest.mark.parametrize("name", ["dense", "sorted", "threshold", "sequential"])
def test_what_does_not_fit_is_refused(name: Any) -> None:
    """Indices are clamped and axes of 1 stretched: unchecked, most of these would give some scores."""
    query, keys = jnp.ones(3), SortedKeys(jnp.ones((3, 5)), jnp.zeros((3, 5), jnp.int32))
    wrong: list[tuple[jax.Array, SortedKeys, jax.Array | None, str]] = [
        (jnp.ones(4), keys, None, r"query: wanted \[3\], as sorted_keys say, got \[4\]"),
        (jnp.ones(1), keys, None, r"got \[1\]"),
        (query, keys, jnp.ones(4, bool), r"mask: wanted bool \[5\], as sorted_keys say, got bool \[4\]"),
        (query, SortedKeys(keys.values[:, :0], keys.rows[:, :0]), None, r"neither of them 0, got \[3, 0\]"),
        (query, SortedKeys(keys.values[None], keys.rows[None]), None, "batches are jax.vmap"),
    ]
    for bad_query, bad_keys, mask, message in wrong:
        with pytest.raises(ValueError, match=message):
            greedy_scores(bad_query, bad_keys, num_iterations=2, mask=mask, implementation=name)


class TestWhatIsTouched:
    """Read off the jaxpr of n = 64, d = 8."""

    KEYS = SortedKeys(jax.ShapeDtypeStruct((8, 64), jnp.float32), jax.ShapeDtypeStruct((8, 64), jnp.int32))  # type: ignore[arg-type]
    QUERY = jax.ShapeDtypeStruct((8,), jnp.float32)
    MASK = jax.ShapeDtypeStruct((64,), jnp.bool_)

    def jaxpr(self, form: str, num_iterations: int, *, masked: bool = False, batch: int | None = None) -> Any:
        def search(query: jax.Array, keys: SortedKeys, mask: jax.Array) -> jax.Array:
            return greedy_scores(
                query,
                keys,
                num_iterations=num_iterations,
                mask=mask if masked else None,
                implementation=form,  # type: ignore[arg-type]
            )

        query = self.QUERY
        if batch is not None:
            search, query = jax.vmap(search, (0, None, None)), jax.ShapeDtypeStruct((batch, 8), jnp.float32)
        return jax.make_jaxpr(search)(query, self.KEYS, self.MASK)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("num_iterations", [8, 20, 64, 1000])
    def test_sorted_holds_prefixes_only(self, num_iterations: int, masked: bool) -> None:
        most = 2 * 8 * min(num_iterations, 64)
        assert largest_intermediate(self.jaxpr("sorted", num_iterations, masked=masked)) <= most
        batched = self.jaxpr("sorted", num_iterations, masked=masked, batch=5)
        assert largest_intermediate(batched) <= 5 * most

    def test_dense_holds_every_product(self) -> None:
        assert largest_intermediate(self.jaxpr("dense", 8)) >= 8 * 64

    def test_threshold_and_sequential_hold_neither_products_nor_prefixes(self) -> None:
        for name in ("threshold", "sequential"):
            assert largest_intermediate(self.jaxpr(name, 20)) <= 2 * 64

    @pytest.mark.parametrize("masked", [False, True])
    def test_sequential_sorts_nothing(self, masked: bool) -> None:
        assert not primitives(self.jaxpr("sequential", 20, masked=masked)) & {"top_k", "approx_top_k", "sort"}
        assert "top_k" in primitives(self.jaxpr("dense", 20))


def test_valid_order_lists_the_places_of_valid_rows() -> None:
    rows, mask = np.array([3, 0, 2, 1, 4], np.int32), np.array([True, False, True, False, True])
    places = valid_order(jnp.asarray(rows), jnp.asarray(mask))
    assert places[:3].tolist() == [1, 2, 4]
