"""Orders of nodes against a textbook breadth-first search."""

from collections import deque

import numpy as np
import pytest

from ginex_jax.graph import CSCGraph
from ginex_jax.ingest import node_order


def random_graph(seed, num_nodes, num_edges):
    rng = np.random.default_rng(seed)
    targets, sources = rng.integers(0, num_nodes, (2, num_edges))
    keys = np.lexsort((sources, targets))
    indptr = np.zeros(num_nodes + 1, np.int64)
    np.cumsum(np.bincount(targets, minlength=num_nodes), out=indptr[1:])
    return CSCGraph(indptr, sources[keys].astype(np.int32))


def textbook(graph, uses):
    starts = sorted(range(graph.num_nodes), key=lambda v: (-uses[v], v))
    lists = [graph.indices[begin:end].tolist() for begin, end in zip(graph.indptr[:-1], graph.indptr[1:], strict=True)]
    met, order = set(), []
    for start in starts:
        if start in met or not lists[start]:
            continue
        met.add(start)
        queue = deque([start])
        while queue:
            node = queue.popleft()
            order.append(node)
            for neighbor in lists[node]:
                if neighbor not in met:
                    met.add(neighbor)
                    queue.append(neighbor)
    return order + [start for start in starts if start not in met]


@pytest.mark.parametrize("at_once", [1, 3, 1 << 20])
@pytest.mark.parametrize("seed", range(4))
def test_breadth_first(monkeypatch, seed, at_once):
    monkeypatch.setattr(node_order, "_POSITIONS_AT_ONCE", at_once)
    graph = random_graph(seed, 60, 20 + 40 * seed)
    uses = np.bincount(graph.indices, minlength=60)
    assert node_order.by_breadth(graph, uses).tolist() == textbook(graph, uses)


def test_a_graph_without_edges():
    graph = CSCGraph(np.zeros(6, np.int64), np.empty(0, np.int32))
    assert node_order.by_breadth(graph, np.zeros(5, np.int64)).tolist() == [0, 1, 2, 3, 4]


def test_by_degree_and_inverse():
    order = node_order.by_degree(np.array([1, 3, 3, 0, 1]))
    assert order.tolist() == [1, 2, 0, 4, 3]
    assert node_order.inverse(order).tolist() == [2, 0, 1, 4, 3]
