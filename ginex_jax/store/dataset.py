"""A dataset: a folder with a graph, features, labels and splits, opened without reading them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tensorstore

from ginex_jax.features import FeatureStore
from ginex_jax.graph import CSCGraph, require_nodes
from ginex_jax.store.manifest import Manifest, read_manifest
from ginex_jax.store.stored_graph import StoredGraph
from ginex_jax.store.tensorstore_features import Implementation, open_features

_PIECE_BYTES = 16 << 20
_MAX_METADATA_BYTES = 1 << 20


class Dataset:
    """What `open_dataset` returns. Arrays are read when they are asked for, and kept.

    Attributes:
      path: the folder.
      manifest: what it holds.
    """

    def __init__(self, path: Path, manifest: Manifest, implementation: Implementation | None) -> None:
        self.path = path
        self.manifest = manifest
        self._implementation: Implementation | None = implementation

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}, {self.num_nodes:,} nodes, {self.num_edges:,} edges)"

    @property
    def num_nodes(self) -> int:
        return self.manifest.num_nodes

    @property
    def num_edges(self) -> int:
        return self.manifest.num_edges

    @functools.cached_property
    def graph(self) -> StoredGraph:
        """The graph with its lists on disk and `indptr`, 8 bytes a node, in memory.

        `graph.pin(memory_bytes, uses=graph.count_uses())` brings the lists that are read most, for their size, into memory;
        `load_graph` all of them.
        """
        weights = self.path / "weights" if "weights" in self.manifest.arrays else None
        return StoredGraph.open(self._required("indptr"), self.path / "indices", weights)

    def load_graph(self) -> CSCGraph:
        """The whole graph in memory: 8 bytes a node and, below 2^31 nodes, 4 an edge (8 where it has weights).

        Raises:
          ValueError: what is on disk is no graph.
        """
        indptr, indices = self.graph.indptr, self._required("indices")
        require_nodes(indices, self.num_nodes, self.path / "indices")
        return CSCGraph(indptr, indices, self._array("weights"))

    @functools.cached_property
    def features(self) -> FeatureStore | None:
        """Feature rows [nodes, width] on disk, or None."""
        return self.open_features()

    def open_features(self) -> FeatureStore | None:
        """As `features`, but opened anew: with files, threads and counts of its own."""
        if "features" not in self.manifest.arrays:
            return None
        return open_features(self.path / "features", implementation=self._implementation)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """int64 [nodes], -1 where unlabelled; or float32 [nodes, classes], NaN where unlabelled; or None."""
        return self._array("labels")

    @functools.cached_property
    def train(self) -> np.ndarray | None:
        """Node ids, int64."""
        return self._array("train")

    @functools.cached_property
    def valid(self) -> np.ndarray | None:
        """Node ids, int64."""
        return self._array("valid")

    @functools.cached_property
    def test(self) -> np.ndarray | None:
        """Node ids, int64."""
        return self._array("test")

    @functools.cached_property
    def original_ids(self) -> np.ndarray | None:
        """What node v was called in the source, int64 [nodes]; None where nodes kept their names or these are text."""
        return self._array("original_ids")

    def _required(self, name: str) -> np.ndarray:
        array = self._array(name)
        assert array is not None, f"the manifest has {name}"
        return array

    def _array(self, name: str) -> np.ndarray | None:
        if name not in self.manifest.arrays:
            return None
        return read_array(self.path / name)


def open_dataset(path: str | Path, *, features: Implementation | None = None) -> Dataset:
    """Opens a dataset that `ginex ingest` or `ginex generate` wrote; reads its manifest and the sizes of its files.

    Args:
      path: the folder.
      features: how feature rows are read: "direct", "tensorstore" or "memory"; by default the fastest that works here.

    Raises:
      ValueError: it is not a dataset, of a newer version, truncated, edited or otherwise damaged; one line that says where.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for name, entry in manifest.arrays.items():
        _check_metadata(folder / name, entry.layout.metadata())
        for shard, expected in enumerate(entry.shards):
            file = folder / name / entry.layout.shard_name(shard)
            if not file.is_file():
                raise ValueError(f"{folder} is damaged: {file} is missing")
            if file.stat().st_size != expected.nbytes:
                raise ValueError(
                    f"{folder} is damaged: {file} has {file.stat().st_size:,} bytes and should have {expected.nbytes:,}"
                )
    if manifest.has_string_ids and not (folder / "original_ids.parquet").is_file():
        raise ValueError(f"{folder} is damaged: original_ids.parquet is missing")
    return Dataset(folder, manifest, features)


def verify_checksums(dataset: Dataset, progress: Callable[[str, int, int], None] | None = None) -> None:
    """Reads every shard and compares its checksum with the manifest's.

    Raises:
      ValueError: one differs; the message names the file.
    """
    shards = [
        (dataset.path / name / entry.layout.shard_name(index), shard)
        for name, entry in dataset.manifest.arrays.items()
        for index, shard in enumerate(entry.shards)
    ]
    for done, (file, shard) in enumerate(shards):
        if progress is not None:
            progress("verifying", done, len(shards))
        if _checksum(file) != shard.crc32c:
            raise ValueError(f"{dataset.path} is damaged: {file} does not match its checksum in the manifest")
    if progress is not None:
        progress("verifying", len(shards), len(shards))


def _check_metadata(array: Path, expected: dict[str, Any]) -> None:
    file = array / "zarr.json"
    try:
        if file.stat().st_size > _MAX_METADATA_BYTES:
            raise ValueError("it is too large")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{array.parent} is damaged: {file}: {error}") from error
    if found != expected:
        raise ValueError(f"{array.parent} is damaged: {file} does not describe the array in the manifest")


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            checksum = google_crc32c.extend(checksum, piece)
    return checksum


def read_array(array: Path) -> np.ndarray:
    """A whole array of a dataset. TensorStore checks each shard's index on the way."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(array.absolute())}}
    try:
        return tensorstore.open(spec, open=True, read=True).result().read().result()
    except (ValueError, OSError) as error:
        raise ValueError(f"{array} is damaged: {str(error).splitlines()[0][:300]}") from error
