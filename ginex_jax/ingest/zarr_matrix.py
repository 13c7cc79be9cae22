"""A zarr array, of version 2 or 3, as a source of rows."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

_CACHE_BYTES = 64 << 20  # a chunk may hold more rows than a block, and is then unpacked once
_MAX_CHUNK_BYTES = 256 << 20


class ZarrMatrix:
    """A zarr folder as a source of rows; a vector is a matrix of width 1.

    uint16 with the attribute `dtype: bfloat16` is read as bfloat16, as datasets store it.
    """

    def __init__(self, path: Path) -> None:
        import tensorstore as ts

        self.name, driver = str(path), _driver(path)
        spec = {
            "driver": driver,
            "kvstore": {"driver": "file", "path": f"{path.absolute()}/"},
            "context": {"cache_pool": {"total_bytes_limit": _CACHE_BYTES}},
        }
        try:
            self._array = ts.open(spec, open=True, read=True).result()
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"{path} is no array that can be read: {str(error).splitlines()[0][:200]}") from error
        shape = self._array.shape
        if not 1 <= len(shape) <= 2 or (len(shape) == 2 and shape[1] < 1):
            raise ValueError(f"{path} should be [rows] or [rows, width], got {shape}")
        dtype = self._array.dtype.numpy_dtype
        chunk = [size or 1 for size in self._array.chunk_layout.read_chunk.shape or shape]
        if math.prod(chunk) * dtype.itemsize > _MAX_CHUNK_BYTES:
            raise ValueError(
                f"{path} has chunks of {tuple(chunk)}, more than {_MAX_CHUNK_BYTES >> 20} MiB: chunk it smaller"
            )
        self._is_bfloat16 = dtype == np.uint16 and _attributes(path).get("dtype") == "bfloat16"
        self.dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16) if self._is_bfloat16 else dtype
        self.num_rows: int = shape[0]
        self.width: int = shape[1] if len(shape) == 2 else 1

    def blocks(self, rows_per_block: int) -> Iterator[Shaped[np.ndarray, "rows width"]]:
        """See `MatrixSource.blocks`."""
        for start in range(0, self.num_rows, rows_per_block):
            stop = min(start + rows_per_block, self.num_rows)
            try:
                block = np.array(self._array[start:stop].read().result())
            except ValueError as error:
                raise ValueError(
                    f"{self.name} rows {start + 1} to {stop} (counting from 1): {str(error).splitlines()[0][:200]}"
                ) from error
            block = block.reshape(stop - start, self.width)
            yield block.view(self.dtype) if self._is_bfloat16 else block


def is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def _driver(path: Path) -> str:
    if (path / ".zarray").is_file():
        return "zarr"
    if not (path / "zarr.json").is_file():
        raise ValueError(f"{path} is not a zarr array: it has neither zarr.json nor .zarray")
    if _metadata(path).get("node_type") == "group":
        arrays = sorted(child.name for child in path.iterdir() if is_zarr(child))
        raise ValueError(
            f"{path} is a zarr group: name one of its arrays, {', '.join(arrays) or 'of which it has none'}"
        )
    return "zarr3"


def _attributes(path: Path) -> dict[str, Any]:
    attributes = _metadata(path).get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def _metadata(path: Path) -> dict[str, Any]:
    file = path / "zarr.json"
    if not file.is_file():
        return {}
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return document if isinstance(document, dict) else {}
