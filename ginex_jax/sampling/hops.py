"""One hop of sampling: the nodes known so far get neighbours, and these become known. Importing this module imports numba."""

import numpy as np
from jaxtyping import Bool, Float32, Int64

from ginex_jax.batch import Block, DegreeBlock
from ginex_jax.graph import CSCGraph, Graph
from ginex_jax.sampling import kernels
from ginex_jax.sampling.degree_blocks import degree_block, list_positions
from ginex_jax.sampling.local_ids import LocalIds

MAX_NODES = kernels.MAX_NODES


def drawn_neighbors(graph: Graph, known: LocalIds, fanout: int, key: int, weighted: bool) -> Block:
    """The block of a fixed fan-out; `key` is that of the hop. The same bits for a graph in memory and anywhere else."""
    if isinstance(graph, CSCGraph):
        return _drawn_in_memory(graph, known, fanout, key, weighted)
    return _drawn_anywhere(graph, known, fanout, key, weighted)


def all_neighbors(graph: Graph, known: LocalIds) -> DegreeBlock:
    """The block of all neighbours of the nodes known so far, whose neighbours are known then."""
    node_ids = known.node_ids
    starts = graph.indptr[node_ids]
    degrees = graph.indptr[node_ids + 1] - starts
    positions = list_positions(starts, degrees)
    neighbors = known.number(graph.neighbors_at(positions))
    return degree_block(degrees, neighbors, graph.weights_at(positions) if graph.is_weighted else None)


def _drawn_in_memory(graph: CSCGraph, known: LocalIds, fanout: int, key: int, weighted: bool) -> Block:
    shape = len(known), fanout
    neighbors, mask = np.empty(shape, np.int32), np.empty(shape, np.bool_)
    weights = np.empty(shape if graph.is_weighted else (0, fanout), np.float32)
    known.sample_hop(graph, np.uint64(key), weighted, neighbors, mask, weights)
    return Block(neighbors, mask, weights if graph.is_weighted else None)


def _drawn_anywhere(graph: Graph, known: LocalIds, fanout: int, key: int, weighted: bool) -> Block:
    node_ids = known.node_ids
    starts, stops = graph.indptr[node_ids], graph.indptr[node_ids + 1]
    weight_starts, weights = starts, np.empty(0, np.float32)
    if weighted:
        weight_starts, weights = _bounds(stops - starts), graph.weights_at(list_positions(starts, stops - starts))
    chosen, counts = np.zeros((len(known), fanout), np.int64), np.empty(len(known), np.int64)
    kernels.choose(np.uint64(key), node_ids, weight_starts, stops - starts, weights, weighted, chosen, counts)
    mask = np.arange(fanout) < counts[:, None]
    positions = (starts[:, None] + chosen)[mask]
    neighbors = np.zeros(mask.shape, np.int32)
    neighbors[mask] = known.number(graph.neighbors_at(positions))
    return Block(neighbors, mask, _weights_at(graph, positions, mask))


def _weights_at(
    graph: Graph, positions: Int64[np.ndarray, " positions"], mask: Bool[np.ndarray, "destinations fanout"]
) -> Float32[np.ndarray, "destinations fanout"] | None:
    if not graph.is_weighted:
        return None
    weights = np.zeros(mask.shape, np.float32)
    weights[mask] = graph.weights_at(positions)
    return weights


def _bounds(degrees: Int64[np.ndarray, " lists"]) -> Int64[np.ndarray, " lists"]:
    """Where each list starts when they lie end to end."""
    return np.cumsum(degrees) - degrees
