"""Planetoid's folders (Cora, CiteSeer, PubMed): `ind.NAME.x`, `tx`, `allx`, `y`, `ty`, `ally`, `graph` and `test.index`.

Yang, Cohen, Salakhutdinov, "Revisiting semi-supervised learning with graph embeddings" (ICML 2016), and its public split: the labelled
nodes of `x` to train, the 500 that follow to validate, those of `test.index` to test.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from ginex_jax.ingest.allowed_pickle import CsrMatrix, read_array, read_csr, read_neighbors
from ginex_jax.ingest.graph_source import ArrayMatrix, EdgeBlock, GraphSource
from ginex_jax.ingest.labels import UNLABELLED, read_text_ids

_NUM_VALID = 500
_SUFFIXES = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


def open_planetoid(folder: Path, *, name: str | None = None) -> GraphSource:
    """The graph of a Planetoid folder.

    Edges are those of the adjacency lists, as listed: each in both directions, and some twice. Features are
    not normalised. A node that the files do not describe (CiteSeer has 15) has features of zero and no label.

    Args:
      folder: with the eight files.
      name: of the data set, "cora"; not needed if the folder has one.

    Raises:
      ValueError: a file is damaged, names a global that is not allowed, or does not fit the others.
      OSError: a file is missing.
    """
    prefix = _prefix(folder, name)
    paths = {suffix: prefix.with_name(f"{prefix.name}.{suffix}") for suffix in _SUFFIXES}
    known, tested = read_csr(paths["allx"]), read_csr(paths["tx"])
    neighbors = read_neighbors(paths["graph"])
    num_nodes = len(neighbors)
    _require_nodes(neighbors, paths["graph"])
    test_ids = read_text_ids(paths["test.index"], num_nodes=num_nodes)
    num_known = known.shape[0]
    if len(test_ids) != tested.shape[0] or known.shape[1] != tested.shape[1]:
        raise ValueError(f"{paths['tx']} is {tested.shape}, and should have {len(test_ids)} rows of {known.shape[1]}")
    if len(test_ids) and test_ids.min() < num_known:
        raise ValueError(f"{paths['test.index']}: node {test_ids.min()} is one of the {num_known} of {paths['allx']}")
    if num_known + len(test_ids) > num_nodes:
        raise ValueError(
            f"{paths['graph']} has {num_nodes} nodes, and there are features of {num_known + len(test_ids)}"
        )
    labels = np.full(num_nodes, UNLABELLED, np.int64)
    labels[:num_known] = _classes(paths["ally"], num_known)
    labels[test_ids] = _classes(paths["ty"], len(test_ids))
    num_train = len(_classes(paths["y"]))
    if read_csr(paths["x"]).shape[0] != num_train or num_train + _NUM_VALID > num_known:
        raise ValueError(
            f"{paths['y']} has {num_train} labels: as many rows should be in {paths['x']}, and {_NUM_VALID} more known"
        )
    rows = np.full(num_nodes, -1, np.int64)
    rows[:num_known] = np.arange(num_known)
    rows[test_ids] = num_known + np.arange(len(test_ids))
    return GraphSource(
        num_nodes=num_nodes,
        edges=lambda edges_per_block: _edges(neighbors, edges_per_block),
        edges_name=str(paths["graph"]),
        features=SparseRows(_stacked(known, tested), rows, name=str(paths["allx"])),
        labels=ArrayMatrix(labels, name=str(paths["ally"])),
        train=np.arange(num_train),
        valid=np.arange(num_train, num_train + _NUM_VALID),
        test=np.sort(test_ids),
    )


class SparseRows:
    """Rows of a sparse matrix as a source of dense ones, float32.

    Args:
      matrix: the values.
      rows: which row of it each row of the source is; -1 for one of zeros.
    """

    def __init__(self, matrix: CsrMatrix, rows: Int64[np.ndarray, " rows"], *, name: str) -> None:
        self._matrix, self._rows, self.name = matrix, rows, name
        self.num_rows, self.width, self.dtype = len(rows), matrix.shape[1], np.dtype[Any](np.float32)

    def blocks(self, rows_per_block: int) -> Iterator[Float32[np.ndarray, "rows width"]]:
        indptr = self._matrix.indptr
        for start in range(0, self.num_rows, rows_per_block):
            rows = self._rows[start : start + rows_per_block]
            block = np.zeros((len(rows), self.width), np.float32)
            for place, row in enumerate(rows):
                if row >= 0:
                    entries = slice(indptr[row], indptr[row + 1])
                    np.add.at(block[place], self._matrix.indices[entries], self._matrix.data[entries])
            yield block


def _prefix(folder: Path, name: str | None) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    if name is None:
        names = sorted(path.name.split(".")[1] for path in folder.glob("ind.*.graph"))
        if len(names) != 1:
            raise ValueError(f"{folder} should have one ind.NAME.graph, it has {', '.join(names) or 'none'}")
        name = names[0]
    for suffix in _SUFFIXES:
        if not (path := folder / f"ind.{name}.{suffix}").is_file():
            raise FileNotFoundError(f"{path} is missing")
    return folder / f"ind.{name}"


def _require_nodes(neighbors: dict[int, list[int]], path: Path) -> None:
    num_nodes = len(neighbors)
    for node, listed in neighbors.items():
        for v in (node, *listed):
            if not 0 <= v < num_nodes:
                raise ValueError(
                    f"{path}: node {node} lists {v}, and there are {num_nodes} nodes: 0 to {num_nodes - 1}"
                )


def _classes(path: Path, num_rows: int | None = None) -> Int64[np.ndarray, " rows"]:
    """From rows with a 1 in the place of the class; a row of zeros has none."""
    rows = read_array(path)
    if rows.ndim != 2 or rows.shape[0] != (len(rows) if num_rows is None else num_rows) or rows.shape[1] < 1:
        raise ValueError(f"{path} should be [{'rows' if num_rows is None else num_rows}, classes], got {rows.shape}")
    if not (((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) <= 1).all()):
        raise ValueError(f"{path} should have at most one 1 in each row, and zeros")
    return np.where(rows.any(axis=1), rows.argmax(axis=1), UNLABELLED).astype(np.int64)


def _stacked(upper: CsrMatrix, lower: CsrMatrix) -> CsrMatrix:
    return CsrMatrix(
        (upper.shape[0] + lower.shape[0], upper.shape[1]),
        np.concatenate([upper.indptr, upper.indptr[-1] + lower.indptr[1:]]),
        np.concatenate([upper.indices, lower.indices]),
        np.concatenate([upper.data, lower.data]),
    )


def _edges(neighbors: dict[int, list[int]], edges_per_block: int) -> Iterator[EdgeBlock]:
    targets = np.repeat(np.array(list(neighbors), np.int64), [len(listed) for listed in neighbors.values()])
    sources = np.array([v for listed in neighbors.values() for v in listed], np.int64)
    for start in range(0, len(targets), edges_per_block):
        block = slice(start, start + edges_per_block)
        yield sources[block], targets[block]
