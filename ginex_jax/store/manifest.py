"""The manifest of a dataset: what the folder holds, checked before anything else is read.

`manifest.json` lists every array beside it with shape, dtype, and size and checksum (CRC-32C) of each shard, and ends with a digest of
itself. A folder without a manifest is not a dataset.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ginex_jax.store.layout import DTYPES, ArrayLayout

FORMAT = "bandwise.ginex"
FORMAT_VERSION = 1
ARRAYS = ("indptr", "indices", "weights", "features", "labels", "train", "valid", "test", "original_ids")
_INTEGERS, _FLOATS = ("int32", "int64"), ("float16", "float32", "bfloat16")
# Name -> what it may be: the number of axes, and the dtypes.
_KINDS: Mapping[str, tuple[tuple[int, tuple[str, ...]], ...]] = {
    "indptr": ((1, ("int64",)),),
    "indices": ((1, _INTEGERS),),
    "weights": ((1, ("float32",)),),
    "features": ((2, _FLOATS),),
    "labels": ((1, ("int64",)), (2, ("float32",))),
    **dict.fromkeys(("train", "valid", "test", "original_ids"), ((1, ("int64",)),)),
}
_FILE = "manifest.json"
_MAX_BYTES = 64 << 20
_ORDERS = ("original", "degree", "bfs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One file of an array."""

    nbytes: int
    crc32c: int

    def __post_init__(self) -> None:
        if type(self.nbytes) is not int or type(self.crc32c) is not int or not 0 <= self.crc32c < 1 << 32:
            raise ValueError(f"{self.nbytes!r} bytes with checksum {self.crc32c!r} are no shard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayEntry:
    """One array of the dataset."""

    shape: tuple[int, ...]
    dtype: str
    shards: tuple[ShardEntry, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if not all(type(size) is int for size in self.shape):
            raise ValueError(f"shape {self.shape!s:.80} is not a list of sizes")
        layout = self.layout
        sizes = [layout.shard_bytes(shard) for shard in range(min(layout.num_shards, len(self.shards)))]
        if layout.num_shards != len(self.shards) or sizes != [shard.nbytes for shard in self.shards]:
            raise ValueError(f"its shards do not fit shape {self.shape} of {self.dtype}")

    @property
    def layout(self) -> ArrayLayout:
        return ArrayLayout(shape=self.shape, dtype=DTYPES[self.dtype])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a dataset but its arrays."""

    num_nodes: int
    num_edges: int
    arrays: Mapping[str, ArrayEntry]
    node_order: str = "original"  # how nodes were renumbered; `original_ids[v]` is what node v was called before
    has_string_ids: bool = False  # they were text, and are in original_ids.parquet
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # source and options, for people

    def __post_init__(self) -> None:
        if not all(type(number) is int and number >= 0 for number in (self.num_nodes, self.num_edges)):
            raise ValueError(f"{self.num_nodes!r} nodes and {self.num_edges!r} edges should be integers of at least 0")
        if self.node_order not in _ORDERS or type(self.has_string_ids) is not bool:
            raise ValueError(f"node order {self.node_order!r}, string ids {self.has_string_ids!r} are not known")
        if unknown := sorted(set(self.arrays) - set(ARRAYS)):
            raise ValueError(f"array {unknown[0]!r} is not one of {', '.join(ARRAYS)}")
        lengths = {"indptr": self.num_nodes + 1, "indices": self.num_edges, "weights": self.num_edges}
        lengths |= dict.fromkeys(("features", "labels", "original_ids"), self.num_nodes)
        for name in ("indptr", "indices"):
            if name not in self.arrays:
                raise ValueError(f"array {name} is missing")
        for name, entry in self.arrays.items():
            if not any(len(entry.shape) == axes and entry.dtype in dtypes for axes, dtypes in _KINDS[name]):
                raise ValueError(f"{name} cannot be {entry.dtype} {list(entry.shape)}")
            if entry.shape[0] != lengths.get(name, entry.shape[0]):
                raise ValueError(f"{name} has {entry.shape[0]} rows, and should have {lengths[name]}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, and the `zarr.json` that makes the folder a zarr group, into a folder that is not published yet."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"format": FORMAT}}
    (folder / "zarr.json").write_text(json.dumps(group, indent=1) + "\n", encoding="utf-8")
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    document["digest"] = _digest(document)
    (folder / _FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks `manifest.json`.

    Raises:
      ValueError: not a dataset, of a newer version, or damaged; one line that says which.
    """
    file = folder / _FILE
    if not file.is_file():
        raise ValueError(f"{folder} is not a dataset: it has no {_FILE}; `ginex ingest` makes one")
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{file} is {file.stat().st_size:,} bytes, too large for a manifest")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{file} is not the manifest of a dataset (format {FORMAT!r} wanted)")
    if document.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {document.get('format_version')!r}; this version of bandwise reads {FORMAT_VERSION}"
        )
    digest = document.pop("digest", None)
    if digest != _digest(document):
        raise ValueError(f"{file} was edited or is damaged: it does not match its own digest")
    try:
        return _parsed(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def content_digest(manifest: Manifest) -> str:
    """A digest of what the arrays hold: the same for a copy, and for the same input ingested again, wherever it came from."""
    arrays = {name: dataclasses.asdict(entry) for name, entry in manifest.arrays.items()}
    return _digest({"num_nodes": manifest.num_nodes, "num_edges": manifest.num_edges, "arrays": arrays})


def _parsed(document: dict[str, Any]) -> Manifest:
    fields = {name: value for name, value in document.items() if name not in ("format", "format_version", "arrays")}
    arrays = {
        name: ArrayEntry(
            shape=tuple(entry["shape"]),
            dtype=entry["dtype"],
            shards=tuple(ShardEntry(**shard) for shard in entry["shards"]),
        )
        for name, entry in document["arrays"].items()
    }
    if not isinstance(fields["provenance"], dict):
        raise ValueError("its provenance is no object")
    return Manifest(arrays=arrays, **fields)


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
