"""The native artefact: a folder with `manifest.json`, `config.json`, tokenizer files and an Orbax checkpoint.

The checkpoint is the parameter tree, with each any-precision matrix spelt out as one leaf per plane and one per codebook, so that a
reader of w bits touches w planes only. Any JAX project restores it with Orbax alone. It holds the seven linears; in memory those that
read the same input are fused.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from anyprec_jax import affine
from anyprec_jax.affine import AffineArray
from anyprec_jax.array import AnyPrecArray, Matrix, validate
from anyprec_jax.checkpoint import manifest as manifests
from anyprec_jax.checkpoint.atomic import published, require_room
from anyprec_jax.checkpoint.manifest import ArrayEntry, Manifest, MatrixEntry
from anyprec_jax.layout import natural, prepare
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import LAYERS, config_from_huggingface, config_to_huggingface, parameter_shapes
from anyprec_jax.models.fusion import PARTS, unfused
from anyprec_jax.models.model import HEADS, Model
from anyprec_jax.models.parameters import aligned_empty
from anyprec_jax.ops import cpu
from anyprec_jax.tokenizer import Tokenizer

_CHECKPOINT = "checkpoint"
_CONFIG = "config.json"
_INDEX_CACHE_BYTES = 32 << 20
_METADATA_BYTES = 1 << 20  # more than what Orbax writes beside the arrays


def save_artefact(path: Path, model: Model, *, provenance: Mapping[str, Any]) -> None:
    """Writes an artefact; it appears under `path` whole or not at all.

    Unquantized leaves are stored in the narrowest of bfloat16, float16 and float32 that holds every value exactly.

    Args:
      path: must not exist, or be an empty folder.
      model: at least one linear must be an `AnyPrecArray`.
      provenance: JSON-able facts about how the model was made.

    Raises:
      ValueError: nothing in the model is quantized, or an array breaks its invariants.
      OSError: the folder cannot be written (the path is in the message).
    """
    matrices, leaves = flatten(model.params)
    if all(matrix.is_affine for matrix in matrices.values()):
        raise ValueError("an artefact holds any-precision matrices, and this model has none: quantize it first")
    # Asked first, because Orbax's threads report a full disk at length, each for itself.
    require_room(path.parent, sum(leaf.nbytes for leaf in leaves.values()) + _METADATA_BYTES)
    with published(path) as folder:
        (folder / _CONFIG).write_text(
            json.dumps(config_to_huggingface(model.config), indent=2) + "\n", encoding="utf-8"
        )
        if model.tokenizer is not None:
            model.tokenizer.save(folder)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder.absolute() / _CHECKPOINT, args=ocp.args.PyTreeSave(_nest(leaves)))
        arrays = {name: manifests.array_entry(leaf) for name, leaf in leaves.items()}
        manifests.write(folder, Manifest(matrices=matrices, arrays=arrays, provenance=dict(provenance)))


def load_artefact(path: Path, *, precisions: Sequence[int] | None = None, dtype: Any = jnp.float32) -> Model:
    """Reads an artefact, only what the named precisions need, and checks every array against its checksum.

    Args:
      path: the folder.
      precisions: those that will be asked for; None means all. Planes above the highest are not read, nor are other codebooks.
      dtype: of the leaves that are not quantized.

    Raises:
      ValueError: a precision that is not stored; a folder that is damaged, truncated, foreign, or of a newer version.
    """
    manifest, config = read_description(path)
    wanted = _checked_precisions(manifest, precisions, path)
    names = [name for name in manifest.arrays if _is_needed(name, manifest, wanted)]
    leaves = _restore(path, {name: manifest.arrays[name] for name in names})
    params = _assemble(leaves, manifest, wanted, dtype)
    return Model(config=config, params=params, tokenizer=Tokenizer.from_folder(path))


def read_description(path: Path) -> tuple[Manifest, ModelConfig]:
    """What an artefact says of itself, checked for agreement; no array is read.

    Raises:
      ValueError: not an artefact, of a newer version, or its manifest and `config.json` are damaged or contradict each other.
    """
    manifest = manifests.read(path)
    config = _read_config(path)
    _check_shapes(manifest, config, path)
    return manifest, config


def is_quantized(params: Mapping[str, Any]) -> bool:
    """Whether any leaf is an any-precision matrix."""
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Matrix))
    return any(isinstance(leaf, Matrix) for leaf in leaves)


def flatten(params: Mapping[str, Any]) -> tuple[dict[str, MatrixEntry], dict[str, np.ndarray]]:
    """Spells a parameter tree out as named leaves, `layers/q_proj/bitplanes/0` and so on, the linears one by one."""
    matrices: dict[str, MatrixEntry] = {}
    leaves: dict[str, np.ndarray] = {}
    on_host = jax.tree.map(np.asarray, dict(params))  # parts of a fused linear are then views
    on_host["layers"] = unfused(on_host["layers"])
    flat, _ = jax.tree_util.tree_flatten_with_path(on_host, is_leaf=_is_matrix)
    for key_path, leaf in flat:
        name = "/".join(str(key.key) for key in key_path)
        if isinstance(leaf, Matrix):
            matrices[name], parts = _flatten_anyprec(natural(leaf))
        elif isinstance(leaf, AffineArray):
            matrices[name], parts = _flatten_affine(leaf)
        else:
            leaves[name] = narrowest_lossless(leaf)
            continue
        leaves |= {f"{name}/{part}": values for part, values in parts.items()}
    return matrices, leaves


def _is_matrix(leaf: object) -> bool:
    return isinstance(leaf, Matrix | AffineArray)


def _flatten_anyprec(array: AnyPrecArray) -> tuple[MatrixEntry, dict[str, np.ndarray]]:
    validate(array)
    entry = MatrixEntry(
        k=array.k,
        seed_precision=array.seed_precision,
        parent_precision=array.parent_precision,
        codebooks={str(w): manifests.CODEBOOK_KIND for w in array.precisions},
    )
    planes = np.asarray(array.bitplanes)
    parts = {f"bitplanes/{p}": np.ascontiguousarray(planes[..., p, :, :]) for p in range(array.parent_precision)}
    books = {f"codebooks/{w}": np.ascontiguousarray(array.codebooks[w]) for w in array.precisions}
    return entry, parts | books


def _flatten_affine(array: AffineArray) -> tuple[MatrixEntry, dict[str, np.ndarray]]:
    affine.validate(array)
    kinds = {str(affine.BITS): manifests.AFFINE_KIND}
    entry = MatrixEntry(k=array.k, seed_precision=affine.BITS, parent_precision=affine.BITS, codebooks=kinds)
    return entry, {leaf: np.asarray(getattr(array, leaf)) for leaf in manifests.AFFINE_LEAVES}


def narrowest_lossless(array: np.ndarray) -> np.ndarray:
    """The array in the narrowest of bfloat16, float16 and its own dtype that holds every value exactly."""
    for dtype in (ml_dtypes.bfloat16, np.float16):
        with np.errstate(over="ignore"):
            narrow = array.astype(dtype)
        if np.dtype(dtype).itemsize < array.dtype.itemsize and np.array_equal(narrow.astype(array.dtype), array):
            return narrow
    return array


def _checked_precisions(manifest: Manifest, precisions: Sequence[int] | None, path: Path) -> tuple[int, ...]:
    if not manifest.precisions:
        raise ValueError(f"{path} is damaged: its manifest lists no matrix that could be read")
    wanted = tuple(sorted(set(manifest.precisions if precisions is None else precisions)))
    missing = [w for w in wanted if w not in manifest.precisions]
    if missing or not wanted:
        stored = ", ".join(map(str, manifest.precisions))
        raise ValueError(f"precision {missing[0] if missing else '()'} is not in {path}, which holds {stored}")
    return wanted


def _read_config(path: Path) -> ModelConfig:
    try:
        return config_from_huggingface(json.loads((path / _CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path / _CONFIG} cannot be used: {error}") from error


def _check_shapes(manifest: Manifest, config: ModelConfig, path: Path) -> None:
    """Every array the manifest names must be one that the model's shape calls for: nothing is allocated on its word alone."""
    expected: dict[str, tuple[int, ...]] = {}
    _check_kinds(manifest, path)
    for name, shape in parameter_shapes(config).items():
        matrix = manifest.matrices.get(name)
        if matrix is None:
            expected[name] = shape
            continue
        *lead, n, k = shape
        if matrix.k != k:
            raise ValueError(f"{path} is damaged: {name} has k = {matrix.k}, config.json says {k}")
        if matrix.is_affine:
            expected |= {f"{name}/codes": (n, k), f"{name}/scale": (n,), f"{name}/offset": (n,)}
            continue
        for p in range(matrix.parent_precision):
            expected[f"{name}/bitplanes/{p}"] = (*lead, n, -(-k // 32))
        for w in matrix.codebooks:
            expected[f"{name}/codebooks/{w}"] = (*lead, n, 2 ** int(w))
    if differing := sorted(set(expected) ^ set(manifest.arrays)):
        side = "lacks" if differing[0] in expected else "has an unexpected"
        raise ValueError(f"{path} is damaged: its manifest {side} {differing[0]}")
    for name, entry in manifest.arrays.items():
        if entry.shape != expected[name]:
            raise ValueError(
                f"{path} is damaged: {name} has shape {entry.shape}, config.json calls for {expected[name]}"
            )


def _check_kinds(manifest: Manifest, path: Path) -> None:
    """Embedding and head may be affine, and nothing else."""
    for name, matrix in manifest.matrices.items():
        if matrix.is_affine != (name in HEADS):
            raise ValueError(f"{path} is damaged: {name} has codebooks {matrix.codebooks}")
        for leaf in manifests.AFFINE_LEAVES if matrix.is_affine else ():
            entry, dtype = manifest.arrays.get(f"{name}/{leaf}"), "uint8" if leaf == "codes" else "float32"
            if entry is not None and entry.dtype != dtype:
                raise ValueError(f"{path} is damaged: {name}/{leaf} is {entry.dtype}, not {dtype}")


def _is_needed(name: str, manifest: Manifest, wanted: Sequence[int]) -> bool:
    matrix, _, leaf = name.rpartition("/")
    matrix, _, part = matrix.rpartition("/")
    if matrix not in manifest.matrices:
        return True
    return int(leaf) < max(wanted) if part == "bitplanes" else int(leaf) in wanted


def _restore(path: Path, entries: Mapping[str, ArrayEntry]) -> dict[str, np.ndarray]:
    """Reads the named leaves and nothing else, and verifies them.

    Through TensorStore, which Orbax writes with: where a leaf is damaged Orbax fails with the reads of all others under way, and
    each of them complains later, into the middle of something else.
    """
    checkpoint = path.absolute() / _CHECKPOINT
    if not (checkpoint / "manifest.ocdbt").is_file():
        raise ValueError(f"{checkpoint} is damaged or incomplete: it is not an Orbax checkpoint in OCDBT format")
    # Room for the index of the checkpoint, which every leaf is looked up in and which would be read again for each.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _INDEX_CACHE_BYTES}})
    leaves: dict[str, np.ndarray] = {}
    for name, entry in entries.items():
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": f"{checkpoint.as_uri()}/", "path": f"{name.replace('/', '.')}/"},
        }
        try:
            store = tensorstore.open(spec, open=True, read=True, context=context).result()
            if store.shape != entry.shape or store.dtype.name != entry.dtype:
                raise ValueError(
                    f"it is {store.dtype.name} {store.shape}, the manifest says {entry.dtype} {entry.shape}"
                )
            leaves[name] = store.read().result()
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} is damaged or incomplete: {name}: {_first_line(error)}") from error
        if manifests.array_entry(leaves[name]) != entry:
            raise ValueError(f"{path} is damaged: {name} does not match its checksum in the manifest")
    return leaves


def _assemble(leaves: dict[str, np.ndarray], manifest: Manifest, wanted: Sequence[int], dtype: Any) -> dict[str, Any]:
    """Puts leaves back together, consuming them: each is released once it is in its matrix, and only one matrix is doubled."""
    params: dict[str, Any] = {}
    for name, parts in _groups(manifest).items():
        matrix = manifest.matrices[parts[0]]
        if matrix.is_affine:
            params[name] = AffineArray(
                **{leaf: jnp.asarray(leaves.pop(f"{name}/{leaf}")) for leaf in manifests.AFFINE_LEAVES}
            )
            affine.validate(params[name])
            continue
        params[name] = _ready(
            AnyPrecArray(
                bitplanes=_stacked_planes(leaves, parts, max(wanted)),
                codebooks={w: _joined([leaves.pop(f"{part}/codebooks/{w}") for part in parts], -2) for w in wanted},
                seed_precision=min(wanted),
                parent_precision=max(wanted),
                k=matrix.k,
            )
        )
        if f"{parts[0]}_bias" in leaves and len(parts) > 1:
            params[f"{name}_bias"] = jnp.asarray(
                np.concatenate([leaves.pop(f"{part}_bias") for part in parts], axis=-1), dtype
            )
    params |= {name: jnp.asarray(leaf, dtype) for name, leaf in leaves.items()}
    return _nest(params)


def _groups(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Every matrix in memory, and the ones in the artefact that it is made of, in order."""
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in manifest.matrices}
    for whole, parts in PARTS.items():
        paths = tuple(f"{LAYERS}{part}" for part in parts)
        if all(path in manifest.matrices for path in paths):
            groups = {name: group for name, group in groups.items() if name not in paths}
            groups[f"{LAYERS}{whole}"] = paths
    return groups


def _stacked_planes(leaves: dict[str, np.ndarray], parts: Sequence[str], planes: int) -> jax.Array:
    """The planes of all parts, row below row, in one buffer that JAX takes over without a copy."""
    shapes = [leaves[f"{part}/bitplanes/0"].shape for part in parts]
    *lead, _, words = shapes[0]
    stops = np.cumsum([shape[-2] for shape in shapes]).tolist()
    stack = aligned_empty((*lead, planes, stops[-1], words), np.dtype(np.uint32))
    for part, start, stop in zip(parts, [0, *stops], stops, strict=False):
        for plane in range(planes):
            stack[..., plane, start:stop, :] = leaves.pop(f"{part}/bitplanes/{plane}")
    return jax.device_put(stack)


def _joined(parts: Sequence[np.ndarray], axis: int) -> jax.Array:
    return jnp.asarray(np.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0])


def _ready(stack: AnyPrecArray) -> Matrix:
    """The last step of a load, on one stack after the other: into the layout that the native product reads fastest, if it will run."""
    return prepare(stack) if jax.default_backend() == "cpu" and cpu.why_unavailable() is None else stack


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
