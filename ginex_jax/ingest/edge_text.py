"""Edge lists as text, a row a line: columns between commas, tabs, semicolons or spaces; gzipped or not.

Lines at the top that begin with `#` or `%` are comments. If the next line names the columns, it is the header. A file without a header
begins with numbers, and its first columns are source, target and, where it is asked for, weight.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ginex_jax.ingest.csv_matrix import BYTE_ORDER_MARK, opened_text
from ginex_jax.ingest.edge_blocks import BadRow, EdgeColumns, RawEdgeBlock
from ginex_jax.ingest.row_numbers import nth_row

_READ_BYTES = 1 << 20  # pieces of text that are parsed at once, some dozens of which are held; no line is longer
_PACKED = 3
_DELIMITERS = ("\t", ",", ";", " ")


class _Layout(NamedTuple):
    """What the top of a file says about the rest."""

    delimiter: str
    num_columns: int
    places: tuple[int, ...]  # of source, target and perhaps weight among the columns
    data_start: int  # bytes from the beginning


def read(path: Path, columns: EdgeColumns, edges_per_block: int) -> Iterator[RawEdgeBlock]:
    """The columns as text, and the lines that have more or fewer columns than the first.

    Raises:
      ValueError: it is damaged, no UTF-8, or has no such columns.
    """
    with opened_text(path) as stream:
        layout = _layout(path, stream, columns)
        stream.seek(0 if layout is None else layout.data_start)
        if layout is None or not stream.read(1):
            return
        stream.seek(layout.data_start)
        yield from _blocks(path, stream, layout, edges_per_block)


def guess(path: Path) -> int:
    """About how many rows the file has, if its rows are as long as the first ones; packed text is taken to be a third of its length."""
    with opened_text(path) as stream:
        sample = stream.read(_READ_BYTES)
    num_bytes = path.stat().st_size * (_PACKED if path.suffix.lower() == ".gz" else 1)
    return sample.count(b"\n") * num_bytes // max(1, len(sample))


def _blocks(path: Path, stream: io.BufferedIOBase, layout: _Layout, edges_per_block: int) -> Iterator[RawEdgeBlock]:
    import pyarrow as pa

    ragged: list[BadRow] = []  # met so far, those of pieces that were parsed ahead included
    first_row = 1
    try:
        for batch in _batches(stream, layout, ragged):
            for start in range(0, batch.num_rows, edges_per_block):
                piece = batch.slice(start, edges_per_block)
                block = _block(piece, layout, str(path), first_row, ragged)
                yield block
                first_row += piece.num_rows + len(block.bad_rows)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as text in columns, after row {first_row - 1}: {error}") from error
    if ragged:
        nothing = pa.array([], pa.string())
        weights = nothing if len(layout.places) == 3 else None
        yield RawEdgeBlock(nothing, nothing, weights, str(path), first_row, tuple(ragged))


def _block(batch: Any, layout: _Layout, path: str, first_row: int, ragged: list[BadRow]) -> RawEdgeBlock:
    """Takes from `ragged` the rows between those of the batch, and right behind them."""
    stop, bad = first_row + batch.num_rows, 0
    while bad < len(ragged) and ragged[bad].row <= stop:
        stop, bad = stop + 1, bad + 1
    bad_rows = tuple(ragged[:bad])
    del ragged[:bad]
    source, target, *weight = (batch.column(str(place)) for place in layout.places)
    return RawEdgeBlock(source, target, weight[0] if weight else None, path, first_row, bad_rows)


def _batches(stream: io.BufferedIOBase, layout: _Layout, ragged: list[BadRow]) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    def leave_out(row: Any) -> str:
        reason = f"{row.actual_columns} columns, and the first row has {row.expected_columns}"
        ragged.append(BadRow(row.number, row.text, reason))
        return "skip"

    names = [str(column) for column in range(layout.num_columns)]
    wanted = list(dict.fromkeys(names[place] for place in layout.places))
    yield from arrow_csv.open_csv(
        pa.PythonFile(stream, "r"),
        # With threads, rows lose their numbers.
        read_options=arrow_csv.ReadOptions(use_threads=False, block_size=_READ_BYTES, column_names=names),
        parse_options=arrow_csv.ParseOptions(delimiter=layout.delimiter, invalid_row_handler=leave_out),
        # Text, for whatever would be guessed from the first rows may not hold for the last one.
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()), include_columns=wanted
        ),
    )


def _layout(path: Path, stream: io.BufferedIOBase, columns: EdgeColumns) -> _Layout | None:
    """From the first line that is no comment; None if there is none."""
    start = len(BYTE_ORDER_MARK) if stream.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
    stream.seek(start)
    while line := stream.readline(_READ_BYTES):
        if line.strip() and not line.startswith((b"#", b"%")):
            break
        start += len(line)
    if not line:
        return None
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
    delimiter = next((character for character in _DELIMITERS if character in text), ",")
    try:
        fields = [field.strip() for field in next(csv.reader([text], delimiter=delimiter))]
    except csv.Error as error:  # a field of 128 KiB, or lines that end in a carriage return alone
        raise ValueError(f"{path} cannot be read as text in columns: its first line: {error}") from error
    wanted = [name for name in columns if name is not None]
    if all(fields.count(name) == 1 for name in wanted):
        return _Layout(delimiter, len(fields), tuple(fields.index(name) for name in wanted), start + len(line))
    if not any(_is_number(field) for field in fields[:2]):
        missing = next(name for name in wanted if fields.count(name) != 1)
        many = "more than one column" if missing in fields else "no column"
        raise ValueError(
            f"{path} has {many} {missing!r}: its first line says {', '.join(fields)}; "
            "a file of text ids needs a first line that names its columns"
        )
    if len(fields) < len(wanted):
        raise ValueError(
            f"{path} has {len(fields)} columns, and {', '.join(wanted)} are wanted: {nth_row(0)}: {text!r:.60}"
        )
    return _Layout(delimiter, len(fields), tuple(range(len(wanted))), start)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
