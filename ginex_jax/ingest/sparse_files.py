"""Sparse matrices as `scipy.sparse.save_npz` writes them, as edges: entry [i, j] is an edge from i to j. SciPy is not needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, Shaped

from ginex_jax.ingest.edge_blocks import RawEdgeBlock
from ginex_jax.ingest.npy_stream import NpyHeader, member_names, opened_member, read_header, read_values

_POINTERS_AT_ONCE = 1 << 20
_FORMATS = ("csr", "csc", "coo")


def sparse_shape(path: Path) -> tuple[int, int]:
    """Rows and columns of the matrix.

    Raises:
      ValueError: the file is damaged, or no matrix in one of the formats csr, csc and coo.
      OSError: it cannot be read.
    """
    _format(path)
    shape = next(_stream(path, "shape", "iu"), np.empty(0, np.int64))
    if len(shape) != 2 or shape.min() < 0:
        raise ValueError(f"{path} should be a matrix, and its shape is {shape.tolist()}")
    return int(shape[0]), int(shape[1])


def read_sparse(path: Path, *, edges_per_block: int = 1 << 20, weighted: bool = False) -> Iterator[RawEdgeBlock]:
    """The stored entries, zeros and repeated ones included, in the order of the file; rows are counted as entries.

    Args:
      edges_per_block: at most.
      weighted: the entries' values are weights; else they are not read.

    Raises:
      ValueError: the file is damaged, of another format, or its arrays do not fit together.
      OSError: it cannot be read.
    """
    kind = _format(path)
    num_rows, num_columns = sparse_shape(path)
    num_entries = _header(path, "row" if kind == "coo" else "indices", "iu").shape[0]
    if weighted and _header(path, "data", "iufb").shape != (num_entries,):
        raise ValueError(f"{path} should have {num_entries} values, got {_header(path, 'data', 'iufb').shape}")
    if kind == "coo":
        if _header(path, "col", "iu").shape != (num_entries,):
            raise ValueError(
                f"{path} has {num_entries} rows of entries, and {_header(path, 'col', 'iu').shape} columns"
            )
        ends = zip(
            _stream(path, "row", "iu", edges_per_block), _stream(path, "col", "iu", edges_per_block), strict=True
        )
    else:
        num_lists = num_rows if kind == "csr" else num_columns
        owners = _regrouped(_owners(path, num_lists, num_entries, edges_per_block), edges_per_block)
        pairs = zip(owners, _stream(path, "indices", "iu", edges_per_block), strict=True)
        ends = pairs if kind == "csr" else ((source, target) for target, source in pairs)
    values = _stream(path, "data", "iufb", edges_per_block) if weighted else None
    first_row = 1
    for sources, targets in ends:
        weights = None if values is None else _as_float_if_bool(next(values))
        yield RawEdgeBlock(sources, targets, weights, str(path), first_row)
        first_row += len(sources)


def _format(path: Path) -> str:
    if "format" not in member_names(path):
        raise ValueError(
            f"{path} is no sparse matrix saved by SciPy: it has {', '.join(member_names(path)) or 'nothing'}"
        )
    value = next(_stream(path, "format", "SU"), [""])[0]
    kind = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if kind not in _FORMATS:
        raise ValueError(
            f"{path} is a {kind or 'nameless':.40} matrix, and {', '.join(_FORMATS)} can be read: save it as .tocsr()"
        )
    return kind


def _owners(path: Path, num_lists: int, num_entries: int, per_block: int) -> Iterator[Int64[np.ndarray, " entries"]]:
    """For every entry the list it is in, from `indptr`; in pieces of any length up to `per_block`."""
    shape = _header(path, "indptr", "iu").shape
    if shape != (num_lists + 1,):
        raise ValueError(f"{path}: indptr should be [{num_lists + 1}], got {shape}")
    last, owner = None, 0
    for pointers in _stream(path, "indptr", "iu", _POINTERS_AT_ONCE):
        pointers = pointers.astype(np.int64)
        if last is not None:
            pointers = np.concatenate([[last], pointers])
        elif pointers[0] != 0:
            raise ValueError(f"{path}: indptr should begin with 0, got {pointers[0]}")
        if (falls := np.flatnonzero(np.diff(pointers) < 0)).size:
            raise ValueError(f"{path}: indptr falls after list {owner + falls[0]}")
        if pointers[-1] > num_entries:
            raise ValueError(f"{path}: indptr goes up to {pointers[-1]}, and there are {num_entries} entries")
        for start in range(int(pointers[0]), int(pointers[-1]), per_block):
            positions = np.arange(start, min(start + per_block, int(pointers[-1])))
            yield owner + np.searchsorted(pointers, positions, side="right") - 1
        owner, last = owner + len(pointers) - 1, int(pointers[-1])
    if last != num_entries:
        raise ValueError(f"{path}: indptr ends at {last}, and there are {num_entries} entries")


def _regrouped(pieces: Iterator[Int64[np.ndarray, " piece"]], per_block: int) -> Iterator[Int64[np.ndarray, " block"]]:
    """The same numbers, `per_block` at a time."""
    waiting = np.empty(0, np.int64)
    for piece in pieces:
        waiting = np.concatenate([waiting, piece])
        while len(waiting) >= per_block:
            yield waiting[:per_block]
            waiting = waiting[per_block:]
    if len(waiting):
        yield waiting


def _header(path: Path, member: str, kinds: str) -> NpyHeader:
    with opened_member(path, member) as (stream, num_bytes):
        header = read_header(stream, num_bytes, f"{path}:{member}")
    if header.dtype.kind not in kinds or len(header.shape) > 1:
        raise ValueError(f"{path}:{member} should be a vector of numbers, got {header.dtype} {header.shape}")
    return header


def _stream(path: Path, member: str, kinds: str, per_block: int = 1 << 16) -> Iterator[Shaped[np.ndarray, " values"]]:
    """The values of one array of the archive, `per_block` at a time."""
    header = _header(path, member, kinds)
    num_values = header.shape[0] if header.shape else 1
    with opened_member(path, member) as (stream, _):
        stream.seek(header.data_start)
        for start in range(0, num_values, per_block):
            yield read_values(stream, min(per_block, num_values - start), header.dtype, f"{path}:{member}")


def _as_float_if_bool(values: Any) -> Integer[np.ndarray, " values"] | Any:
    return values.astype(np.float32) if values.dtype.kind == "b" else values
