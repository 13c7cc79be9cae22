"""R-MAT edges against the model's own probabilities, and against themselves made in other pieces."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats

from ginex_jax.ingest import rmat
from ginex_jax.ingest.graph_source import MatrixSource
from ginex_jax.ingest.rmat import LatentFeatures, latent_class, rmat_edges, scrambled, write_edge_list

QUADRANTS = np.array([0.57, 0.19, 0.19, 0.05])
REJECTED = 1e-4  # of a p-value: the seeds are fixed, so that a test either always passes or never


GOLDEN_EDGES = ([536, 824, 377, 840], [271, 696, 295, 235])
GOLDEN_CLASSES = [9, 8, 5, 4, 0, 8, 4, 7]


def unscrambled_edges(scale: int, edge_factor: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    original = np.empty(1 << scale, np.int64)
    original[scrambled(scale, np.arange(1 << scale), seed=seed)] = np.arange(1 << scale)
    sources, targets = rmat_edges(scale, edge_factor, seed=seed, start=0, stop=edge_factor << scale)
    return original[sources], original[targets]


@pytest.mark.parametrize("scale", [13, 14])
def test_every_level_has_the_quadrants_of_graph500(scale: int) -> None:
    sources, targets = unscrambled_edges(scale, 16, seed=1)
    for level in range(scale):
        quadrants = 2 * (sources >> level & 1) + (targets >> level & 1)
        counts = np.bincount(quadrants, minlength=4)
        assert scipy.stats.chisquare(counts, QUADRANTS * len(sources)).pvalue > REJECTED


@pytest.mark.parametrize("levels", [(0, 1), (1, 2), (0, 12), (5, 11)])
def test_levels_are_independent(levels: tuple[int, int]) -> None:
    sources, targets = unscrambled_edges(13, 16, seed=2)
    first, second = (2 * (sources >> level & 1) + (targets >> level & 1) for level in levels)
    counts = np.bincount(4 * first + second, minlength=16)
    expected = np.outer(QUADRANTS, QUADRANTS).ravel() * len(sources)
    assert scipy.stats.chisquare(counts, expected).pvalue > REJECTED


def test_edges_that_follow_one_another_are_independent() -> None:
    sources, _ = unscrambled_edges(13, 16, seed=3)
    top = sources >> 12
    counts = np.bincount(2 * top[:-1:2] + top[1::2], minlength=4)
    upper = QUADRANTS[:2].sum()
    expected = np.outer([upper, 1 - upper], [upper, 1 - upper]).ravel() * len(top[::2])
    assert scipy.stats.chisquare(counts, expected).pvalue > REJECTED


@pytest.mark.parametrize("scale", [1, 2, 3, 7, 10, 17])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_scrambling_is_a_bijection(scale: int, seed: int) -> None:
    vertices = scrambled(scale, np.arange(1 << scale), seed=seed)
    np.testing.assert_array_equal(np.sort(vertices), np.arange(1 << scale))


def test_scrambling_leaves_no_pattern() -> None:
    """The vertices of highest degree before, those with few 1 bits, lie anywhere after: each bit of theirs is as often 1 as 0."""
    low = scrambled(20, np.arange(1 << 10), seed=0)
    for bit in range(20):
        assert scipy.stats.binomtest(int((low >> bit & 1).sum()), len(low)).pvalue > REJECTED
    assert abs(np.corrcoef(np.arange(1 << 10), low)[0, 1]) < 4 / np.sqrt(len(low))


@pytest.mark.parametrize("scale", [5, 20])
def test_slices_are_the_whole(scale: int) -> None:
    whole = rmat_edges(scale, 8, seed=5, start=0, stop=8 << 5)
    borders = [0, 1, 2, 100, 101, 8 << 5]
    pieces = [rmat_edges(scale, 8, seed=5, start=a, stop=b) for a, b in itertools.pairwise(borders)]
    for side in range(2):
        np.testing.assert_array_equal(np.concatenate([piece[side] for piece in pieces]), whole[side])
        assert whole[side].min() >= 0 and whole[side].max() < 1 << scale


def test_many_edges_are_made_a_few_at_a_time() -> None:
    """More than the kernel takes at once, from the middle of the stream."""
    whole = rmat_edges(11, 2, seed=5, start=0, stop=4096)
    np.testing.assert_array_equal(rmat_edges(11, 2, seed=5, start=777, stop=3333)[0], whole[0][777:3333])


def test_seeds_differ_and_repeat() -> None:
    first, again, other = (rmat_edges(16, 1, seed=seed, start=0, stop=1000)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first == other).mean() < 0.05


def test_the_stream_never_changes() -> None:
    """Datasets are named by their seeds: a change here makes them different ones."""
    sources, targets = rmat_edges(10, 16, seed=0, start=0, stop=4)
    assert (sources.tolist(), targets.tolist()) == GOLDEN_EDGES
    assert latent_class(0, np.arange(8), 10).tolist() == GOLDEN_CLASSES


@pytest.mark.parametrize(
    ("scale", "edge_factor", "start", "stop"), [(0, 1, 0, 1), (41, 1, 0, 1), (4, 0, 0, 0), (4, 1, 0, 17), (4, 1, 5, 3)]
)
def test_arguments_out_of_range_are_refused(scale: int, edge_factor: int, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="should be"):
        rmat_edges(scale, edge_factor, seed=0, start=start, stop=stop)


def test_an_edge_list_is_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "edges.parquet"
    write_edge_list(path, 8, 4, seed=3, edges_per_piece=100)
    table = pq.read_table(path)
    for column, ids in zip(("src", "dst"), rmat_edges(8, 4, seed=3, start=0, stop=1024), strict=True):
        np.testing.assert_array_equal(table[column].to_numpy(), ids)
    written = path.stat().st_ino
    write_edge_list(path, 8, 4, seed=3)
    assert path.stat().st_ino == written
    with pytest.raises(FileExistsError):
        write_edge_list(path, 8, 4, seed=4)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(rmat, "rmat_edges", fail)
    with pytest.raises(OSError, match="no room"):
        write_edge_list(tmp_path / "other.parquet", 8, 4, seed=3)
    assert [file.name for file in tmp_path.iterdir()] == ["edges.parquet"]


def test_classes_are_equally_likely() -> None:
    classes = latent_class(7, np.arange(20_000), 10)
    assert scipy.stats.chisquare(np.bincount(classes, minlength=10)).pvalue > REJECTED
    np.testing.assert_array_equal(latent_class(7, np.array([19_999, 3]), 10), classes[[19_999, 3]])


def test_features_do_not_depend_on_blocking() -> None:
    features = LatentFeatures(500, 12, seed=1, num_classes=4)
    assert isinstance(features, MatrixSource)
    whole = features.rows(0, 500)
    assert whole.dtype == np.float32
    for rows_per_block in (1, 7, 500, 1000):
        np.testing.assert_array_equal(np.concatenate(list(features.blocks(rows_per_block))), whole)


def test_features_are_centroids_plus_noise() -> None:
    """Means of a class come close to its centroid, and what remains has the standard deviation asked for."""
    features = LatentFeatures(40_000, 8, seed=2, num_classes=3, noise=0.5).rows(0, 40_000)
    centroids = LatentFeatures(40_000, 8, seed=2, num_classes=3, noise=0.0).rows(0, 40_000)
    assert len(np.unique(centroids, axis=0)) == 3
    noise = features - centroids
    standard_error = 0.5 / np.sqrt(noise.size)
    assert abs(noise.mean()) < 5 * standard_error and abs(noise.std() - 0.5) < 5 * standard_error
    kurtosis = scipy.stats.kurtosis(noise.ravel(), fisher=False)
    assert abs(kurtosis - (3 - 6 / 5 / 4)) < 5 * np.sqrt(24 / noise.size)  # of a sum of four uniforms
    correlations = np.corrcoef(noise.T)[~np.eye(8, dtype=bool)]
    assert np.abs(correlations).max() < 5 / np.sqrt(len(noise))
    wide = LatentFeatures(1000, 64, seed=2, num_classes=1000, noise=0.0).rows(0, 1000)
    distinct = np.unique(wide, axis=0)
    assert abs(distinct.std() - 1) < 5 / np.sqrt(distinct.size)
