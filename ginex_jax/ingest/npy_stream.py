"""NumPy files read a block at a time: `.npy` files, and members of `.npz` archives.

Nothing is mapped into memory, no pickle is read, and a header is believed only as far as the file is long.
"""

import ast
import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 1 << 16
_SKIP_BYTES = 1 << 20
_MAX_RATIO = 1100  # deflate's best is 1032


class NpyHeader(NamedTuple):
    """What the first bytes say about the rest."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    data_start: int  # bytes from the beginning

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: io.BufferedIOBase, num_bytes: int, name: str) -> NpyHeader:
    """Reads the header of an array that is `num_bytes` long with its header.

    Raises:
      ValueError: not a NumPy file, of objects or records, or of another length than the header says.
    """
    start = stream.read(8)
    if len(start) < 8 or start[:6] != _MAGIC or start[6] not in (1, 2, 3):
        raise ValueError(f"{name} is not a NumPy file: it starts with {start!r}")
    length_bytes = 2 if start[6] == 1 else 4
    length = int.from_bytes(stream.read(length_bytes), "little")
    text = stream.read(length) if length <= _MAX_HEADER_BYTES else b""
    if len(text) < length or length == 0:
        raise ValueError(f"{name} is damaged: its header should be {length} bytes")
    header = _parsed(text, 8 + length_bytes + length, name)
    if header.data_start + header.data_bytes != num_bytes:
        raise ValueError(
            f"{name} is {num_bytes:,} bytes, and its header promises {header.shape} of {header.dtype}, "
            f"{header.data_start + header.data_bytes:,} bytes"
        )
    return header


def _parsed(text: bytes, data_start: int, name: str) -> NpyHeader:
    try:
        fields = ast.literal_eval(text.decode("latin-1"))
        shape, order, descr = fields["shape"], fields["fortran_order"], fields["descr"]
        dtype = np.dtype(descr) if isinstance(descr, str) else None
        valid = all(type(size) is int and size >= 0 for size in shape) and type(order) is bool
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise ValueError(f"{name} is damaged: its header is {text[:80]!r}") from error
    if not valid or not isinstance(shape, tuple):
        raise ValueError(f"{name} is damaged: its header is {text[:80]!r}")
    if dtype is None or dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"{name} holds {descr!s:.80}, and plain numbers are wanted: save it as a numeric array")
    return NpyHeader(shape, dtype, order, data_start)


class NpyMatrix:
    """A `.npy` file, or a member of an `.npz` archive, as a source of rows; a vector is a matrix of width 1."""

    def __init__(self, path: Path, *, member: str | None = None) -> None:
        self._path, self._member = path, member
        self.name = str(path) if member is None else f"{path}:{member}"
        with self._opened() as (stream, num_bytes):
            self.header = read_header(stream, num_bytes, self.name)
        if not 1 <= len(self.header.shape) <= 2 or (len(self.header.shape) == 2 and self.header.shape[1] < 1):
            raise ValueError(f"{self.name} should be [rows] or [rows, width], got {self.header.shape}")
        if self._by_columns and member is not None:
            raise ValueError(f"{self.name} lies column by column: save it in C order (np.ascontiguousarray)")

    @property
    def num_rows(self) -> int:
        return self.header.shape[0]

    @property
    def width(self) -> int:
        return self.header.shape[1] if len(self.header.shape) == 2 else 1

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.header.dtype.newbyteorder("=")

    def blocks(self, rows_per_block: int) -> Iterator[Shaped[np.ndarray, "rows width"]]:
        """See `MatrixSource.blocks`. A file that lies column by column is read with a seek for each column of each block."""
        with self._opened() as (stream, _):
            skip(stream, self.header.data_start, self.name)
            for start in range(0, self.num_rows, rows_per_block):
                count = min(rows_per_block, self.num_rows - start)
                if self._by_columns:
                    yield self._columns(stream, start, count)
                else:
                    yield read_values(stream, count * self.width, self.header.dtype, self.name).reshape(
                        count, self.width
                    )

    def row_streams(self, values_per_block: int) -> list[Iterator[Shaped[np.ndarray, " values"]]]:
        """Every row by itself, a block at a time, each with a reader of its own: for matrices of few, long rows."""
        if self._by_columns:
            raise ValueError(f"{self.name} lies column by column: save it in C order (np.ascontiguousarray)")
        return [self._row(row, values_per_block) for row in range(self.num_rows)]

    def _row(self, row: int, values_per_block: int) -> Iterator[Shaped[np.ndarray, " values"]]:
        with self._opened() as (stream, _):
            skip(stream, self.header.data_start + row * self.width * self.dtype.itemsize, self.name)
            for start in range(0, self.width, values_per_block):
                yield read_values(stream, min(values_per_block, self.width - start), self.header.dtype, self.name)

    @property
    def _by_columns(self) -> bool:
        return self.header.fortran_order and self.width > 1

    def _columns(self, stream: io.BufferedIOBase, start: int, count: int) -> Shaped[np.ndarray, "rows width"]:
        block = np.empty((count, self.width), self.dtype)
        for column in range(self.width):
            stream.seek(self.header.data_start + (column * self.num_rows + start) * self.dtype.itemsize)
            block[:, column] = read_values(stream, count, self.header.dtype, self.name)
        return block

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[io.BufferedIOBase, int]]:
        if self._member is not None:
            with opened_member(self._path, self._member) as opened:
                yield opened
            return
        with self._path.open("rb") as stream:
            yield stream, self._path.stat().st_size


def member_names(path: Path) -> list[str]:
    """Names of the arrays of an `.npz` archive, without `.npy`."""
    with _damage_reported(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


@contextlib.contextmanager
def opened_member(path: Path, member: str) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """A stream of one array of an `.npz` archive, unpacked as it is read, and its length."""
    with _damage_reported(path), zipfile.ZipFile(path) as archive:
        try:
            info = archive.getinfo(f"{member}.npy")
        except KeyError:
            raise ValueError(f"{path} has no array {member!r}: it has {', '.join(member_names(path))}") from None
        if info.flag_bits & 1 or info.file_size > _MAX_RATIO * (info.compress_size + 1):
            raise ValueError(f"{path} is damaged: {info.compress_size:,} bytes cannot hold {info.file_size:,}")
        with archive.open(info) as stream:
            assert isinstance(stream, io.BufferedIOBase)
            yield stream, info.file_size


def read_values(
    stream: io.BufferedIOBase, count: int, dtype: np.dtype[Any], name: str
) -> Shaped[np.ndarray, " values"]:
    """The next `count` numbers, in the byte order of this machine."""
    values = np.empty(count, dtype)
    place, filled = memoryview(values.view(np.uint8)), 0  # type: ignore[arg-type]
    while filled < len(place):
        got = stream.readinto(place[filled:])
        if not got:
            raise ValueError(f"{name} ends {len(place) - filled:,} bytes early")
        filled += got
    return values.astype(dtype.newbyteorder("="), copy=False)


def skip(stream: io.BufferedIOBase, num_bytes: int, name: str) -> None:
    """Reads over the next bytes, where seeking would unpack them all the same."""
    while num_bytes:
        got = len(stream.read(min(num_bytes, _SKIP_BYTES)))
        if not got:
            raise ValueError(f"{name} ends {num_bytes:,} bytes early")
        num_bytes -= got


@contextlib.contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged, or no NumPy archive: {error}") from error
