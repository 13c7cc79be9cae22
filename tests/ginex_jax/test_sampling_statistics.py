"""What is drawn how often. Each test looks at one fixed stream; p-values below 1e-3 would be a fault, or one unlucky choice of seed."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from ginex_jax.graph import CSCGraph
from ginex_jax.sampling.neighbors import sample_batch
from tests.ginex_jax import oracles_sampling as oracles

NUM_NODES = 4000


def star_lists(degree: int, weights: list[float] | None = None) -> CSCGraph:
    """Every node's list is 0, 1, ..., degree - 1: what is drawn is the place."""
    return CSCGraph(
        np.arange(NUM_NODES + 1) * degree,
        np.tile(np.arange(degree, dtype=np.int32), NUM_NODES),
        None if weights is None else np.tile(np.array(weights, np.float32), NUM_NODES),
    )


def drawn(
    graph: CSCGraph, fanout: int, *, epoch: int = 0, index: int = 0, hops: int = 1, weighted: bool = False
) -> list:
    """For each hop, the places that every node drew, -1 for none: [nodes, fanout]."""
    batch = sample_batch(
        graph, np.arange(NUM_NODES), fanouts=(fanout,) * hops, seed=0, epoch=epoch, index=index, weighted=weighted
    )
    return [np.where(block.mask, batch.node_ids[block.neighbors], -1) for block in reversed(batch.blocks)]


def inclusion(places: np.ndarray, degree: int) -> np.ndarray:
    """Of every node and place, whether it was drawn."""
    return (places[:, :, None] == np.arange(degree)).any(1)


def set_statistic(included: np.ndarray, probability: float) -> float:
    """Chi-square of inclusion counts; draws without replacement are correlated, which (degree - 1) / degree makes up for."""
    num_nodes, degree = included.shape
    counts, expected = included.sum(0), num_nodes * probability
    return (degree - 1) / degree * ((counts - expected) ** 2 / (expected * (1 - probability))).sum()


@pytest.mark.parametrize(("degree", "fanout"), [(11, 10), (20, 10), (7, 1), (40, 3)])
def test_every_place_is_drawn_as_often(degree: int, fanout: int) -> None:
    """A bound one too small in Floyd's algorithm draws place 0 always with 11 and 10, and 0.526 to 0.474 with 20 and 10."""
    included = inclusion(drawn(star_lists(degree), fanout)[0], degree)
    assert (included.sum(1) == fanout).all()
    statistic = set_statistic(included, fanout / degree)
    assert scipy.stats.chi2.sf(statistic, degree - 1) > 1e-3


def test_the_statistic_sees_the_bias() -> None:
    """The same test on draws with the bound one too small."""
    rng = np.random.default_rng(0)
    included = np.zeros((NUM_NODES, 20), bool)
    for row in included:
        for j in range(10, 20):
            choice = rng.integers(0, j)
            row[j if row[choice] else choice] = True
    assert scipy.stats.chi2.sf(set_statistic(included, 0.5), 19) < 1e-9


@pytest.mark.parametrize(("degree", "fanout"), [(6, 3), (5, 2), (6, 5)])
def test_every_set_is_drawn_as_often(degree: int, fanout: int) -> None:
    sets = list(itertools.combinations(range(degree), fanout))
    places = np.sort(drawn(star_lists(degree), fanout)[0], axis=1)
    counts = [int((places == chosen).all(1).sum()) for chosen in sets]
    assert sum(counts) == NUM_NODES
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("degree", "fanout"), [(11, 10), (20, 10)])
def test_every_pair_is_drawn_as_often(degree: int, fanout: int) -> None:
    included = inclusion(drawn(star_lists(degree), fanout)[0], degree).astype(float)
    together = (included.T @ included)[np.triu_indices(degree, 1)]
    probability = fanout * (fanout - 1) / (degree * (degree - 1))
    deviations = (together - NUM_NODES * probability) / math.sqrt(NUM_NODES * probability * (1 - probability))
    assert abs(deviations).max() < 4.5
    assert abs(np.mean(deviations)) < 1e-9  # the number of pairs is fixed


def test_draws_of_hops_batches_and_epochs_are_unrelated() -> None:
    """The same node again draws anew: nobody re-uses a stream. The overlap of two sets of 10 of 20 is hypergeometric."""
    graph = star_lists(20)
    first, second = drawn(graph, 10, hops=2)
    others = [second[:NUM_NODES], drawn(graph, 10, index=1)[0], drawn(graph, 10, epoch=1)[0], np.roll(first, 1, axis=0)]
    law = scipy.stats.hypergeom(20, 10, 10)
    for other in others:
        overlap = (inclusion(first, 20) & inclusion(other, 20)).sum(1)
        counts = np.bincount(np.clip(overlap, 2, 8), minlength=9)[2:9]
        expected = NUM_NODES * np.array([law.cdf(2), *law.pmf([3, 4, 5, 6, 7]), law.sf(7)])
        assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("fanout", [1, 2, 3])
def test_weighted_sets_have_their_exact_probabilities(fanout: int) -> None:
    weights = [1.0, 0.0, 2.5, 0.25, 4.0]
    places = drawn(star_lists(5, weights), fanout, weighted=True)[0]
    expected = oracles.successive(weights, fanout)
    counts = dict.fromkeys(expected, 0)
    for row in places.tolist():
        counts[frozenset(row)] += 1
    observed = np.array([counts[chosen] for chosen in expected])
    assert scipy.stats.chisquare(observed, NUM_NODES * np.array(list(expected.values()))).pvalue > 1e-3


def test_an_edge_without_weight_is_never_drawn() -> None:
    places = drawn(star_lists(4, [0.0, 1.0, 0.0, 3.0]), 3, weighted=True)[0]
    np.testing.assert_array_equal(np.sort(places, axis=1), np.tile([-1, 1, 3], (NUM_NODES, 1)))
    assert (drawn(star_lists(3, [0.0, 0.0, 0.0]), 2, weighted=True)[0] == -1).all()
