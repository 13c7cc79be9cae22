"""Feature rows read from local disk at the rate of the disk, past the page cache, into the place where they are wanted."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, Shaped

from ginex_jax.features import ReadCounter, ReadStats, destination
from ginex_jax.store.direct_reads import PieceReader, aligned_bytes
from ginex_jax.store.shards import open_sharded


class DirectFeatures:
    """Random access to the rows of a sharded array on local disk. A `FeatureStore`.

    Rows are read sorted by place; a sector that several rows share, and a row that is asked for twice, is read once, and close rows are
    read in one request. Rows of whole sectors go straight into `out` if it comes from `empty`, or is otherwise aligned; others are
    copied once.

    Attributes:
      note: why reads go through the page cache, or None where they go past it.
    """

    def __init__(self, path: str | Path, *, num_threads: int = 64) -> None:
        """Opens the array.

        Args:
          path: the array's folder.
          num_threads: requests on their way at the same time. Each holds 64 KiB or, if that is more, a row.

        Raises:
          ValueError: no array, damaged, or not in plain shards; see `open_sharded`.
          OSError: a shard cannot be opened.
        """
        array = open_sharded(path)
        if len(array.shape) != 2:
            raise ValueError(f"features should be [nodes, width], and {path} is {list(array.shape)}")
        self._array = array
        self._reader = PieceReader(array.paths, max_piece_bytes=array.row_bytes, num_threads=num_threads)
        self._counter = ReadCounter()
        self.note = self._reader.note

    def __enter__(self) -> "DirectFeatures":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; no other thread may be reading."""
        self._reader.close()

    @property
    def shape(self) -> tuple[int, int]:
        return self._array.shape[0], self._array.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def stats(self) -> ReadStats:
        return self._counter.stats

    def empty(self, num_rows: int) -> Shaped[np.ndarray, "rows width"]:
        """Memory for rows, not initialized, that `read_rows` fills without a copy.

        Rows of more than a sector lie as far apart as they do on disk, so that those of no whole number of sectors are not contiguous.
        """
        array, unit = self._array, self._reader.unit
        pitch = -(-array.row_bytes // unit) * unit if array.row_bytes >= unit else array.row_bytes
        memory = aligned_bytes(num_rows * pitch).view(_Rows).reshape(num_rows, pitch)
        return memory.view(np.ndarray)[:, : array.row_bytes].view(array.dtype)

    def read_rows(
        self,
        ids: Int64[np.ndarray, " rows"],
        *,
        out: Shaped[np.ndarray, "places width"] | None = None,
        slots: Integer[np.ndarray, " rows"] | None = None,
    ) -> Shaped[np.ndarray, "places width"]:
        """As `FeatureStore.read_rows`."""
        start = time.perf_counter()
        if out is None and slots is None and self._array.row_bytes % self._reader.unit == 0:
            out = self.empty(len(ids))
        out = destination(self, ids, out, slots)
        if not out.flags.writeable:
            raise ValueError("out is read-only")
        places = np.arange(len(ids)) if slots is None else slots.astype(np.int64)
        if out.shape[1] == 1 or out.strides[1] == out.itemsize:
            requests, num_bytes = self._read(ids, out, places)
        else:  # a row of `out` is in pieces
            rows = np.empty((len(ids), out.shape[1]), out.dtype)
            requests, num_bytes = self._read(ids, rows, np.arange(len(ids)))
            out[places] = rows
        self._counter.add(rows=len(ids), num_bytes=num_bytes, requests=requests, start=start)
        return out

    def _read(
        self,
        ids: Int64[np.ndarray, " rows"],
        out: Shaped[np.ndarray, "places width"],
        places: Int64[np.ndarray, " rows"],
    ) -> tuple[int, int]:
        files, offsets = self._array.locate(ids)
        if self._array.offsets is not None and (absent := offsets < 0).any():
            out[places[absent]] = self._array.fill
            files, offsets, places = files[~absent], offsets[~absent], places[~absent]
        sizes = np.full(len(files), self._array.row_bytes, np.int64)
        room = max(self._array.row_bytes, _pitch(out))
        return self._reader.read(files, offsets, sizes, places * out.strides[0], out=out, room=room)


class _Rows(np.ndarray):
    """Marks memory of `DirectFeatures.empty`: what lies between its rows is nobody's."""


def _pitch(out: np.ndarray) -> int:
    """Bytes from row to row in the memory of `empty` that this is part of, 0 if it is not."""
    base: Any = out.base
    while isinstance(base, np.ndarray):
        if isinstance(base, _Rows):
            return base.strides[0]
        base = base.base
    return 0
