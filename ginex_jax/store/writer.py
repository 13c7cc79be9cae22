"""Writes an array of a dataset front to back, at the speed of the disk and in little memory, whatever its size."""

import json
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from jaxtyping import Shaped, UInt8

from ginex_jax.store.layout import ArrayLayout
from ginex_jax.store.manifest import ArrayEntry, ShardEntry

_ABSENT = np.uint64(2**64 - 1)
_PIECE_BYTES = 1 << 20  # padded at a time


class ArrayWriter:
    """Writes `FOLDER/NAME`: rows in order, then `close`.

    TensorStore writes the same bytes, but holds whole shards in memory (2 GiB of rows of 8 KiB) and takes ten times as long over
    chunks of 4 KiB.
    """

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.layout = ArrayLayout(shape=shape, dtype=np.dtype(dtype))
        self._folder = folder / name
        self._rows = 0
        self._shards: list[ShardEntry] = []
        self._file: BinaryIO | None = None
        self._checksum = 0
        self._folder.mkdir()
        (self._folder / "zarr.json").write_text(json.dumps(self.layout.metadata(), indent=1) + "\n", encoding="utf-8")

    def append(self, block: Shaped[np.ndarray, "rows ..."]) -> None:
        """Writes the next rows, of the array's dtype and width.

        Raises:
          ValueError: they have another dtype or width, or there are more than the array's shape says.
        """
        layout = self.layout
        if block.shape[1:] != layout.shape[1:] or block.dtype != layout.dtype:
            raise ValueError(
                f"{self._folder.name} has rows of {layout.dtype} {layout.shape[1:]}, got {block.dtype} {block.shape[1:]}"
            )
        if self._rows + len(block) > layout.num_rows:
            raise ValueError(f"{self._folder.name} has {layout.num_rows} rows, got {self._rows + len(block)}")
        start = 0
        while start < len(block):
            room = layout.shard_rows - self._rows % layout.shard_rows
            piece = block[start : start + min(room, max(1, _PIECE_BYTES // layout.stride))]
            self._write(self._padded(piece))
            self._rows += len(piece)
            start += len(piece)
            if self._rows % layout.shard_rows == 0:
                self._end_shard()

    def close(self) -> ArrayEntry:
        """Ends the array and describes it.

        Raises:
          ValueError: rows are missing.
        """
        if self._rows != self.layout.num_rows:
            raise ValueError(f"{self._folder.name} has {self.layout.num_rows} rows, and only {self._rows} came")
        if self._file is not None:
            self._end_shard()
        return ArrayEntry(shape=self.layout.shape, dtype=self.layout.dtype.name, shards=tuple(self._shards))

    def abandon(self) -> None:
        """Closes the open file; the array is of no use."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _padded(self, rows: Shaped[np.ndarray, "rows ..."]) -> UInt8[np.ndarray, " bytes"]:
        if self.layout.stride == self.layout.row_bytes:
            return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        padded = np.zeros((len(rows), self.layout.stride), np.uint8)
        padded[:, : self.layout.row_bytes] = (
            np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), self.layout.row_bytes)
        )
        return padded.reshape(-1)

    def _write(self, data: UInt8[np.ndarray, " bytes"]) -> None:
        if self._file is None:
            path = self._folder / self.layout.shard_name(len(self._shards))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._checksum = path.open("wb"), 0
        contents = data.tobytes()  # the checksum wants bytes, and nothing else
        self._file.write(contents)
        self._checksum = google_crc32c.extend(self._checksum, contents)

    def _end_shard(self) -> None:
        layout, shard = self.layout, len(self._shards)
        assert self._file is not None
        rows = self._rows - shard * layout.shard_rows
        present = layout.inner_in_shard(shard)
        self._write(np.zeros((present * layout.inner_rows - rows) * layout.stride, np.uint8))
        self._write(shard_index(layout, present))
        self._file.close()
        self._file = None
        self._shards.append(ShardEntry(nbytes=layout.shard_bytes(shard), crc32c=self._checksum))


def shard_index(layout: ArrayLayout, present: int) -> UInt8[np.ndarray, " bytes"]:
    """The index of a shard whose first `present` inner chunks are there: (offset, size) of each, and a checksum."""
    entries = np.full((layout.inner_per_shard, 2), _ABSENT, "<u8")
    entries[:present, 0] = np.arange(present, dtype=np.uint64) * np.uint64(layout.inner_bytes)
    entries[:present, 1] = layout.inner_bytes
    data = entries.tobytes()
    return np.frombuffer(data + google_crc32c.value(data).to_bytes(4, "little"), np.uint8)
