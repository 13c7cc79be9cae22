"""Edge lists in Parquet files, in memory that does not depend on the size of their row groups."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ginex_jax.ingest.edge_blocks import EdgeColumns, RawEdgeBlock
from ginex_jax.ingest.parquet_file import opened_parquet

_READ_BYTES = 1 << 20  # at once, of each column


def read(path: Path, columns: EdgeColumns, edges_per_block: int) -> Iterator[RawEdgeBlock]:
    """Three columns of the file, of integers, floats or text, as they are.

    Raises:
      ValueError: it is damaged, a column is not there, or it is of something else.
    """
    names = [name for name in columns if name is not None]
    first_row = 1
    with opened_parquet(path, read_bytes=_READ_BYTES) as file:
        for name in names:
            _require_column(path, file.schema_arrow, name)
        # Each column is a stream of pages; a row group is never held as a whole.
        for batch in file.iter_batches(edges_per_block, columns=list(dict.fromkeys(names))):
            source, target, *weight = (_plain(batch.column(name)) for name in names)
            yield RawEdgeBlock(source, target, weight[0] if weight else None, str(path), first_row)
            first_row += batch.num_rows


def count(path: Path) -> int:
    """Rows of the file, as its footer says."""
    with opened_parquet(path, read_bytes=_READ_BYTES) as file:
        return file.metadata.num_rows


def _require_column(path: Path, schema: Any, name: str) -> None:
    import pyarrow as pa

    if schema.names.count(name) != 1:
        many = "no column" if name not in schema.names else "more than one column"
        raise ValueError(f"{path} has {many} {name!r}: it has {', '.join(schema.names)}")
    kind = schema.field(name).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_number = pa.types.is_integer(value_kind) or pa.types.is_floating(value_kind)
    is_text = pa.types.is_string(value_kind) or pa.types.is_large_string(value_kind)
    if not (is_number or is_text or pa.types.is_null(value_kind)):
        raise ValueError(f"{path}: column {name!r} is {kind}, and numbers or text are wanted")


def _plain(column: Any) -> Any:
    """As a NumPy array without a copy where numbers have no gaps."""
    import pyarrow as pa

    if column.null_count == 0 and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column.to_numpy()
    return column
