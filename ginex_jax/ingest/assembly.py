"""A dataset while it is built: its arrays, one after the other, and at the end its manifest."""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ginex_jax.store.manifest import ArrayEntry, Manifest, write_manifest
from ginex_jax.store.writer import ArrayWriter

Progress = Callable[[str, int, int], None]  # phase, how much is done, of how much (0: nobody knows yet)
_ROWS_BYTES = 8 << 20  # of a block of rows


class Assembly:
    """The folder of a dataset that is not published yet. A context: files that are open when it ends, because of an error, are closed.

    Attributes:
      folder: where the arrays go.
      spill: a folder inside for what is in the way of being sorted; gone when the dataset is finished.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder = folder
        self.spill = folder / "spill"
        self.spill.mkdir()
        self.progress = progress
        self._entries: dict[str, ArrayEntry] = {}
        self._open_files = contextlib.ExitStack()

    def __enter__(self) -> "Assembly":
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    def make_writer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "_ListedWriter":
        """A writer of one array, which is listed in the manifest once it is closed."""
        writer = ArrayWriter(self.folder, name, shape, dtype)
        self._open_files.callback(writer.abandon)
        return _ListedWriter(self, name, writer)

    def write(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[Shaped[np.ndarray, "rows ..."]]
    ) -> None:
        """Writes an array whose rows come in order, cast to `dtype`."""
        writer = self.make_writer(name, shape, dtype)
        done = 0
        for block in blocks:
            writer.append(np.asarray(block, dtype))
            done += len(block)
            self.progress(f"writing {name}", done, shape[0])
        writer.close()

    def finish(
        self,
        *,
        num_nodes: int,
        provenance: Mapping[str, Any],
        node_order: str = "original",
        has_string_ids: bool = False,
    ) -> Manifest:
        """Removes what was spilled and writes the manifest."""
        shutil.rmtree(self.spill)
        manifest = Manifest(
            num_nodes=num_nodes,
            num_edges=self._entries["indices"].shape[0],
            arrays=dict(sorted(self._entries.items())),
            node_order=node_order,
            has_string_ids=has_string_ids,
            provenance=provenance,
        )
        write_manifest(self.folder, manifest)
        return manifest

    def list_array(self, name: str, entry: ArrayEntry) -> None:
        self._entries[name] = entry


class _ListedWriter:
    def __init__(self, assembly: Assembly, name: str, writer: ArrayWriter) -> None:
        self._assembly, self._name, self._writer = assembly, name, writer

    def append(self, block: Shaped[np.ndarray, "rows ..."]) -> None:
        self._writer.append(block)

    def close(self) -> None:
        self._assembly.list_array(self._name, self._writer.close())


def rows_per_block(width: int, dtype: np.dtype[Any]) -> int:
    """Rows of a block of a few megabytes."""
    return max(1, _ROWS_BYTES // (width * dtype.itemsize))


def pieces(array: Shaped[np.ndarray, "rows ..."], rows: int = 1 << 20) -> Iterator[Shaped[np.ndarray, "piece ..."]]:
    """An array in memory, as blocks."""
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
