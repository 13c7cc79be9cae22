"""The graph type: its equations, and what breaks them."""

import numpy as np
import pytest

from ginex_jax.graph import CSCGraph, Graph, validate

INDPTR = np.array([0, 2, 2, 5, 5])
INDICES = np.array([1, 2, 0, 3, 3], np.int32)


def test_the_example():
    graph = CSCGraph(INDPTR, INDICES)
    validate(graph)
    assert (graph.num_nodes, graph.num_edges, graph.is_weighted) == (4, 5, False)
    assert isinstance(graph, Graph)
    assert graph.neighbors_at(np.array([4, 0, 0])).tolist() == [3, 1, 1]
    with pytest.raises(ValueError, match="no edge weights"):
        graph.weights_at(np.array([0]))


def test_weights():
    graph = CSCGraph(INDPTR, INDICES, np.arange(5, dtype=np.float32))
    validate(graph)
    assert graph.weights_at(np.array([4, 1])).tolist() == [4, 1]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"indptr": np.array([0, 2, 2, 5, 6])}, "from 0 to 5 edges, got 0 to 6"),
        ({"indptr": np.array([1, 2, 2, 5, 5])}, "got 1 to 5"),
        ({"indptr": np.array([0, 3, 2, 5, 5])}, "falls after node 1: 3 to 2"),
        ({"indices": np.array([1, 2, 0, 3, 4], np.int32)}, r"indices\[4\] is 4, and there are 4 nodes"),
        ({"indices": np.array([1, -2, 0, 3, 3], np.int32)}, r"indices\[1\] is -2"),
        ({"weights": np.array([1, 1, np.nan, 1, 1], np.float32)}, r"weights\[2\] is nan"),
        ({"weights": np.array([1, -1, 1, 1, 1], np.float32)}, r"weights\[1\] is -1"),
        ({"weights": np.ones(4, np.float32)}, r"weights should be float32 \(5,\)"),
    ],
)
def test_broken(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        validate(CSCGraph(**{"indptr": INDPTR, "indices": INDICES} | changes))
