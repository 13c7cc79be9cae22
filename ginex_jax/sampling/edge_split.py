"""Edges for training, validation and test."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from ginex_jax.graph import Graph

_SPLIT = 2**64 - 2  # in the place of a batch


class EdgeSplit(NamedTuple):
    """(source, target) of every edge, in the order in which they came."""

    train: Int64[np.ndarray, "train 2"]
    valid: Int64[np.ndarray, "valid 2"]
    test: Int64[np.ndarray, "test 2"]


def split_edges(
    edges: Int64[np.ndarray, "edges 2"],
    *,
    valid_fraction: float,
    test_fraction: float,
    seed: int,
    undirected: bool,
) -> EdgeSplit:
    """Puts every edge on a side that is a function of the edge and the seed alone, whatever else is in the list.

    So repeated edges go to the same side; if `undirected`, both directions of an edge do. The fractions are expectations: every distinct
    edge goes to validation or test with that probability.

    Args:
      edges: (source, target).
      valid_fraction, test_fraction: at least 0, and below 1 together.
      seed: in [0, 2**64).
      undirected: an edge and its reverse are one.

    Raises:
      ValueError: the fractions or the seed are out of range.

    O(edges).
    """
    if not (valid_fraction >= 0 and test_fraction >= 0 and valid_fraction + test_fraction < 1):
        raise ValueError(
            f"valid_fraction and test_fraction should be at least 0 and below 1 together, got {valid_fraction} and {test_fraction}"
        )
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed should be in [0, 2**64), got {seed}")
    numbers = edge_numbers(edges, seed, undirected=undirected)
    in_valid = numbers < valid_fraction
    in_test = ~in_valid & (numbers < valid_fraction + test_fraction)
    return EdgeSplit(edges[~in_valid & ~in_test], edges[in_valid], edges[in_test])


def edge_numbers(edges: Int64[np.ndarray, "edges 2"], seed: int, *, undirected: bool) -> Float64[np.ndarray, " edges"]:
    """A number for every edge, uniform between 0 and 1, the same wherever the edge stands and, if `undirected`, for its reverse."""
    from ginex_jax.random_numbers import batch_key
    from ginex_jax.sampling.kernels import number_pairs

    ends = np.sort(edges, axis=1) if undirected else edges
    numbers = np.empty(len(edges), np.float64)
    number_pairs(batch_key(seed, 0, _SPLIT), np.ascontiguousarray(ends), numbers)
    return numbers


def edges_of(graph: Graph) -> Int64[np.ndarray, "edges 2"]:
    """All edges of a graph, (source, target), by target. 16 bytes an edge: for graphs whose edges fit into memory three times."""
    targets = np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr))
    sources = graph.neighbors_at(np.arange(graph.num_edges))
    return np.stack([sources.astype(np.int64), targets], axis=1)
