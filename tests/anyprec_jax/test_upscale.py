import hypothesis
import numpy as np
import pytest

from anyprec_jax import kmeans1d
from anyprec_jax.upscale import upscale
from tests.anyprec_jax import oracles
from tests.anyprec_jax.test_kmeans1d import ROUNDING, heavy_tailed, row_of, rows


def halves(values: list[float], sensitivity: list[float]) -> tuple[list[int], list[float]]:
    """Borders and centroids after splitting one cluster of everything."""
    sorted_rows = kmeans1d.sort_rows(np.array([values], np.float32), np.array([sensitivity], np.float32))
    borders = np.array([[0, sorted_rows.counts[0]]], np.int32)
    whole = kmeans1d.Clusters(borders, kmeans1d.centroids(sorted_rows, borders, np.zeros((1, 1))))
    split = upscale(sorted_rows, whole)
    return split.borders[0].tolist(), split.centroids[0].tolist()


@pytest.mark.parametrize(
    ("values", "sensitivity", "borders", "centroids"),
    [
        ([1, 2, 3, 10], [1, 1, 1, 1], [0, 3, 4], [2, 10]),
        ([1, 2, 3, 10], [0, 0, 0, 0], [0, 3, 4], [2, 10]),  # nothing matters: as if all did alike
        ([0, 1, 10], [1, 1, 0], [0, 1, 3], [0, 1]),  # what does not matter follows what does
        ([2, 2, 2, 2], [1, 2, 3, 4], [0, 1, 1], [2, 2]),  # equal values never part; the empty half inherits
        ([1, 5], [0, 1], [0, 1, 2], [1, 5]),
        ([7], [1], [0, 1, 1], [7, 7]),
        ([0, 1, 2], [1, 1, 1], [0, 1, 3], [0, 1.5]),  # a tie goes to the left
    ],
)
def test_one_split(values: list[float], sensitivity: list[float], borders: list[int], centroids: list[float]) -> None:
    found_borders, found_centroids = halves(values, sensitivity)
    assert found_borders == borders
    np.testing.assert_allclose(found_centroids, centroids, rtol=0, atol=1e-12)


def test_an_empty_cluster_has_two_empty_children() -> None:
    sorted_rows = kmeans1d.sort_rows(np.array([[1.0, 2.0]], np.float32), np.ones((1, 2), np.float32))
    clusters = kmeans1d.Clusters(np.array([[0, 0, 2]], np.int32), np.array([[0.5, 1.5]]))
    split = upscale(sorted_rows, clusters)
    np.testing.assert_array_equal(split.borders, [[0, 0, 0, 1, 2]])
    np.testing.assert_array_equal(split.centroids, [[0.5, 0.5, 1, 2]])


@hypothesis.given(rows())
@hypothesis.settings(max_examples=60)
def test_every_split_is_the_best_there_is(matrix: tuple[np.ndarray, np.ndarray]) -> None:
    sorted_rows = kmeans1d.sort_rows(*matrix)
    before = kmeans1d.seed_clusters(sorted_rows, precision=2)
    after = upscale(sorted_rows, before)
    np.testing.assert_array_equal(after.borders[:, ::2], before.borders)
    for row in range(len(matrix[0])):
        values, mass = row_of(sorted_rows, row)
        for c in range(4):
            start, middle, stop = after.borders[row, 2 * c : 2 * c + 3]
            members, weight = values[start:stop] - values[min(start, len(values) - 1)], mass[start:stop]
            best = oracles.split(members, weight)
            found = oracles.partition_error(members, weight, np.array([0, middle - start, stop - start]))
            least = oracles.partition_error(members, weight, np.array([0, best, stop - start]))
            assert found <= least + ROUNDING * oracles.error(members, weight)


@hypothesis.given(rows())
@hypothesis.settings(max_examples=60)
def test_errors_fall_and_centroids_stay_in_order(matrix: tuple[np.ndarray, np.ndarray]) -> None:
    sorted_rows = kmeans1d.sort_rows(*matrix)
    clusters = kmeans1d.seed_clusters(sorted_rows, precision=1)
    whole = [oracles.error(*row_of(sorted_rows, row)) for row in range(len(matrix[0]))]
    errors = whole
    for _ in range(5):
        clusters = upscale(sorted_rows, clusters)
        assert (np.diff(clusters.centroids) >= 0).all()
        finer = [
            oracles.partition_error(*row_of(sorted_rows, row), clusters.borders[row]) for row in range(len(matrix[0]))
        ]
        assert all(f <= e + ROUNDING * w for f, e, w in zip(finer, errors, whole, strict=True))
        errors = finer


def test_splits_of_a_long_row_are_the_best_there_are() -> None:
    sorted_rows = kmeans1d.sort_rows(*heavy_tailed(1, 576))
    clusters = kmeans1d.seed_clusters(sorted_rows, precision=3)
    values, mass = row_of(sorted_rows, 0)
    for _ in range(3):
        before, clusters = clusters, upscale(sorted_rows, clusters)
        starts, stops = before.borders[0, :-1], before.borders[0, 1:]
        best = [a + oracles.split(values[a:b], mass[a:b]) for a, b in zip(starts, stops, strict=True)]
        np.testing.assert_array_equal(clusters.borders[0, 1::2], best)
