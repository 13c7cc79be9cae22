"""Features between two layers: written front to back, then read at random; in memory or in files that are removed after use."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ginex_jax.features import ArrayFeatures, FeatureStore
from ginex_jax.store.direct_features import DirectFeatures
from ginex_jax.store.layout import ArrayLayout
from ginex_jax.store.writer import ArrayWriter


class HiddenFeatures:
    """Features [nodes, width] of one layer. Rows come in order with `append`; then `store` opens them; `remove` at any time."""

    def __init__(self, folder: Path | None, name: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        """An array `name` in `folder`, or in memory."""
        self._path = None if folder is None else folder / name
        self._store: DirectFeatures | ArrayFeatures | None = None
        self._array, self._writer, self._num_rows = None, None, 0
        if folder is None:
            self._array = np.empty(shape, dtype)
        else:
            self._writer = ArrayWriter(folder, name, shape, dtype)

    def append(self, rows: Float[np.ndarray, "rows width"]) -> None:
        if self._writer is not None:
            self._writer.append(rows)
        elif self._array is not None:
            self._array[self._num_rows : self._num_rows + len(rows)] = rows
        self._num_rows += len(rows)

    def store(self) -> FeatureStore:
        """Once all rows are there."""
        if self._writer is not None and self._path is not None:
            self._writer.close()
            self._store = DirectFeatures(self._path)
        else:
            assert self._array is not None, "not removed"
            self._store = ArrayFeatures(self._array)
        return self._store

    def remove(self) -> None:
        """Frees memory and disk; nothing reads any more. May be called again."""
        if isinstance(self._store, DirectFeatures):
            self._store.close()
        if self._writer is not None:
            self._writer.abandon()
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
        self._store = self._array = None


def on_disk_bytes(shape: tuple[int, int], dtype: np.dtype[Any]) -> int:
    """Of the files of such an array."""
    return ArrayLayout(shape=shape, dtype=dtype).nbytes
