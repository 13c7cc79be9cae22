"""Where a dataset comes from: files, a folder of somebody's, or arrays in memory; all of them as streams."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from ginex_jax.ingest.edge_blocks import RawEdgeBlock, in_memory_edges
from ginex_jax.ingest.edge_files import count_edges, guess_edges, read_edges
from ginex_jax.ingest.graph_source import ArrayMatrix, GraphSource, MatrixSource
from ginex_jax.ingest.labels import read_ids, require_distinct_ids
from ginex_jax.ingest.node_files import open_matrix
from ginex_jax.ingest.ogb import open_ogb
from ginex_jax.ingest.original_ids import read_original_ids
from ginex_jax.ingest.parquet_matrix import ParquetMatrix
from ginex_jax.ingest.planetoid import open_planetoid
from ginex_jax.ingest.sparse_files import read_sparse, sparse_shape

_EDGES_PER_BLOCK = 1 << 20
_ROWS_PER_BLOCK = 1 << 16

ReadIds = Callable[
    [int | None], Shaped[np.ndarray, " ids"]
]  # of so many nodes; as they are in the source where that is None


class NodeFiles(NamedTuple):
    """Files about nodes, any of them missing."""

    features: Path | None = None
    labels: Path | None = None
    train: Path | None = None
    valid: Path | None = None
    test: Path | None = None


class Source(NamedTuple):
    """Everything `build_dataset` reads, before it is read."""

    blocks: Callable[[], Iterator[RawEdgeBlock]]  # starts again with every call
    provenance: Mapping[str, Any]
    weighted: bool = False
    num_nodes: int | None = None
    num_edges: int | None = None  # before anything is added or dropped; None where counting means reading
    guessed_edges: int = 0  # where they are not counted: what the sizes of files suggest
    features: MatrixSource | None = None
    labels: MatrixSource | None = None
    splits: Mapping[str, ReadIds] = {}

    def feature_ids(self) -> Shaped[np.ndarray, " rows"] | None:
        """Whose row each row of the features is, where their file says so."""
        return _row_ids(self.features)

    def label_ids(self) -> Shaped[np.ndarray, " rows"] | None:
        """Whose label each row of the labels is, where their file says so."""
        return _row_ids(self.labels)


def open_source(
    *,
    edges: Sequence[Path] | None = None,
    ogb: Path | None = None,
    planetoid: Path | None = None,
    sparse: Path | None = None,
    columns: tuple[str, str, str | None] = ("src", "dst", None),
    files: NodeFiles | None = None,
) -> Source:
    """A graph from exactly one of edge lists, an OGB folder, a Planetoid folder and a SciPy matrix; what `files` has comes on top.

    Args:
      columns: of edge lists: source, target, and weight or None.

    Raises:
      ValueError: not exactly one is given, or a file is not what it should be.
      OSError: a file cannot be read.
    """
    given = {"--edges": edges, "--ogb": ogb, "--planetoid": planetoid, "--sparse": sparse}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(f"give one of {', '.join(given)}, got {' and '.join(named) or 'none'}")
    if edges is not None:
        source = _edge_lists(list(edges), columns)
    elif sparse is not None:
        source = _sparse(sparse, weighted=columns[2] is not None)
    elif ogb is not None:
        source = _folder(open_ogb(ogb), "ogb", ogb)
    else:
        assert planetoid is not None
        source = _folder(open_planetoid(planetoid), "planetoid", planetoid)
    return source if files is None else _with_files(source, files)


def array_source(
    sources: Shaped[np.ndarray, "..."],
    targets: Shaped[np.ndarray, "..."],
    *,
    weights: Shaped[np.ndarray, "..."] | None = None,
    num_nodes: int | None = None,
    features: Shaped[np.ndarray, "rows width"] | None = None,
    labels: Shaped[np.ndarray, "labels ..."] | None = None,
    splits: Mapping[str, Shaped[np.ndarray, "..."]] | None = None,
    name: str = "arrays",
) -> Source:
    """A graph from arrays in memory: edge i goes from `sources[i]` to `targets[i]`.

    Args:
      sources, targets: [edges], integers, or with `map_ids` text.
      weights: [edges], finite in float32 and at least 0.
      labels: int [nodes], -1 where unlabelled; or float [nodes, tasks], NaN where unlabelled.
      splits: node ids under any of "train", "valid" and "test".

    Raises:
      ValueError: arrays are not of one length, there is no node, or a split has another name.
    """
    if unknown := sorted(set(splits or ()) - {"train", "valid", "test"}):
        raise ValueError(f"splits are train, valid and test, got {unknown[0]!r}")

    for what, column in (("sources", sources), ("targets", targets), ("weights", weights)):
        if column is not None and (column.ndim != 1 or len(column) != len(sources)):
            raise ValueError(
                f"{name}: {what} should be [edges], {len(sources)} as sources are, got {list(column.shape)}"
            )
    if num_nodes is not None and num_nodes < 1:
        raise ValueError(f"{name}: there should be at least one node, got {num_nodes}")
    return Source(
        blocks=functools.partial(
            in_memory_edges, sources, targets, weights, name=name, edges_per_block=_EDGES_PER_BLOCK
        ),
        provenance={"source": name},
        weighted=weights is not None,
        num_nodes=num_nodes,
        num_edges=len(sources),
        features=None if features is None else ArrayMatrix(features, name=f"{name}: features"),
        labels=None if labels is None else ArrayMatrix(labels, name=f"{name}: labels"),
        splits={key: functools.partial(_given_ids, ids, f"{name}: {key}") for key, ids in (splits or {}).items()},
    )


def _edge_lists(paths: list[Path], columns: tuple[str, str, str | None]) -> Source:
    source_column, target_column, weight_column = columns
    if source_column == target_column:
        raise ValueError(f"sources and targets should be two columns, got {source_column!r} for both")

    def blocks() -> Iterator[RawEdgeBlock]:
        return read_edges(
            paths,
            source_column=source_column,
            target_column=target_column,
            weight_column=weight_column,
            edges_per_block=_EDGES_PER_BLOCK,
        )

    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing")
    num_edges = count_edges(paths, source_column=source_column, target_column=target_column)
    return Source(
        blocks=blocks,
        provenance={"source": "edges", "edges": [str(path) for path in paths]},
        weighted=weight_column is not None,
        num_edges=num_edges,
        guessed_edges=guess_edges(paths) if num_edges is None else num_edges,
    )


def _sparse(path: Path, *, weighted: bool) -> Source:
    rows, columns = sparse_shape(path)
    if rows != columns:
        raise ValueError(f"{path} is {rows} x {columns}, and the matrix of a graph has as many rows as columns")
    return Source(
        blocks=lambda: read_sparse(path, edges_per_block=_EDGES_PER_BLOCK, weighted=weighted),
        provenance={"source": "sparse", "sparse": str(path)},
        weighted=weighted,
        num_nodes=rows,
    )


def _folder(graph: GraphSource, kind: str, path: Path) -> Source:
    def blocks() -> Iterator[RawEdgeBlock]:
        first = 1
        for sources, targets in graph.edges(_EDGES_PER_BLOCK):
            yield RawEdgeBlock(sources, targets, None, graph.edges_name or str(path), first)
            first += len(sources)

    splits = {"train": graph.train, "valid": graph.valid, "test": graph.test}
    return Source(
        blocks=blocks,
        provenance={"source": kind, kind: str(path)},
        num_nodes=graph.num_nodes,
        features=graph.features,
        labels=graph.labels,
        splits={
            name: functools.partial(_given_ids, ids, f"{path}: {name}")
            for name, ids in splits.items()
            if ids is not None
        },
    )


def _with_files(source: Source, files: NodeFiles) -> Source:
    named = {name: str(path) for name, path in files._asdict().items() if path is not None}
    splits = {
        name: functools.partial(_read_split, path)
        for name, path in (("train", files.train), ("valid", files.valid), ("test", files.test))
        if path is not None
    }
    return source._replace(
        features=source.features if files.features is None else open_matrix(files.features),
        labels=source.labels if files.labels is None else open_matrix(files.labels),
        splits={**source.splits, **splits},
        provenance={**source.provenance, **named},
    )


def _read_split(path: Path, num_nodes: int | None) -> Shaped[np.ndarray, " ids"]:
    return read_original_ids(path) if num_nodes is None else read_ids(path, num_nodes=num_nodes)


def _given_ids(ids: Shaped[np.ndarray, " ids"], name: str, num_nodes: int | None) -> Shaped[np.ndarray, " ids"]:
    if num_nodes is not None:
        require_distinct_ids(ids, num_nodes, name)
    return ids


def _row_ids(matrix: MatrixSource | None) -> Shaped[np.ndarray, " rows"] | None:
    if not isinstance(matrix, ParquetMatrix) or not matrix.has_ids:
        return None
    blocks = list(matrix.id_blocks(_ROWS_PER_BLOCK))
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)
