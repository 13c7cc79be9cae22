import ckwrap
import hypothesis
import hypothesis.strategies as st
import numba
import numpy as np
import pytest

from anyprec_jax import kmeans1d
from tests.anyprec_jax import oracles

# The optimum and what is found both come out of sums of up to a few thousand float64 terms, about the size of the row's error.
ROUNDING = 1e-12


def heavy_tailed(n: int, k: int, *, seed: int = 0, sixteen_bit: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Weights and sensitivities distributed like a language model's."""
    rng = np.random.default_rng(seed)
    weights = 0.02 * rng.standard_t(5, (n, k))
    weights = weights.astype(np.float16 if sixteen_bit else np.float32).astype(np.float32)
    return weights, (1e-7 * np.exp(2 * rng.standard_normal((n, k)))).astype(np.float32)


SMALL_SIZES = st.integers(1, 40)


@st.composite
def rows(draw: st.DrawFn, sizes: st.SearchStrategy[int] = SMALL_SIZES) -> tuple[np.ndarray, np.ndarray]:
    """A few short rows: smooth, on a grid (many ties), in far clumps; sensitivities even, wild, or mostly zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (2, draw(sizes))
    weights = {
        "smooth": lambda: rng.standard_normal(shape),
        "grid": lambda: rng.integers(-4, 12, shape),
        "clumps": lambda: rng.choice([-1e3, 0, 1e4], shape) + 10.0 ** rng.integers(-3, 2) * rng.standard_normal(shape),
    }[draw(st.sampled_from(["smooth", "grid", "clumps"]))]()
    sensitivity = {
        "even": lambda: np.ones(shape),
        "wild": lambda: np.exp(6 * rng.standard_normal(shape)),
        "sparse": lambda: rng.integers(0, 2, shape),
        "zero": lambda: np.zeros(shape),
    }[draw(st.sampled_from(["even", "wild", "sparse", "zero"]))]()
    return weights.astype(np.float32), sensitivity.astype(np.float32)


def row_of(sorted_rows: kmeans1d.SortedRows, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values and masses of one row."""
    count = sorted_rows.counts[row]
    return sorted_rows.values[row, :count].astype(np.float64), np.diff(sorted_rows.cumulative[row, : count + 1])


@hypothesis.given(rows())
@hypothesis.settings(max_examples=60)
def test_sorted_rows_are_the_distinct_values_with_their_masses(matrix: tuple[np.ndarray, np.ndarray]) -> None:
    weights, sensitivity = matrix
    sorted_rows = kmeans1d.sort_rows(weights, sensitivity)
    for row in range(len(weights)):
        values, mass, ranks = oracles.distinct(weights[row], sensitivity[row])
        np.testing.assert_array_equal(row_of(sorted_rows, row), (values, mass))
        np.testing.assert_array_equal(sorted_rows.ranks[row], ranks)


def test_sorting_orders_every_kind_of_float() -> None:
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    row = np.array([[3.0, -0.0, huge, -tiny, 0.0, -huge, tiny, -3.0, 3.0]], np.float32)
    sorted_rows = kmeans1d.sort_rows(row, np.ones_like(row))
    assert sorted_rows.counts[0] == 7
    np.testing.assert_array_equal(sorted_rows.values[0, :7], [-huge, -3, -tiny, 0, tiny, 3, huge])
    np.testing.assert_array_equal(sorted_rows.ranks[0], [5, 3, 6, 2, 3, 0, 4, 1, 5])


def test_masses_depend_on_ratios_only() -> None:
    weights, sensitivity = heavy_tailed(3, 200)
    expected = kmeans1d.sort_rows(weights, sensitivity)
    for scale in (2.0**-60, 2.0**40):
        np.testing.assert_array_equal(
            kmeans1d.sort_rows(weights, sensitivity * np.float32(scale)).cumulative[:, :201], expected.cumulative
        )
    even = kmeans1d.sort_rows(weights, np.zeros_like(sensitivity))
    np.testing.assert_array_equal(np.diff(even.cumulative), 1)


@hypothesis.given(rows(), st.integers(1, 4))
@hypothesis.settings(max_examples=100)
def test_seed_is_the_optimum(matrix: tuple[np.ndarray, np.ndarray], precision: int) -> None:
    sorted_rows = kmeans1d.sort_rows(*matrix)
    clusters = kmeans1d.seed_clusters(sorted_rows, precision=precision)
    for row in range(len(matrix[0])):
        values, mass = row_of(sorted_rows, row)
        found = oracles.partition_error(values, mass, clusters.borders[row])
        assert found <= oracles.least_error(values, mass, 2**precision) + ROUNDING * oracles.error(values, mass)


@pytest.mark.parametrize("k", [33, 576, 4096])
@pytest.mark.parametrize("precision", [1, 2, 3, 5])
@pytest.mark.parametrize("sixteen_bit", [False, True])
def test_seed_is_as_good_as_ckwraps(k: int, precision: int, sixteen_bit: bool) -> None:
    weights, sensitivity = heavy_tailed(2, k, seed=k, sixteen_bit=sixteen_bit)
    sorted_rows = kmeans1d.sort_rows(weights, sensitivity)
    clusters = kmeans1d.seed_clusters(sorted_rows, precision=precision)
    for row in range(len(weights)):
        values, mass = row_of(sorted_rows, row)
        labels = ckwrap.ckmeans(values, 2**precision, weights=mass).labels
        theirs = sum(oracles.error(values[labels == c], mass[labels == c]) for c in range(2**precision))
        ours = oracles.partition_error(values, mass, clusters.borders[row])
        assert abs(ours - theirs) <= ROUNDING * oracles.error(values, mass)


@hypothesis.given(rows(), st.integers(1, 4))
@hypothesis.settings(max_examples=60)
def test_centroids_are_weighted_means_in_ascending_order(matrix: tuple[np.ndarray, np.ndarray], precision: int) -> None:
    sorted_rows = kmeans1d.sort_rows(*matrix)
    clusters = kmeans1d.seed_clusters(sorted_rows, precision=precision)
    assert (np.diff(clusters.centroids) >= 0).all()
    for row in range(len(matrix[0])):
        values, mass = row_of(sorted_rows, row)
        for c, (a, b) in enumerate(zip(clusters.borders[row, :-1], clusters.borders[row, 1:], strict=True)):
            if a == b:
                assert clusters.centroids[row, c] == values[-1]
            elif b - a == 1:
                assert clusters.centroids[row, c] == values[a]
            else:
                mean = np.average(values[a:b] - values[a], weights=mass[a:b])
                spread = values[b - 1] - values[a]
                assert abs(clusters.centroids[row, c] - values[a] - mean) <= 1e-13 * (spread + abs(values[a]))


def test_too_few_distinct_values_get_a_cluster_each() -> None:
    weights = np.array([[5.0, 1.0, 5.0, 3.0, 1.0]], np.float32)
    sorted_rows = kmeans1d.sort_rows(weights, np.ones_like(weights))
    clusters = kmeans1d.seed_clusters(sorted_rows, precision=3)
    np.testing.assert_array_equal(clusters.borders[0], [0, 1, 2, 3, 3, 3, 3, 3, 3])
    np.testing.assert_array_equal(clusters.centroids[0], [1, 3, 5, 5, 5, 5, 5, 5])
    np.testing.assert_array_equal(kmeans1d.codes(sorted_rows, clusters), [[2, 0, 2, 1, 0]])


def test_a_weight_without_sensitivity_moves_no_border_but_gets_its_own_place() -> None:
    """0 and 10 matter, the rest not at all: the two of them are the centroids, and the others go to the nearer."""
    weights = np.array([[0.0, 1.0, 2.0, 8.0, 10.0]], np.float32)
    sensitivity = np.array([[1.0, 0.0, 0.0, 0.0, 1.0]], np.float32)
    sorted_rows = kmeans1d.sort_rows(weights, sensitivity)
    two = kmeans1d.seed_clusters(sorted_rows, precision=1)
    np.testing.assert_array_equal(kmeans1d.codes(sorted_rows, two), [[0, 0, 0, 1, 1]])
    np.testing.assert_allclose(two.centroids, [[0, 10]], atol=1e-12)
    four = kmeans1d.seed_clusters(sorted_rows, precision=2)
    np.testing.assert_array_equal(kmeans1d.codes(sorted_rows, four), [[0, 1, 1, 2, 3]])


def test_compiles_where_nothing_can_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def njit_without_a_folder(*args, cache: bool = False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*args, **options)

    monkeypatch.setattr(numba, "njit", njit_without_a_folder)
    twice = kmeans1d.compiled(lambda x: 2.0 * x)
    assert twice(3.0) == 6.0
