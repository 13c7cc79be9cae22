"""A tree of named arrays on disk, in the format that Orbax reads, a layer of an array at a time.

Orbax itself saves and restores whole trees. Here it writes its own metadata, over stand-ins of one byte; the arrays then go where it
looks for them, through TensorStore, which it writes with as well: zarr arrays in one OCDBT store. An array of several axes is
stored in chunks of one layer, and of a part of its rows (or columns) where these are many, so that a reader of some reads no others.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import tensorstore

from anyprec_jax.checkpoint.manifest import ArrayEntry, array_entry

_INDEX_CACHE_BYTES = 32 << 20
_STAGED_BYTES = 16 << 20  # written in one transaction: each writes the index of the store anew
# Parts of a layer of an array: as many as devices often are, unless those are small, and more where those are large.
_FEW_PARTS, _SMALL_BYTES = 8, 64 << 10
_MOST_PARTS, _LARGE_BYTES = 64, 512 << 10
_NARROW = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))  # what plain arrays may be stored as, if nothing is lost
_ZARR_DTYPES = {"bfloat16": "bfloat16", "uint8": "|u1", "uint32": "<u4", "float16": "<f2", "float32": "<f4"}


class TreeWriter:
    """Writes arrays into a new checkpoint, and their checksums on the way. Call `finish` at the end."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Begins a checkpoint that will hold arrays of these names, `layers/q_proj/bitplanes/0` say; all must be written."""
        import orbax.checkpoint as ocp  # reading needs none of it

        self._folder = folder.absolute()
        here = jax.process_index()  # of several processes one writes, and the others are not asked
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"{folder.name}-{here}"
        )
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            stand_ins = nested({name: np.zeros(1, np.uint8) for name in names})
            checkpointer.save(self._folder, args=ocp.args.PyTreeSave(stand_ins))
        # The files are forced to the disk once, all together, before the folder gets its name.
        self._context = tensorstore.Context({"file_io_sync": False})
        self._stores: dict[str, tensorstore.TensorStore] = {}
        self._digests: dict[str, Any] = {}
        self._transaction = tensorstore.Transaction()
        self._staged_bytes = 0

    def create(self, name: str, dtype: np.dtype, shape: tuple[int, ...], *, axis: int = -2) -> None:
        """Makes room for an array, to be written layer by layer: its first axis is the layers'. Chunks divide `axis`."""
        spec = _spec(self._folder, name) | {
            "metadata": {
                "shape": shape,
                "chunks": chunk_shape(shape, dtype.itemsize, axis=axis),
                "dtype": _ZARR_DTYPES[dtype.name],
                "compressor": {"id": "zstd", "level": 1},
            },
            "store_data_equal_to_fill_value": True,
        }
        opened = tensorstore.open(spec, context=self._context, create=True, delete_existing=True)
        self._stores[name] = opened.result()
        self._digests[name] = hashlib.sha256()

    def write(self, name: str, values: np.ndarray, layer: int | None = None) -> None:
        """Writes one layer of an array that `create` made, in order; or, without a layer, a whole array."""
        if layer is None:
            self.create(name, values.dtype, values.shape)
        store = self._stores[name].with_transaction(self._transaction)
        contiguous = np.ascontiguousarray(values)
        self._digests[name].update(contiguous.reshape(-1).view(np.uint8).data)
        (store if layer is None else store[layer]).write(contiguous).result()
        self._staged_bytes += contiguous.nbytes
        if self._staged_bytes >= _STAGED_BYTES:
            self._commit()

    def finish(self) -> dict[str, ArrayEntry]:
        """Writes what is still to be written; returns what the manifest says of every array."""
        self._commit()
        return {
            name: ArrayEntry(
                shape=tuple(store.shape),
                dtype=store.dtype.name,
                nbytes=int(np.prod(store.shape, dtype=object)) * store.dtype.numpy_dtype.itemsize,
                sha256=self._digests[name].hexdigest(),
            )
            for name, store in self._stores.items()
        }

    def _commit(self) -> None:
        self._transaction.commit_sync()
        self._transaction = tensorstore.Transaction()
        self._staged_bytes = 0


class TreeReader:
    """Reads arrays of a checkpoint, whole or layer by layer, and checks them against the manifest."""

    def __init__(self, folder: Path, entries: Mapping[str, ArrayEntry]) -> None:
        """Opens a checkpoint; messages name the folder above it.

        Raises:
          ValueError: no checkpoint is there.
        """
        self._folder = folder.absolute()
        if not (self._folder / "manifest.ocdbt").is_file():
            raise ValueError(f"{self._folder} is damaged or incomplete: it is not an Orbax checkpoint in OCDBT format")
        self._path = folder.parent
        self._entries = entries
        # Room for the index of the checkpoint, which every leaf is looked up in and which would be read again for each.
        self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _INDEX_CACHE_BYTES}})
        self._opened: dict[str, tensorstore.TensorStore] = {}
        self._digests: dict[str, tuple[int, Any]] = {}  # name -> layers hashed so far, and the hash

    def read(self, name: str) -> np.ndarray:
        """A whole array.

        Raises:
          ValueError: it is not there, cannot be read, or is another than the manifest says.
        """
        values = self._read(name, ...)
        if array_entry(values) != self._entries[name]:
            raise self._mismatch(name)
        return values

    def read_layer(self, name: str, layer: int) -> np.ndarray:
        """One layer of an array. Where all are read in order, the last one tells whether the array matches its checksum.

        Raises:
          ValueError: as for `read`.
        """
        values = np.ascontiguousarray(self._read(name, layer))
        done, digest = (0, hashlib.sha256()) if layer == 0 else self._digests.get(name, (-1, None))
        if digest is not None and done == layer:
            digest.update(values.reshape(-1).view(np.uint8).data)
            self._digests[name] = (done + 1, digest)
            if done + 1 == self._entries[name].shape[0] and digest.hexdigest() != self._entries[name].sha256:
                raise self._mismatch(name)
        return values

    def read_part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of an array, of which only the chunks that it touches are read. Its values have no checksum, unless it is all of it.

        Raises:
          ValueError: as for `read`.
        """
        is_all = all(s == slice(0, size) for s, size in zip(index, self._entries[name].shape, strict=True))
        return self.read(name) if is_all else self._read(name, index)

    def _read(self, name: str, index: Any) -> np.ndarray:
        try:
            return self._store(name)[index].read().result()
        except (ValueError, OSError) as error:
            raise ValueError(f"{self._path} is damaged or incomplete: {name}: {_first_line(error)}") from error

    def _store(self, name: str) -> tensorstore.TensorStore:
        if name not in self._opened:
            spec, entry = _spec(self._folder, name), self._entries[name]
            store = tensorstore.open(spec, open=True, read=True, context=self._context).result()
            if store.shape != entry.shape or store.dtype.name != entry.dtype:
                raise ValueError(
                    f"it is {store.dtype.name} {store.shape}, the manifest says {entry.dtype} {entry.shape}"
                )
            self._opened[name] = store
        return self._opened[name]

    def _mismatch(self, name: str) -> ValueError:
        return ValueError(f"{self._path} is damaged: {name} does not match its checksum in the manifest")


def chunk_shape(shape: tuple[int, ...], itemsize: int, *, axis: int = -2) -> list[int]:
    """One layer, and an even share of its rows, so that devices that split the rows among them read a chunk each or more.

    Arrays of one or two axes have no layers. With an `axis` of -1, the columns are shared out instead.
    """
    chunk = [1, *shape[1:]] if len(shape) > 2 else list(shape)
    parts = 1
    while len(shape) > 1 and parts < _MOST_PARTS and chunk[axis] % 2 == 0:
        if np.prod(chunk, dtype=object) * itemsize <= (_SMALL_BYTES if parts < _FEW_PARTS else _LARGE_BYTES):
            break
        chunk[axis] //= 2
        parts *= 2
    return [max(size, 1) for size in chunk]


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of names with slashes."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def narrowest_dtype(layers: Callable[[], Iterable[np.ndarray]], dtype: np.dtype) -> np.dtype:
    """The narrowest of bfloat16, float16 and `dtype`, their own, that holds every value of some arrays exactly."""
    narrower = (other for other in _NARROW if other.itemsize < dtype.itemsize)
    return next((other for other in narrower if all(is_exact(array, other) for array in layers())), dtype)


def is_exact(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether every value survives in another dtype. Memory: two copies."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(array.astype(dtype).astype(array.dtype), array))


def _spec(folder: Path, name: str) -> dict[str, Any]:
    kvstore = {"driver": "ocdbt", "base": f"{folder.as_uri()}/", "path": f"{name.replace('/', '.')}/"}
    return {"driver": "zarr", "kvstore": kvstore}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
