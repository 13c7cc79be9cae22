"""Named arrays as an Orbax checkpoint, and back, every one checked."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import jax
import numpy as np
import tensorstore

_INDEX_CACHE_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayEntry:
    """What a checkpoint says of one array."""

    shape: tuple[int, ...]
    dtype: str
    crc32c: int


def array_entry(array: np.ndarray) -> ArrayEntry:
    """Shape, dtype and checksum of the values in C order."""
    checksum = google_crc32c.extend(0, np.ascontiguousarray(array).tobytes())
    return ArrayEntry(shape=array.shape, dtype=array.dtype.name, crc32c=checksum)


def flattened(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree on the host, under names such as `params/layers_0/kernel`. They may share memory with the tree's."""
    return {name: np.asarray(leaf) for name, leaf in _named_leaves(tree)}


def shapes_of(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of the leaves under the same names; they may be abstract."""
    return {name: (tuple(leaf.shape), leaf.dtype.name) for name, leaf in _named_leaves(tree)}


def unflattened(template: Any, leaves: Mapping[str, np.ndarray]) -> Any:
    """The pytree of the template's structure whose leaves these are."""
    names = [name for name, _ in _named_leaves(template)]
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in names])


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an Orbax checkpoint in which every `/` of a name is a level of the tree. `folder` must not exist.

    It is this process's own checkpoint: of several processes, one calls it.
    """
    import orbax.checkpoint as ocp  # half a second, and reading needs none of it

    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *levels, last = name.split("/")
        node = tree
        for level in levels:
            node = node.setdefault(level, {})
        node[last] = array
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"ginex_{jax.process_index()}",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree))


def restore_arrays(folder: Path, entries: Mapping[str, ArrayEntry]) -> dict[str, np.ndarray]:
    """Reads the named arrays of a checkpoint, and no others.

    Through TensorStore, which Orbax writes with: nothing is allocated before shape and dtype are found to be those wanted, and a damaged
    array is one error.

    Raises:
      ValueError: one is missing, damaged, or has another shape, dtype or checksum; its name is in the message.
    """
    if not (folder / "manifest.ocdbt").is_file():
        raise ValueError(f"{folder} is damaged or incomplete: it is not an Orbax checkpoint in OCDBT format")
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _INDEX_CACHE_BYTES}})
    return {name: _restored(folder, name, entry, context) for name, entry in entries.items()}


def _restored(folder: Path, name: str, entry: ArrayEntry, context: tensorstore.Context) -> np.ndarray:
    base = f"{folder.absolute().as_uri()}/"
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name.replace('/', '.')}/"},
    }
    try:
        store = tensorstore.open(spec, open=True, read=True, context=context).result()
        if store.shape != entry.shape or store.dtype.name != entry.dtype:
            raise ValueError(f"it is {store.dtype.name} {store.shape}, and {entry.dtype} {entry.shape} is wanted")
        array = np.asarray(store.read().result())
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder} is damaged: {name}: {str(error).splitlines()[0][:300]}") from error
    if array_entry(array) != entry:
        raise ValueError(f"{folder} is damaged: {name} does not match its checksum")
    return array


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in paths]
