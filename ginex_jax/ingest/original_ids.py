"""Node ids as files list them, before anything is known of the nodes."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped

from ginex_jax.ingest.csv_matrix import BYTE_ORDER_MARK, opened_text
from ginex_jax.ingest.graph_source import MatrixSource
from ginex_jax.ingest.node_files import PARQUET_SUFFIXES, open_matrix, rows_at_once
from ginex_jax.ingest.parquet_file import opened_parquet
from ginex_jax.ingest.parquet_matrix import ID_COLUMN
from ginex_jax.ingest.row_numbers import nth_row

_TEXT_SUFFIXES = (".csv", ".txt")
_MAX_LINE_BYTES = 1 << 16
_READ_BYTES = 1 << 20
_SHOWN = 60
_PLAIN = re.compile(r"0|-?[1-9][0-9]{0,17}")  # other texts are no number's own name: 007 is not 7


def is_text(path: Path) -> bool:
    """Whether the file lists one id a line."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix in _TEXT_SUFFIXES


def read_original_ids(path: Path) -> Shaped[np.ndarray, " ids"]:
    """int64, or text as objects: of text, one id a line; of Parquet, the column `id` or the only one; of `.npy`, `.npz` or zarr, a vector.

    Raises:
      ValueError: the file has something else in it; its row is named.
      OSError: it cannot be read.
    """
    if is_text(path):
        return _text_ids(path)
    if path.suffix in PARQUET_SUFFIXES:
        return parquet_ids(path)
    matrix = open_matrix(path)
    if matrix.dtype.kind == "U" and matrix.width == 1:
        return np.concatenate([np.empty(0, object), *(block[:, 0] for block in matrix.blocks(rows_at_once(matrix)))])
    return matrix_ids(matrix)


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a text file that are not empty, without the space around them and the mark that some programs put before them."""
    with opened_text(path) as stream:
        first = True
        while line := stream.readline(_MAX_LINE_BYTES):
            line, first = line.removeprefix(BYTE_ORDER_MARK) if first else line, False
            if text := line.strip():
                yield text


def parquet_ids(path: Path) -> Shaped[np.ndarray, " ids"]:
    """The column `id`, or the only one, of a Parquet file. Raises as `read_original_ids`."""
    import pyarrow as pa

    with opened_parquet(path, read_bytes=_READ_BYTES) as file:
        names = file.schema_arrow.names
        if ID_COLUMN not in names and len(names) != 1:
            raise ValueError(f"{path} has columns {', '.join(names)}, and no column {ID_COLUMN!r}")
        column = file.read([ID_COLUMN if ID_COLUMN in names else names[0]]).column(0).combine_chunks()
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{path} {nth_row(row)}: the id is missing")
    if pa.types.is_integer(column.type):
        return _int64(column.to_numpy(), str(path))
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.array(column.to_pylist(), object)
    raise ValueError(f"{path} should be ids, integers or text, got {column.type}")


def matrix_ids(source: MatrixSource) -> Int64[np.ndarray, " ids"]:
    """A vector of integers. Raises as `read_original_ids`."""
    if source.width != 1 or source.dtype.kind not in "iu":
        raise ValueError(f"{source.name} should be integers [ids], got {source.dtype} of width {source.width}")
    blocks = [block[:, 0] for block in source.blocks(rows_at_once(source))]
    return _int64(np.concatenate(blocks), source.name) if blocks else np.empty(0, np.int64)


def _int64(ids: Shaped[np.ndarray, " ids"], name: str) -> Int64[np.ndarray, " ids"]:
    if ids.dtype == np.uint64 and len(ids) and ids.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} {nth_row(int(ids.argmax()))}: {ids.max()} is too large for a node")
    return ids.astype(np.int64)


def _text_ids(path: Path) -> Shaped[np.ndarray, " ids"]:
    """int64 if each is a number's own name, objects otherwise."""
    texts = []
    for row, line in enumerate(lines(path)):
        try:
            texts.append(line.decode())
        except UnicodeDecodeError:
            shown = line[:_SHOWN].decode(errors="replace")
            raise ValueError(f"{path} {nth_row(row)}: {shown!r} is no UTF-8 text") from None
    if all(_PLAIN.fullmatch(text) for text in texts):
        return np.array([int(text) for text in texts], np.int64)
    return np.array(texts, object)
