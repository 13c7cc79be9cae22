"""Node ids of a split as the source calls them, before they are numbered."""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ginex_jax.ingest.csv_matrix import opened_text
from ginex_jax.ingest.node_files import PARQUET_SUFFIXES
from ginex_jax.ingest.parquet_file import opened_parquet
from ginex_jax.ingest.parquet_matrix import ID_COLUMN

_MAX_LINE_BYTES = 1 << 16
_READ_BYTES = 1 << 20


def read_original_ids(path: Path) -> Shaped[np.ndarray, " ids"]:
    """int64, or text as objects: from `.npy`, the column `id` (or the only one) of a Parquet file, or text with one id a line.

    Raises:
      ValueError: the file has something else in it.
      OSError: it cannot be read.
    """
    if path.suffix == ".npy":
        ids = np.load(path, allow_pickle=False)
        if ids.ndim != 1 or ids.dtype.kind not in "iuU":
            raise ValueError(f"{path} should be ids [nodes], integers or text, got {ids.dtype} {ids.shape}")
        return ids.astype(object) if ids.dtype.kind == "U" else ids.astype(np.int64)
    if path.suffix in PARQUET_SUFFIXES:
        return _parquet_ids(path)
    with opened_text(path) as stream:
        lines = [line.strip().decode() for line in iter(lambda: stream.readline(_MAX_LINE_BYTES), b"")]
    return as_ids([line for line in lines if line])


def as_ids(texts: list[str]) -> Shaped[np.ndarray, " ids"]:
    """int64 if all of them are written as numbers, objects otherwise."""
    try:
        return np.array([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError):
        return np.array(texts, object)


def _parquet_ids(path: Path) -> Shaped[np.ndarray, " ids"]:
    import pyarrow as pa

    with opened_parquet(path, read_bytes=_READ_BYTES) as file:
        names = file.schema_arrow.names
        if ID_COLUMN not in names and len(names) != 1:
            raise ValueError(f"{path} has columns {', '.join(names)}, and no column {ID_COLUMN!r}")
        column = file.read([ID_COLUMN if ID_COLUMN in names else names[0]]).column(0)
    if column.null_count:
        raise ValueError(f"{path} has a row without an id")
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64()).to_numpy()
    return np.array(column.to_pylist(), object)
