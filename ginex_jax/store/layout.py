"""How an array of a dataset lies on disk: zarr3 shards in which a row's place is a product, not a look-up.

Shards are `sharding_indexed`, uncompressed, with the index at the end, so that inner chunk i starts at byte i * inner_bytes and any zarr3
reader finds the same rows as `pread` does. Only chunk shapes know about padding; array shapes are the logical ones.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

SECTOR_BYTES = 512  # rows are read by direct I/O in these
_INNER_BYTES = 4096  # of a matrix: one page, the least a disk reads at its full rate
_SHARD_ROWS = 1 << 18  # of a matrix
_VECTOR_INNER_BYTES = 64 << 10  # of a vector, which is mostly read in long runs
_VECTOR_SHARD_BYTES = 64 << 20
_INDEX_ENTRY_BYTES = 16  # offset and size, each a uint64
_CRC_BYTES = 4
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in ("float16", "float32", "float64", "int32", "int64")
} | {"bfloat16": _BFLOAT16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """Chunks of a vector [rows] or a matrix [rows, width]."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= 2 or min(self.shape) < 0 or (len(self.shape) == 2 and self.shape[1] < 1):
            raise ValueError(f"shape should be [rows] or [rows, width] with a width of at least 1, got {self.shape}")
        if self.dtype.name not in DTYPES:
            raise ValueError(f"dtype should be one of {', '.join(DTYPES)}, got {self.dtype}")

    @property
    def num_rows(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Of a row's values."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @functools.cached_property
    def stride(self) -> int:
        """Bytes from row to row: a power of two up to a sector, whole sectors beyond, so that no short row straddles two."""
        if len(self.shape) == 1:
            return self.dtype.itemsize
        if self.row_bytes <= SECTOR_BYTES:
            return 1 << (self.row_bytes - 1).bit_length()
        return -(-self.row_bytes // SECTOR_BYTES) * SECTOR_BYTES

    @functools.cached_property
    def inner_rows(self) -> int:
        """Rows of an inner chunk."""
        return max(1, (_VECTOR_INNER_BYTES if len(self.shape) == 1 else _INNER_BYTES) // self.stride)

    @functools.cached_property
    def shard_rows(self) -> int:
        """Rows of a shard: whole inner chunks."""
        wanted = _VECTOR_SHARD_BYTES // self.stride if len(self.shape) == 1 else _SHARD_ROWS
        return -(-wanted // self.inner_rows) * self.inner_rows

    @property
    def inner_bytes(self) -> int:
        return self.inner_rows * self.stride

    @property
    def inner_per_shard(self) -> int:
        return self.shard_rows // self.inner_rows

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.shard_rows)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """What zarr is told: not every reader knows bfloat16."""
        return np.dtype(np.uint16) if self.dtype == _BFLOAT16 else self.dtype

    def inner_in_shard(self, shard: int) -> int:
        """Inner chunks that a shard holds: all of them, but for the last shard."""
        rows = min(self.shard_rows, self.num_rows - shard * self.shard_rows)
        return -(-rows // self.inner_rows)

    def shard_bytes(self, shard: int) -> int:
        """Size of a shard's file."""
        index = self.inner_per_shard * _INDEX_ENTRY_BYTES + _CRC_BYTES
        return self.inner_in_shard(shard) * self.inner_bytes + index

    def shard_name(self, shard: int) -> str:
        """Path of a shard below the array's folder."""
        return "/".join(["c", str(shard), *["0"] * (len(self.shape) - 1)])

    @property
    def nbytes(self) -> int:
        """Of all shards."""
        return sum(self.shard_bytes(shard) for shard in range(self.num_shards))

    def metadata(self) -> dict[str, Any]:
        """The array's `zarr.json`."""
        width = [self.stride // self.dtype.itemsize] if len(self.shape) == 2 else []
        sharding = {
            "chunk_shape": [self.inner_rows, *width],
            "codecs": [_LITTLE_ENDIAN],
            "index_codecs": [_LITTLE_ENDIAN, {"name": "crc32c"}],
            "index_location": "end",
        }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.stored_dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard_rows, *width]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {"dtype": "bfloat16"} if self.dtype == _BFLOAT16 else {},
        }
