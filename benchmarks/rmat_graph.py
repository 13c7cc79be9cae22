"""The graph of the sampling benchmarks: R-MAT, in memory."""

import numpy as np

from ginex_jax.graph import CSCGraph

_QUADRANTS = np.cumsum([0.57, 0.19, 0.19]).astype(np.float32)
_EDGES_AT_ONCE = 1 << 22


def rmat(num_nodes: int, num_edges: int, *, seed: int) -> CSCGraph:
    """Recursive quadrants (Chakrabarti, Zhan, Faloutsos, 2004), repeated edges kept. 16 bytes an edge at most."""
    rng = np.random.default_rng(seed)
    scrambled = rng.permutation(num_nodes).astype(np.int64)
    keys = np.empty(num_edges, np.int64)  # destination and source in one number, so that one sort in place does it
    for start in range(0, num_edges, _EDGES_AT_ONCE):
        piece = keys[start : start + _EDGES_AT_ONCE]
        ends = np.zeros((2, len(piece)), np.int64)
        for _ in range((num_nodes - 1).bit_length()):
            quadrant = np.searchsorted(_QUADRANTS, rng.random(len(piece), np.float32), side="right")
            ends = 2 * ends + (quadrant >> 1, quadrant & 1)
        destinations, sources = scrambled[ends % num_nodes]
        piece[:] = destinations << 32 | sources
    keys.sort()
    indptr = np.searchsorted(keys, np.arange(num_nodes + 1) << 32)
    return CSCGraph(indptr, (keys & 0xFFFFFFFF).astype(np.int32))
