"""Labels, one class or several tasks a node, and the ids of train, valid and test nodes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from ginex_jax.ingest.graph_source import MatrixSource
from ginex_jax.ingest.node_files import PARQUET_SUFFIXES, open_matrix, require_numbers, rows_at_once
from ginex_jax.ingest.original_ids import is_text, lines, matrix_ids, parquet_ids
from ginex_jax.ingest.row_numbers import nth_row

UNLABELLED = -1
_NUMBER = re.compile(rb"[+-]?[0-9]{1,18}")
_SHOWN = 60


class LabelBlock(NamedTuple):
    """Labels of nodes that follow one another, and how many of them were no labels and count as unlabelled instead."""

    labels: Int64[np.ndarray, " rows"] | Float32[np.ndarray, "rows tasks"]
    num_bad_rows: int


def label_dtype(source: MatrixSource) -> np.dtype[Any]:
    """int64 for classes [rows], from a source of width 1; float32 for tasks [rows, width]."""
    return np.dtype(np.int64 if source.width == 1 else np.float32)


def label_blocks(
    source: MatrixSource, *, rows_per_block: int | None = None, skip_bad_rows: bool = False
) -> Iterator[LabelBlock]:
    """All labels in order.

    A source of width 1 holds classes: whole numbers from 0, or -1 or NaN for a node without a label. A wider one holds a task in
    each column: finite numbers, NaN without a label.

    Args:
      skip_bad_rows: what is no label counts as missing, and is counted; a row with one is unlabelled as a whole.

    Raises:
      ValueError: a value is no label and `skip_bad_rows` is off, and its file, row and value are named; or the source has no numbers.
    """
    require_numbers(source)
    start = 0
    for block in source.blocks(rows_per_block or rows_at_once(source)):
        labels, bad = _classes(block[:, 0]) if source.width == 1 else _tasks(block)
        if len(bad) and not skip_bad_rows:
            row = int(bad[0])
            raise ValueError(f"{source.name} {nth_row(start + row)}: {_complaint(block[row])}")
        labels[bad] = UNLABELLED if source.width == 1 else np.nan
        yield LabelBlock(labels, len(bad))
        start += len(block)


def read_ids(path: Path, *, num_nodes: int, member: str | None = None) -> Int64[np.ndarray, " ids"]:
    """The nodes of a split, as listed.

    Args:
      path: `.npy`, `.npz` or zarr, with one integer a row; Parquet, the column `id` or the only one; or text, `.csv` or `.txt`, perhaps
        with `.gz`, one a line.
      num_nodes: ids lie in [0, num_nodes).

    Raises:
      ValueError: an id is out of range, listed twice, or not a whole number; its row is named.
    """
    if is_text(path):
        return read_text_ids(path, num_nodes=num_nodes)
    ids = parquet_ids(path) if path.suffix in PARQUET_SUFFIXES else matrix_ids(open_matrix(path, member=member))
    require_distinct_ids(ids, num_nodes, str(path))
    return ids


def read_text_ids(path: Path, *, num_nodes: int) -> Int64[np.ndarray, " ids"]:
    """`read_ids` of text, whatever the name of the file."""
    ids = _text_ids(path)
    require_distinct_ids(ids, num_nodes, str(path))
    return ids


def require_distinct_ids(ids: Shaped[np.ndarray, "..."], num_nodes: int, name: str) -> None:
    """Raises ValueError, with the first offender, unless ids are integers [ids], all in [0, num_nodes), and no two are equal."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{name} should be integers [ids], got {ids.dtype} {list(ids.shape)}")
    if (outside := np.flatnonzero((ids < 0) | (ids >= num_nodes))).size:
        row = int(outside[0])
        raise ValueError(
            f"{name} {nth_row(row)}: node {ids[row]}, and there are {num_nodes} nodes: 0 to {num_nodes - 1}"
        )
    order = np.argsort(ids, kind="stable")
    if (again := np.flatnonzero(np.diff(ids[order]) == 0)).size:
        row = int(order[again + 1].min())
        first = int(np.flatnonzero(ids == ids[row])[0])
        raise ValueError(
            f"{name} {nth_row(row)}: node {ids[row]} is listed in row {first + 1} already; {again.size} are repeated"
        )


def _classes(values: Shaped[np.ndarray, " rows"]) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " bad"]]:
    """Classes, and the rows that hold none."""
    if values.dtype.kind in "bi":
        classes = values.astype(np.int64)
        return classes, np.flatnonzero(classes < UNLABELLED)
    if values.dtype.kind == "u":
        bad = values > np.iinfo(np.int64).max
        return values.astype(np.int64), np.flatnonzero(bad)
    values = values.astype(np.float64)
    missing = np.isnan(values)
    with np.errstate(invalid="ignore"):
        valid = missing | ((values == np.floor(values)) & (values >= UNLABELLED) & (values < 2**53))
    return np.where(valid & ~missing, values, UNLABELLED).astype(np.int64), np.flatnonzero(~valid)


def _tasks(
    values: Shaped[np.ndarray, "rows tasks"],
) -> tuple[Float32[np.ndarray, "rows tasks"], Int64[np.ndarray, " bad"]]:
    with np.errstate(over="ignore"):
        tasks = values.astype(np.float32)
    return tasks, np.flatnonzero(np.isinf(tasks).any(axis=1))


def _complaint(row: Shaped[np.ndarray, " width"]) -> str:
    if len(row) == 1:
        return f"label {row[0]} should be a class, a whole number from 0, or -1 or NaN for none"
    with np.errstate(over="ignore"):
        column = int(np.flatnonzero(np.isinf(row.astype(np.float32)))[0])
    return f"label {row[column]} in column {column} should be finite in float32, or NaN for none"


def _text_ids(path: Path) -> Int64[np.ndarray, " ids"]:
    """One whole number a line; empty lines do not count."""
    ids = bytearray()  # of packed numbers: a list would take eight times as much
    for row, text in enumerate(lines(path)):
        if _NUMBER.fullmatch(text) is None:
            shown = text[:_SHOWN].decode(errors="replace")
            raise ValueError(f"{path} {nth_row(row)}: {shown!r} is not a node's number")
        ids += int(text).to_bytes(8, "little", signed=True)
    return np.frombuffer(bytes(ids), "<i8").astype(np.int64)
