"""Files about nodes: matrices of any of the formats, and feature rows fit to be stored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from ginex_jax.ingest.csv_matrix import CsvMatrix
from ginex_jax.ingest.graph_source import MatrixSource
from ginex_jax.ingest.npy_stream import NpyMatrix, member_names
from ginex_jax.ingest.parquet_matrix import ParquetMatrix
from ginex_jax.ingest.row_numbers import nth_row
from ginex_jax.ingest.zarr_matrix import ZarrMatrix, is_zarr

FEATURE_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
PARQUET_SUFFIXES = (".parquet", ".pq")
_BLOCK_BYTES = 16 << 20


class FeatureBlock(NamedTuple):
    """Rows that follow one another, and how many of them were not fit and are zero instead."""

    rows: Shaped[np.ndarray, "rows width"]
    num_bad_rows: int


def open_matrix(path: Path, *, member: str | None = None) -> MatrixSource:
    """A matrix [rows, width], or a vector as a matrix of width 1, to be read in blocks.

    Args:
      path: `.npy`; `.npz`; `.parquet` or `.pq` (see `ParquetMatrix`); `.csv` or `.csv.gz` without a header; or a zarr folder.
      member: the array of an `.npz` archive, where it has several.

    Raises:
      ValueError: the file is damaged, of a format not listed, or no matrix.
      OSError: it cannot be read.
    """
    suffixes = path.suffixes
    if member is not None and path.suffix != ".npz":
        raise ValueError(f"{path} has no array {member!r} to choose: that is for .npz archives")
    if is_zarr(path):
        return ZarrMatrix(path)
    if path.suffix in PARQUET_SUFFIXES:
        return ParquetMatrix(path)
    if path.suffix == ".npy":
        return NpyMatrix(path)
    if path.suffix == ".npz":
        return NpyMatrix(path, member=_member(path, member))
    if suffixes[-1:] == [".csv"] or suffixes[-2:] == [".csv", ".gz"]:
        return CsvMatrix(path, dtype=np.float64)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    raise ValueError(f"{path} is not .npy, .npz, .parquet, .csv, .csv.gz or a zarr folder")


def feature_blocks(
    source: MatrixSource, *, dtype: np.dtype[Any], rows_per_block: int | None = None, skip_bad_rows: bool = False
) -> Iterator[FeatureBlock]:
    """All rows in order as `dtype`, each value finite.

    Args:
      source: the matrix, of any numbers.
      dtype: float32, float16 or bfloat16.
      rows_per_block: at most; as many as 16 MiB hold if not given.
      skip_bad_rows: rows with a value that is NaN, infinite, or too large for `dtype`, become zero and are counted. A row cannot be
        left out: its place is its node's number.

    Raises:
      ValueError: a row is bad and `skip_bad_rows` is off, and its file, row, value and column are named; or the source has no numbers.
    """
    if dtype not in FEATURE_DTYPES:
        raise ValueError(f"features can be {', '.join(d.name for d in FEATURE_DTYPES)}, got {dtype}")
    require_numbers(source)
    start = 0
    for block in source.blocks(rows_per_block or rows_at_once(source)):
        rows = cast(block, dtype)
        bad = _bad_rows(rows)
        if len(bad) and not skip_bad_rows:
            raise ValueError(_complaint(source.name, start + int(bad[0]), block[bad[0]], rows[bad[0]]))
        rows[bad] = 0
        yield FeatureBlock(rows, len(bad))
        start += len(block)


def require_numbers(source: MatrixSource) -> None:
    """Raises ValueError, with the first value where there is one, unless the source holds real numbers."""
    if source.dtype.kind in "biuf" or source.dtype in FEATURE_DTYPES:
        return
    first = next((block for block in source.blocks(1)), None)
    shown = "" if first is None else f"; {nth_row(0)}: value {first[0, 0]!s:.60}"
    raise ValueError(f"{source.name} holds {source.dtype}, and numbers are wanted{shown}")


def rows_at_once(source: MatrixSource) -> int:
    """How many rows make a block of about 16 MiB, as stored or as float32."""
    return max(1, _BLOCK_BYTES // (source.width * max(4, source.dtype.itemsize)))


def cast(values: Shaped[np.ndarray, "*shape"], dtype: np.dtype[Any]) -> Shaped[np.ndarray, "*shape"]:
    """The values as `dtype`, in an array of its own or the same one; what does not fit becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.name == "bfloat16" and values.dtype.itemsize > 4:
            values = values.astype(np.float32)  # ml_dtypes knows no warnings from wider numbers
        return values.astype(dtype, copy=False)


def _bad_rows(rows: Shaped[np.ndarray, "rows width"]) -> Shaped[np.ndarray, " bad"]:
    """Rows with a value that is not finite."""
    return np.flatnonzero(~np.isfinite(rows).all(axis=1))


def _complaint(
    name: str, row: int, original: Shaped[np.ndarray, " width"], stored: Shaped[np.ndarray, " width"]
) -> str:
    column = int(np.flatnonzero(~np.isfinite(stored))[0])
    value = original[column]
    reason = f"does not fit {stored.dtype}" if np.isfinite(value) else "is not finite"
    return f"{name} {nth_row(row)}: value {value} in column {column} {reason}"


def _member(path: Path, member: str | None) -> str:
    if member is not None:
        return member
    names = member_names(path)
    if len(names) != 1:
        raise ValueError(f"{path} should have one array, or say which: it has {', '.join(names) or 'none'}")
    return names[0]
