"""Majority labels against counting by hand."""

import collections

import numpy as np
import pytest

from ginex_jax.ingest.neighbor_labels import MajorityLabels
from ginex_jax.ingest.rmat import latent_class


def sorted_edges(num_nodes: int, num_edges: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sources, targets = rng.integers(0, num_nodes, num_edges), rng.integers(0, num_nodes, num_edges)
    order = np.lexsort((sources, targets))
    return sources[order], targets[order]


def majority(sources: np.ndarray, targets: np.ndarray, num_nodes: int, classes: np.ndarray) -> list[int]:
    labels = []
    for node in range(num_nodes):
        counts = collections.Counter(classes[sources[targets == node]].tolist())
        labels.append(min(counts, key=lambda z: (-counts[z], z)) if counts else -1)
    return labels


@pytest.mark.parametrize(
    ("num_nodes", "num_edges", "num_classes"), [(60, 100, 3), (50, 2000, 2), (40, 300, 200), (1, 9, 1)]
)
@pytest.mark.parametrize("run", [1, 7, 10_000])
def test_labels_are_the_majority_of_the_neighbours(num_nodes: int, num_edges: int, num_classes: int, run: int) -> None:
    sources, targets = sorted_edges(num_nodes, num_edges, seed=num_edges)
    counting = MajorityLabels(num_nodes, seed=4, num_classes=num_classes)
    for start in range(0, num_edges, run):  # a node's list is cut anywhere
        counting.observe(targets[start : start + run], sources[start : start + run].astype(np.int32))
    expected = majority(sources, targets, num_nodes, latent_class(4, np.arange(num_nodes), num_classes))
    blocks = list(counting.blocks(16))
    assert all(block.dtype == np.int64 for block in blocks)
    assert np.concatenate(blocks).tolist() == expected


def test_splits_are_disjoint_and_labelled() -> None:
    sources, targets = sorted_edges(5000, 4000, seed=1)
    counting = MajorityLabels(5000, seed=0, num_classes=4)
    counting.observe(targets, sources)
    splits = counting.split_ids(train=0.5, valid=0.3, test=0.2)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.unique(targets))
    num_labelled = len(np.unique(targets))
    for name, share in (("train", 0.5), ("valid", 0.3), ("test", 0.2)):
        ids = splits[name]
        assert ids.dtype == np.int64 and (np.diff(ids) > 0).all()
        assert abs(len(ids) - share * num_labelled) < 5 * np.sqrt(share * (1 - share) * num_labelled)
    fewer = counting.split_ids(train=0.1, valid=0.0, test=0.0)
    assert set(fewer["train"]) < set(splits["train"]) and len(fewer["valid"]) == len(fewer["test"]) == 0


def test_mistakes_are_named() -> None:
    counting = MajorityLabels(10, seed=0, num_classes=2)
    counting.observe(np.array([3, 5]), np.array([0, 0]))
    with pytest.raises(ValueError, match="sorted by target, and 4 follows"):
        counting.observe(np.array([4]), np.array([0]))
    with pytest.raises(ValueError, match="sources should be in"):
        counting.observe(np.array([6]), np.array([10]))
    with pytest.raises(ValueError, match="at most 1 together"):
        counting.split_ids(train=0.9, valid=0.2)
    with pytest.raises(ValueError, match="0 classes"):
        MajorityLabels(10, seed=0, num_classes=0)
