"""Extracted folders of OGB's node property prediction data sets (Hu et al., NeurIPS 2020), as text or, as papers100M is, as arrays."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ginex_jax.ingest.csv_matrix import CsvMatrix
from ginex_jax.ingest.graph_source import EdgeBlock, GraphSource, MatrixSource
from ginex_jax.ingest.labels import read_ids
from ginex_jax.ingest.npy_stream import NpyMatrix, member_names, opened_member, read_header, read_values, skip

_SPLITS = ("train", "valid", "test")


def open_ogb(folder: Path, *, split: str | None = None) -> GraphSource:
    """The one graph of a folder with `raw/` and `split/`.

    Edges are those of `raw/`, as listed: OGB's loader adds the reverse of every edge to some data sets, and this does not.

    Args:
      folder: with `raw/edge.csv.gz`, `num-node-list.csv.gz`, `num-edge-list.csv.gz` and, where there are any, `node-feat.csv.gz` and
        `node-label.csv.gz`; or with `raw/data.npz` and `node-label.npz`. `split/NAME/{train,valid,test}.csv.gz`.
      split: NAME; not needed if there is one.

    Raises:
      ValueError: several graphs, kinds of nodes, counts that differ from what is listed, or a damaged file. Edges and rows are counted
        as they are read, not before.
      OSError: a file is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    raw = folder / "raw"
    if (raw / "relations").is_dir() or (raw / "num-node-dict.csv.gz").is_file():
        raise ValueError(f"{folder} has several kinds of nodes, and one kind is wanted")
    if (raw / "data.npz").is_file():
        source = _from_arrays(raw)
    elif (raw / "edge.csv.gz").is_file():
        source = _from_text(raw)
    else:
        raise FileNotFoundError(f"{raw} has neither edge.csv.gz nor data.npz: it is no extracted OGB folder")
    for what, matrix in (("features", source.features), ("labels", source.labels)):
        if matrix is not None and matrix.num_rows != source.num_nodes:
            raise ValueError(f"{matrix.name} has {what} of {matrix.num_rows} nodes, and there are {source.num_nodes}")
    parts = _split_folder(folder, split)
    ids = {part: read_ids(parts / f"{part}.csv.gz", num_nodes=source.num_nodes) for part in _SPLITS} if parts else {}
    return source._replace(**ids)


def _from_text(raw: Path) -> GraphSource:
    num_nodes, num_edges = (_one_number(raw / f"num-{what}-list.csv.gz") for what in ("node", "edge"))
    edges = CsvMatrix(raw / "edge.csv.gz", dtype=np.int64, num_rows=num_edges)
    if num_edges and edges.width != 2:
        raise ValueError(f"{edges.name} should have a source and a target in each row, got {edges.width} numbers")

    def columns(edges_per_block: int) -> Iterator[EdgeBlock]:
        for block in edges.blocks(edges_per_block):
            yield np.ascontiguousarray(block[:, 0]), np.ascontiguousarray(block[:, 1])

    def matrix(name: str) -> MatrixSource | None:
        path = raw / name
        return CsvMatrix(path, dtype=np.float64, num_rows=num_nodes) if path.is_file() else None

    return GraphSource(
        num_nodes=num_nodes,
        edges=columns,
        edges_name=edges.name,
        features=matrix("node-feat.csv.gz"),
        labels=matrix("node-label.csv.gz"),
    )


def _from_arrays(raw: Path) -> GraphSource:
    data = raw / "data.npz"
    names = member_names(data)
    for name in ("edge_index", "num_nodes_list", "num_edges_list"):
        if name not in names:
            raise ValueError(f"{data} has no array {name!r}: it has {', '.join(names)}")
    num_nodes, num_edges = (_one_value(data, f"num_{what}_list") for what in ("nodes", "edges"))
    labels = raw / "node-label.npz"
    return GraphSource(
        num_nodes=num_nodes,
        edges=_edge_index(data, num_edges),
        edges_name=f"{data}:edge_index",
        features=NpyMatrix(data, member="node_feat") if "node_feat" in names else None,
        labels=NpyMatrix(labels, member="node_label") if labels.is_file() else None,
    )


def _edge_index(path: Path, num_edges: int) -> Callable[[int], Iterator[EdgeBlock]]:
    """The rows of `edge_index` [2, edges], side by side: the archive is unpacked by two readers, one of them half the array ahead."""
    name = f"{path}:edge_index"
    with opened_member(path, "edge_index") as (stream, num_bytes):
        header = read_header(stream, num_bytes, name)
    if header.shape != (2, num_edges) or header.dtype.kind not in "iu" or header.fortran_order:
        raise ValueError(f"{name} should be integers [2, {num_edges}] in C order, got {header.dtype} {header.shape}")

    def blocks(edges_per_block: int) -> Iterator[EdgeBlock]:
        with contextlib.ExitStack() as stack:
            rows = []
            for row in range(2):
                stream, _ = stack.enter_context(opened_member(path, "edge_index"))
                skip(stream, header.data_start + row * num_edges * header.dtype.itemsize, name)
                rows.append(stream)
            for start in range(0, num_edges, edges_per_block):
                count = min(edges_per_block, num_edges - start)
                sources, targets = (read_values(stream, count, header.dtype, name) for stream in rows)
                yield sources.astype(np.int64, copy=False), targets.astype(np.int64, copy=False)

    return blocks


def _one_number(path: Path) -> int:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    matrix = CsvMatrix(path, dtype=np.int64)
    if matrix.num_rows != 1 or matrix.width != 1:
        raise ValueError(f"{path} lists {matrix.num_rows} graphs, and one is wanted")
    return _count(matrix)


def _one_value(path: Path, member: str) -> int:
    matrix = NpyMatrix(path, member=member)
    if matrix.num_rows != 1 or matrix.width != 1 or matrix.dtype.kind not in "iu":
        raise ValueError(f"{matrix.name} should be one integer, got {matrix.dtype} {matrix.header.shape}")
    return _count(matrix)


def _count(matrix: MatrixSource) -> int:
    count = int(next(iter(matrix.blocks(1)))[0, 0])
    if count < 0:
        raise ValueError(f"{matrix.name} lists {count}, and a count is wanted")
    return count


def _split_folder(folder: Path, split: str | None) -> Path | None:
    """The folder of the split, or None where the data set has none."""
    if split is not None:
        return folder / "split" / split
    names = sorted(path.name for path in (folder / "split").glob("*") if path.is_dir())
    if len(names) > 1:
        raise ValueError(f"{folder / 'split'} has {', '.join(names)}: say which")
    return folder / "split" / names[0] if names else None
