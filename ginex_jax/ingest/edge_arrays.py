"""Edge lists in NumPy files.

A `.npy` file is [edges, 2] or [2, edges], sources first; 2 x 2 is read as [edges, 2]. An `.npz` archive has an array for each column, or
one array `edge_index` of either shape; weights are an array of their own. No pickle is read.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from ginex_jax.ingest.edge_blocks import EdgeColumns, RawEdgeBlock
from ginex_jax.ingest.npy_stream import NpyHeader, member_names, opened_member, read_header, read_values

EDGE_INDEX = "edge_index"

_Opened = Callable[[], contextlib.AbstractContextManager[tuple[io.BufferedIOBase, int]]]


class _Array(NamedTuple):
    """An array in a file; `opened()` gives a stream of it and its length in bytes, header included."""

    name: str
    opened: _Opened
    header: NpyHeader


def read(path: Path, columns: EdgeColumns, edges_per_block: int) -> Iterator[RawEdgeBlock]:
    """The edges of the file, of integers, floats or text.

    Raises:
      ValueError: it is damaged or has other arrays; those it has are listed.
    """
    endpoints, weights = _arrays(path, columns)
    pairs = _pairs(endpoints[0], edges_per_block) if len(endpoints) == 1 else _columns(endpoints, edges_per_block)
    values = None if weights is None else _values(weights, edges_per_block)
    first_row = 1
    for sources, targets in pairs:
        yield RawEdgeBlock(sources, targets, None if values is None else next(values), str(path), first_row)
        first_row += len(sources)


def count(path: Path, columns: EdgeColumns) -> int:
    """Edges of the file, as its headers say. Raises as `read`."""
    return _num_edges(_arrays(path, columns._replace(weight=None))[0])


def _arrays(path: Path, columns: EdgeColumns) -> tuple[list[_Array], _Array | None]:
    """One array of both ends or two of one each, and the weights; checked against each other."""
    if path.suffix.lower() == ".npy":
        if columns.weight is not None:
            raise ValueError(
                f"{path} has no column {columns.weight!r}: weights are an array of their own in an .npz file"
            )
        endpoints, weights = [_opened_array(path, None)], None
    else:
        names = member_names(path)
        has_columns = columns.source in names and columns.target in names
        if not has_columns and EDGE_INDEX not in names:
            missing = columns.source if columns.source not in names else columns.target
            raise ValueError(
                f"{path} has no array {missing!r}, and no {EDGE_INDEX}: it has {', '.join(names) or 'none'}"
            )
        members = [columns.source, columns.target] if has_columns else [EDGE_INDEX]
        endpoints = [_opened_array(path, member) for member in members]
        weights = None if columns.weight is None else _opened_array(path, columns.weight)
    if len(endpoints) == 1 and 2 not in endpoints[0].header.shape[:2]:
        raise ValueError(f"{endpoints[0].name} should be [edges, 2] or [2, edges], got {endpoints[0].header.shape}")
    lengths = [_num_edges(endpoints)] + [
        array.header.shape[0] for array in (*endpoints[1:], weights) if array is not None
    ]
    if len(set(lengths)) > 1:
        raise ValueError(f"{path}: sources, targets and weights should be of one length, got {lengths}")
    return endpoints, weights


def _num_edges(endpoints: list[_Array]) -> int:
    shape = endpoints[0].header.shape
    if len(endpoints) == 2:
        return shape[0]
    return shape[0] if shape[1] == 2 else shape[1]


def _opened_array(path: Path, member: str | None) -> _Array:
    opened = functools.partial(_opened_file, path) if member is None else functools.partial(opened_member, path, member)
    name = str(path) if member is None else f"{path}:{member}"
    with opened() as (stream, num_bytes):
        header = read_header(stream, num_bytes, name)
    if header.dtype.kind not in "iufU":
        raise ValueError(f"{name} holds {header.dtype}, and numbers or text are wanted")
    is_edge_index = member is None or member == EDGE_INDEX
    if len(header.shape) != (2 if is_edge_index else 1):
        shape = "[edges, 2] or [2, edges]" if is_edge_index else "[edges]"
        raise ValueError(f"{name} should be {shape}, got {header.shape}")
    return _Array(name, opened, header)


@contextlib.contextmanager
def _opened_file(path: Path) -> Iterator[tuple[io.BufferedIOBase, int]]:
    with path.open("rb") as stream:
        yield stream, path.stat().st_size


def _pairs(array: _Array, per_block: int) -> Iterator[tuple[Shaped[np.ndarray, " rows"], Shaped[np.ndarray, " rows"]]]:
    """Both ends from one array, where they lie side by side or one after the other."""
    header = array.header
    by_rows = header.shape[1] == 2
    num_edges = header.shape[0] if by_rows else header.shape[1]
    if by_rows != header.fortran_order:
        for values in _values(array, per_block, num_values=2):
            yield values[::2], values[1::2]
        return
    ends = [_values(array, per_block, start=end * num_edges, stop=(end + 1) * num_edges) for end in range(2)]
    yield from zip(*ends, strict=True)


def _columns(
    arrays: list[_Array], per_block: int
) -> Iterator[tuple[Shaped[np.ndarray, " rows"], Shaped[np.ndarray, " rows"]]]:
    yield from zip(*(_values(array, per_block) for array in arrays), strict=True)


def _values(
    array: _Array, per_block: int, *, num_values: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[Any]:
    """Values in the order they lie in the file, `num_values` for each of at most `per_block` rows."""
    header = array.header
    if stop is None:
        stop = int(np.prod(header.shape, dtype=np.int64))
    with array.opened() as (stream, _):
        stream.seek(header.data_start + start * header.dtype.itemsize)
        while start < stop:
            size = min(per_block * num_values, stop - start)
            yield read_values(stream, size, header.dtype, array.name)
            start += size
