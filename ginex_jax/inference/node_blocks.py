"""Cuts the nodes of a pass into blocks of similar cost, and finds the few static shapes that hold them."""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from ginex_jax.batch import COMBINE_WIDTHS, TABLE_WIDTHS, BatchShape, DegreeRows
from ginex_jax.graph import Graph
from ginex_jax.sampling.degree_blocks import count_rows

_MULTIPLE = 8
_NODES_AT_ONCE = 1 << 20
_MAX_GROUPS = 4  # shapes a pass, so that few programs are compiled
_MIN_BLOCKS = 32  # from which on several shapes are worth compiling
_WASTE = 1.5  # places of one shape for all blocks over those they need, from which on there are several


class Targets(NamedTuple):
    """The nodes that a pass computes, in order: `nodes`, or all nodes where it is None. Target i has these many edges before it."""

    nodes: Int64[np.ndarray, " targets"] | None
    edges_before: Int64[np.ndarray, " targets_plus_one"]

    @property
    def count(self) -> int:
        return len(self.edges_before) - 1

    def ids(self, start: int, stop: int) -> Int64[np.ndarray, " ids"]:
        return np.arange(start, stop) if self.nodes is None else self.nodes[start:stop]

    def degrees(self, start: int, stop: int) -> Int64[np.ndarray, " ids"]:
        return np.diff(self.edges_before[start : stop + 1])

    def num_edges(self, start: int, stop: int) -> int:
        return int(self.edges_before[stop] - self.edges_before[start])


def targets_of(graph: Graph, nodes: Int64[np.ndarray, " nodes"] | None) -> Targets:
    """All nodes, for nothing; or some, with 8 bytes each."""
    if nodes is None:
        return Targets(None, graph.indptr)
    degrees = graph.indptr[nodes + 1] - graph.indptr[nodes]
    return Targets(nodes, np.concatenate([[0], np.cumsum(degrees)]))


def cut(targets: Targets, *, node_cost: int, edge_cost: int, budget: int) -> list[int]:
    """Bounds of consecutive blocks, each of at most that cost or of one node."""

    def cost(stop: int) -> int:
        return node_cost * stop + edge_cost * int(targets.edges_before[stop])

    bounds = [0]
    while bounds[-1] < targets.count:
        start = bounds[-1]
        possible = range(start + 1, targets.count + 1)
        bounds.append(start + max(1, bisect.bisect_right(possible, cost(start) + budget, key=cost)))
    return bounds


def block_shapes(targets: Targets, bounds: Sequence[int], num_nodes: int) -> list[BatchShape]:
    """For every block a shape that holds it, whatever its neighbours are; at most four of them.

    One for all unless there are many blocks and that makes more than half as many places again; then one for each quarter of the blocks, as
    nodes that were numbered by degree need. Time O(targets).
    """
    sizes = [_sizes(targets, start, stop, num_nodes) for start, stop in itertools.pairwise(bounds)]
    if not sizes:
        return []
    of_all = np.max(sizes, axis=0)
    needed = sum(num_places(_shape(size)) for size in sizes)
    if len(sizes) < _MIN_BLOCKS or num_places(_shape(of_all)) * len(sizes) <= _WASTE * needed:
        return [_shape(of_all)] * len(sizes)
    shapes = []
    for group in np.array_split(np.array(sizes), _MAX_GROUPS):
        shapes += [_shape(group.max(axis=0))] * len(group)
    return shapes


def longest_list_shape(targets: Targets, num_nodes: int) -> BatchShape:
    """Of a block of the longest list alone."""
    if targets.count == 0:
        return _shape([0] * (2 + len(TABLE_WIDTHS) + len(COMBINE_WIDTHS)))
    longest, length = 0, -1
    for start in range(0, targets.count, _NODES_AT_ONCE):
        degrees = targets.degrees(start, min(start + _NODES_AT_ONCE, targets.count))
        if degrees.max() > length:
            longest, length = start + int(degrees.argmax()), int(degrees.max())
    return _shape(_sizes(targets, longest, longest + 1, num_nodes))


def num_places(shape: BatchShape) -> int:
    """Entries that the tables of the shape's blocks have room for, and destinations."""
    rows = [rows for rows in shape.degree_rows if rows is not None]
    tables = sum(math.prod(pair) for r in rows for pair in zip(r.tables, TABLE_WIDTHS, strict=True))
    combines = sum(math.prod(pair) for r in rows for pair in zip(r.combines, COMBINE_WIDTHS, strict=True))
    return tables + combines + shape.level_sizes[0]


def _sizes(targets: Targets, start: int, stop: int, num_nodes: int) -> list[int]:
    """Destinations, sources at most, and rows of every table. A node that is given twice counts twice."""
    rows, count = count_rows(targets.degrees(start, stop)), stop - start
    most = max(count, min(num_nodes, count + targets.num_edges(start, stop)))
    return [count, most, *rows.tables, *rows.combines]


def _shape(sizes: Sequence[int] | np.ndarray) -> BatchShape:
    """Large tables are rounded up, so that passes may share a program; those that nobody needs stay empty."""
    count, most, *rows = (int(size) for size in sizes)
    wide = [size if size < _MULTIPLE else -(-size // _MULTIPLE) * _MULTIPLE for size in rows[: len(TABLE_WIDTHS)]]
    degree_rows = DegreeRows(tuple(wide), tuple(rows[len(TABLE_WIDTHS) :]))
    return BatchShape(count, (count, most), (degree_rows,))
