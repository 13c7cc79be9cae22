"""Numbers in comma-separated text without a header, perhaps gzipped, as the rows of a matrix."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ginex_jax.ingest.row_numbers import nth_row

_READ_BYTES = 4 << 20  # pieces of text that are parsed at once; no line is longer
_SHOWN = 60
_LINE_END = b"\r\n"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class CsvMatrix:
    """A `.csv` or `.csv.gz` file as a source of rows. An empty field, or `nan`, is NaN where numbers are floats, and an error elsewhere.

    Args:
      path: the file.
      dtype: of the numbers, int64 or a float.
      num_rows: how many rows it should have, where known; they are counted, in one pass more, otherwise.
    """

    def __init__(self, path: Path, *, dtype: type[np.generic], num_rows: int | None = None) -> None:
        self._path, self.name, self.dtype = path, str(path), np.dtype(dtype)
        with opened_text(path) as stream:
            while (line := stream.readline(_READ_BYTES)) and not line.strip(_LINE_END):
                pass
        self.width: int = line.count(b",") + 1
        self.num_rows: int = num_lines(path) if num_rows is None else num_rows

    def blocks(self, rows_per_block: int) -> Iterator[Shaped[np.ndarray, "rows width"]]:
        """See `MatrixSource.blocks`."""
        start, pending = 0, np.empty((0, self.width), self.dtype)
        for piece in self._pieces():
            pending = np.concatenate([pending, piece]) if len(pending) else piece
            whole = len(pending) // rows_per_block * rows_per_block
            for first in range(0, whole, rows_per_block):
                yield pending[first : first + rows_per_block].copy()
            start, pending = start + len(piece), pending[whole:].copy()
            if start > self.num_rows:
                break
        if start != self.num_rows:
            more = "more" if start > self.num_rows else f"{start}"
            raise ValueError(f"{self.name} should have {self.num_rows} rows, and has {more}")
        if len(pending):
            yield pending

    def _pieces(self) -> Iterator[Shaped[np.ndarray, "rows width"]]:
        import pyarrow as pa
        from pyarrow import csv

        if not self.num_rows:
            return
        names = [str(number) for number in range(self.width)]
        kind = pa.from_numpy_dtype(self.dtype)
        nulls = ["", "nan", "NaN", "NA", "null"] if self.dtype.kind == "f" else []
        try:
            with opened_text(self._path) as stream:
                reader = csv.open_csv(
                    pa.PythonFile(stream, "r"),
                    read_options=csv.ReadOptions(use_threads=False, block_size=_READ_BYTES, column_names=names),
                    parse_options=csv.ParseOptions(quote_char=False),
                    convert_options=csv.ConvertOptions(
                        column_types=dict.fromkeys(names, kind), null_values=nulls, check_utf8=False
                    ),
                )
                for batch in reader:
                    columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
                    yield np.stack(columns, axis=1).astype(self.dtype, copy=False)
        except pa.ArrowInvalid as error:
            raise ValueError(self._explained(error)) from error

    def _explained(self, error: Exception) -> str:
        """Reads again from the beginning for the first row that is at fault: the parser does not always say which."""
        parse = int if self.dtype.kind == "i" else float
        with opened_text(self._path) as stream:
            rows = (line for line in iter(lambda: stream.readline(_READ_BYTES), b"") if line.strip(_LINE_END))
            for row, line in enumerate(rows):
                fields = line.removeprefix(BYTE_ORDER_MARK).strip().split(b",")
                if len(fields) != self.width:
                    return f"{self.name} {nth_row(row)}: {len(fields)} values, and the first row has {self.width}"
                for column, field in enumerate(fields):
                    try:
                        parse(field or b"nan")
                    except ValueError:
                        shown, whole = field[:_SHOWN].decode(errors="replace"), "whole " * (self.dtype.kind == "i")
                        return f"{self.name} {nth_row(row)}: {shown!r} in column {column} is not a {whole}number"
        return f"{self.name}: {error}"


def num_lines(path: Path) -> int:
    """How many lines of a text file, perhaps gzipped, are not empty."""
    with opened_text(path) as stream:
        count = 0
        while line := stream.readline(_READ_BYTES):
            count += bool(line.strip(_LINE_END))
    return count


@contextlib.contextmanager
def opened_text(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of a text file, unpacked where its name ends in `.gz`; damage is a ValueError that names the file."""
    if path.suffix != ".gz":
        with path.open("rb") as stream:
            yield stream
        return
    try:
        with gzip.open(path, "rb") as stream:
            yield stream
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
