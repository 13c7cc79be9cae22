"""PyG's samplers behind a pipe; run by the interpreter of benchmarks/pyg_build.py, see benchmarks/pyg_peer.py.

    python pyg_sampler.py FOLDER FANOUT [FANOUT ...]

FOLDER holds indptr.npy int64 [nodes + 1], indices.npy [edges] and seeds.npy int64 [batches, seeds]. Says "ready"; then each line of the
input names a sampler, which samples all batches once, and the answer is a line of how many edges and nodes it drew.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch_sparse  # pyright: ignore[reportMissingImports]
from torch_geometric.data import Data  # pyright: ignore[reportMissingImports]
from torch_geometric.loader import NeighborLoader  # pyright: ignore[reportMissingImports]


def main() -> None:
    folder, fanouts = Path(sys.argv[1]), [int(fanout) for fanout in sys.argv[2:]]
    indptr, indices, seeds = (
        torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("indptr", "indices", "seeds")
    )
    nodes = len(indptr) - 1
    adjacency = torch_sparse.SparseTensor(
        rowptr=indptr, col=indices.long(), sparse_sizes=(nodes, nodes), is_sorted=True
    )
    samplers = {
        "sample_adj": adjacency_sampler(adjacency, seeds, fanouts),
        "NeighborLoader": loader(adjacency, seeds, fanouts),
    }
    print("ready", flush=True)
    for line in sys.stdin:
        print(*samplers[line.strip()](), flush=True)


def adjacency_sampler(adjacency: Any, batches: Any, fanouts: Sequence[int]) -> Callable[[], tuple[int, int]]:
    """Every hop draws for all nodes so far: what ours does."""

    def sample() -> tuple[int, int]:
        num_edges, num_nodes = 0, 0
        for nodes in batches:
            for fanout in fanouts:
                drawn, nodes = adjacency.sample_adj(nodes, fanout, replace=False)
                num_edges += drawn.nnz()
            num_nodes += len(nodes)
        return num_edges, num_nodes

    return sample


def loader(adjacency: Any, batches: Any, fanouts: Sequence[int]) -> Callable[[], tuple[int, int]]:
    """Every hop draws for the nodes that the last one found, in this process; the batches come one after another."""
    data = Data(adj_t=adjacency, num_nodes=adjacency.size(0))
    batch_loader = NeighborLoader(
        data, num_neighbors=list(fanouts), input_nodes=batches.reshape(-1), batch_size=batches.shape[1], shuffle=False
    )

    def sample() -> tuple[int, int]:
        num_edges, num_nodes = 0, 0
        for batch in batch_loader:
            num_edges += batch.adj_t.nnz() if "adj_t" in batch else batch.edge_index.shape[1]
            num_nodes += batch.num_nodes
        return num_edges, num_nodes

    return sample


if __name__ == "__main__":
    main()
