"""PyG's NeighborLoader over memory-mapped features; run by the interpreter of benchmarks/pyg_build.py, see benchmarks/epoch_phases.py.

The task comes as JSON on the standard input; the last line of the output is JSON with what was measured.
"""

import json
import mmap
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch_geometric.data import FeatureStore, GraphStore, TensorAttr  # pyright: ignore[reportMissingImports]
from torch_geometric.data.graph_store import EdgeAttr, EdgeLayout  # pyright: ignore[reportMissingImports]
from torch_geometric.loader import NeighborLoader  # pyright: ignore[reportMissingImports]

NODE, EDGE = "node", ("node", "to", "node")


class MappedStore(FeatureStore):
    """Rows of shard files, through memory maps."""

    def __init__(self, files: Sequence[str], rows_a_file: int, shape: Sequence[int], dtype: str) -> None:
        super().__init__()
        self._rows_a_file, self._shape, self._maps = rows_a_file, tuple(shape), []
        for shard, name in enumerate(files):
            rows = min(rows_a_file, shape[0] - shard * rows_a_file)
            one: Any = np.memmap(name, dtype, "r", shape=(rows, shape[1]))
            one._mmap.madvise(mmap.MADV_RANDOM)
            self._maps.append(one)

    def _get_tensor(self, attr: Any) -> Any:
        rows = np.asarray(attr.index)
        out = np.empty((len(rows), self._shape[1]), self._maps[0].dtype)
        shards = rows // self._rows_a_file
        order = np.argsort(shards, kind="stable")
        borders = np.searchsorted(shards[order], np.arange(len(self._maps) + 1))
        for shard, one in enumerate(self._maps):
            part = order[borders[shard] : borders[shard + 1]]
            out[part] = one[rows[part] - shard * self._rows_a_file]
        return torch.from_numpy(out)

    def _put_tensor(self, tensor: Any, attr: Any) -> bool:
        return False

    def _remove_tensor(self, attr: Any) -> bool:
        return False

    def _get_tensor_size(self, attr: Any) -> tuple[int, ...]:
        return self._shape

    def get_all_tensor_attrs(self) -> list[Any]:
        return [TensorAttr(NODE, "x")]


class MemoryGraph(GraphStore):
    """The lists of neighbours, in memory."""

    def __init__(self, indptr: Any, indices: Any) -> None:
        super().__init__()
        self._indptr, self._indices = indptr, indices

    def _get_edge_index(self, attr: Any) -> Any:
        return self._indices, self._indptr

    def _put_edge_index(self, edge_index: Any, attr: Any) -> bool:
        return False

    def _remove_edge_index(self, attr: Any) -> bool:
        return False

    def get_all_edge_attrs(self) -> list[Any]:
        nodes = len(self._indptr) - 1
        return [EdgeAttr(EDGE, EdgeLayout.CSC, is_sorted=True, size=(nodes, nodes))]


def main() -> None:
    task = json.load(sys.stdin)
    graph = MemoryGraph(
        *(vector(task["arrays"][name], kind) for name, kind in (("indptr", np.int64), ("indices", np.int32)))
    )
    loader = NeighborLoader(
        (MappedStore(**task["features"]), graph),
        num_neighbors={EDGE: task["fanouts"]},
        input_nodes=(NODE, torch.from_numpy(np.load(task["seeds"]))),
        batch_size=task["batch_size"],
        shuffle=False,
        num_workers=task["workers"],
        filter_per_worker=True if task["workers"] else None,
    )
    warm_up = len(loader) // 2
    rows, batches, seconds_of = 0, 0, []
    start = last = time.perf_counter()
    for index, batch in enumerate(loader):
        now = time.perf_counter()
        seconds_of.append(now - last)
        last = now
        if index >= warm_up:
            rows, batches = rows + len(batch[NODE].x), batches + 1
        elif index == warm_up - 1:
            start = now
        print(f"PyG: {index + 1} of {len(loader)} batches, {seconds_of[-1]:.1f} s", file=sys.stderr, flush=True)
        if now - start > task["max_seconds"] and batches:
            break
    seconds = last - start
    print(
        json.dumps(
            {
                "batches": batches,
                "timed_seconds": seconds,
                "rows": rows,
                "seconds_per_row": seconds / rows,
                "seconds_of": seconds_of,
            }
        )
    )


def vector(files: Sequence[tuple[str, int]], dtype: Any) -> Any:
    """A vector from its shards, as int64, which torch_sparse wants."""
    out = torch.empty(sum(count for _, count in files), dtype=torch.int64)
    start = 0
    for name, count in files:
        out[start : start + count] = torch.from_numpy(np.fromfile(name, dtype, count))
        start += count
    return out


if __name__ == "__main__":
    main()
