"""Numeric columns of a Parquet file as the rows of a matrix, in memory that does not depend on the size of its row groups."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ginex_jax.ingest.parquet_file import opened_parquet
from ginex_jax.ingest.row_numbers import nth_row

ID_COLUMN = "id"
_READ_BYTES = 256 << 10  # at once, of each column: a wide file has many


class ParquetMatrix:
    """A Parquet file as a source of rows: its numeric columns in order, or its one column of lists of one length.

    A column `id` is no feature but says whose row it is: `has_ids` says that it is there and `id_blocks` reads it. Missing numbers are
    NaN, and blocks of an integer matrix in which any are missing are float64.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.name, self._path = str(path), path
        with opened_parquet(path, read_bytes=_READ_BYTES) as file:
            schema = file.schema_arrow
            self.num_rows: int = file.metadata.num_rows
            self._columns = [name for name in schema.names if name != ID_COLUMN]
            self.has_ids = ID_COLUMN in schema.names
            if len(set(schema.names)) < len(schema.names):
                raise ValueError(f"{path} has two columns of one name")
            types = [schema.field(name).type for name in self._columns]
            self._is_list = len(types) == 1 and _is_list(types[0])
            if self._is_list:
                types = [types[0].value_type]
            for name, kind in zip(self._columns, types, strict=True):
                if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
                    first = next(file.iter_batches(1, columns=[name], use_threads=False), None)
                    value = "" if first is None else f"; {nth_row(0)}: value {first.column(0)[0].as_py()!s:.60}"
                    raise ValueError(f"{path}: column {name!r} is {kind}, and numbers are wanted: leave it out{value}")
            if not types:
                raise ValueError(f"{path} has no column besides {ID_COLUMN!r}")
            self.dtype: np.dtype[Any] = np.result_type(*(np.dtype(kind.to_pandas_dtype()) for kind in types))
            self.width: int = self._list_width(file) if self._is_list else len(types)

    def blocks(self, rows_per_block: int) -> Iterator[Shaped[np.ndarray, "rows width"]]:
        """See `MatrixSource.blocks`."""
        start = 0
        for batch in self._batches(self._columns, rows_per_block):
            yield self._lists(batch, start) if self._is_list else self._numbers(batch)
            start += batch.num_rows
        if start != self.num_rows:
            raise ValueError(f"{self._path} has {start} rows, and its footer promises {self.num_rows}")

    def id_blocks(self, rows_per_block: int) -> Iterator[Shaped[np.ndarray, " rows"]]:
        """The column `id`: integers, or text as objects."""
        start = 0
        for batch in self._batches([ID_COLUMN], rows_per_block):
            ids = batch.column(0)
            if ids.null_count:
                row = start + int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
                raise ValueError(f"{self._path} {nth_row(row)}: column {ID_COLUMN!r} has no value")
            yield ids.to_numpy(zero_copy_only=False)
            start += batch.num_rows

    def _batches(self, columns: list[str], rows_per_block: int) -> Iterator[Any]:
        with opened_parquet(self._path, read_bytes=_READ_BYTES) as file:
            yield from file.iter_batches(rows_per_block, columns=columns, use_threads=False)

    def _numbers(self, batch: Any) -> Shaped[np.ndarray, "rows width"]:
        columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
        missing = any(column.null_count for column in batch.columns) and self.dtype.kind != "f"
        block = np.empty((batch.num_rows, self.width), np.float64 if missing else self.dtype)
        for number, column in enumerate(columns):
            block[:, number] = column  # of booleans with gaps, objects: None becomes NaN
        return block

    def _lists(self, batch: Any, start: int) -> Shaped[np.ndarray, "rows width"]:
        import pyarrow as pa

        lists = batch.column(0)
        if lists.null_count:
            row = start + int(np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False))[0])
            raise ValueError(f"{self._path} {nth_row(row)}: the list is missing")
        if not pa.types.is_fixed_size_list(lists.type):
            lengths = lists.value_lengths().to_numpy()
            if (odd := np.flatnonzero(lengths != self.width)).size:
                raise ValueError(
                    f"{self._path} {nth_row(start + int(odd[0]))}: {lengths[odd[0]]} values, and the first row has {self.width}"
                )
        values = lists.flatten()
        return np.array(values.to_numpy(zero_copy_only=False)).reshape(batch.num_rows, self.width)

    def _list_width(self, file: Any) -> int:
        kind = file.schema_arrow.field(self._columns[0]).type
        width = getattr(kind, "list_size", None)
        if width is None:  # lists of any length: the first says
            first = next(file.iter_batches(1, columns=self._columns, use_threads=False), None)
            width = (
                len(first.column(0)[0]) if first is not None and first.num_rows and first.column(0)[0].is_valid else 0
            )
        if width < 1:
            raise ValueError(f"{self._path}: column {self._columns[0]!r} should be lists of at least one number")
        return width


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
