"""Orbax folders: `manifest.json`, `config.json`, tokenizer files and an Orbax checkpoint.

The native artefact is one, with each any-precision matrix spelt out as one leaf per plane and one per codebook (two, of compact ones), so
that a reader of w bits touches w planes only; a plain model is one without such matrices. Any JAX project restores either with Orbax
alone. It holds the linears one by one; in memory those that read the same input are fused.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from anyprec_jax import affine
from anyprec_jax.affine import AffineArray
from anyprec_jax.array import AnyPrecArray, Matrix, validate
from anyprec_jax.checkpoint import manifest as manifests
from anyprec_jax.checkpoint.assembly import assembled, checked_precisions
from anyprec_jax.checkpoint.atomic import published, require_free, require_room
from anyprec_jax.checkpoint.manifest import Manifest, MatrixEntry
from anyprec_jax.checkpoint.source import (
    Leaf,
    Source,
    affine_on_host,
    codebook_leaves,
    compact_entry,
    matrix_on_host,
    model_source,
)
from anyprec_jax.checkpoint.split_params import split_params
from anyprec_jax.checkpoint.tree import TreeReader, TreeWriter, narrowest_dtype
from anyprec_jax.compact_codebooks import codebooks_of, leaf_shapes, row_bytes
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import LAYERS, config_from_huggingface, config_to_huggingface, parameter_shapes
from anyprec_jax.models.model import HEADS, Model
from anyprec_jax.models.split import cut_axis
from anyprec_jax.tokenizer import Tokenizer

_CHECKPOINT = "checkpoint"
_CONFIG = "config.json"
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
    source = model_source(model)
    if not source.is_quantized:
        raise ValueError("an artefact holds any-precision matrices, and this model has none: quantize it first")
    write_folder(path, source, provenance=provenance)


def write_folder(path: Path, source: Source, *, provenance: Mapping[str, Any], narrow: bool = True) -> None:
    """Writes an Orbax folder, an artefact if the source is quantized; it appears under `path` whole or not at all.

    Args:
      path: must not exist, or be an empty folder.
      source: what to write; read once in order, plain parameters that are narrowed twice.
      provenance: JSON-able facts about how the model was made.
      narrow: store plain parameters in the narrowest dtype that holds them exactly, and not in that of the source.

    Raises:
      ValueError: an array breaks its invariants.
      OSError: the folder cannot be written (the path is in the message).

    Memory: one tensor of the source, and 100 MB.
    """
    require_free(path)
    shapes = parameter_shapes(source.config)
    # Asked first, because a full disk is reported at length.
    require_room(
        path.parent, sum(_stored_bytes(name, shape, source) for name, shape in shapes.items()) + _METADATA_BYTES
    )
    with published(path) as folder:
        document = json.dumps(config_to_huggingface(source.config), indent=2) + "\n"
        (folder / _CONFIG).write_text(document, encoding="utf-8")
        if source.tokenizer is not None:
            source.tokenizer.save(folder)
        names = [leaf for name in shapes for leaf in _leaf_names(name, source.matrices.get(name))]
        writer = TreeWriter(folder / _CHECKPOINT, names)
        for name, shape in shapes.items():
            if name in source.matrices:
                _write_matrix(writer, name, shape, source)
            else:
                _write_plain(writer, name, shape, source, narrow=narrow)
        arrays = writer.finish()
        manifests.write(
            folder,
            Manifest(matrices=dict(source.matrices), arrays=arrays, provenance=dict(provenance), errors=source.errors),
        )


def load_artefact(
    path: Path, *, precisions: Sequence[int] | None = None, dtype: Any = jnp.float32, mesh: Mesh | None = None
) -> Model:
    """Reads an Orbax folder, only what the named precisions need, and checks every array against its checksum.

    With a mesh, the model is split over its devices (`sharding.shard`), and only the shares of the devices of this process are read. Then
    arrays are checked that are read whole: checksums are of whole arrays.

    Args:
      path: the folder.
      precisions: those that will be asked for; None means all. Planes above the highest are not read, nor are other codebooks.
      dtype: of the leaves that are not quantized.
      mesh: devices to split the model over, along their axis "model".

    Raises:
      ValueError: a precision that is not stored; a mesh without that axis; a folder that is damaged, truncated, foreign, or of a newer
        version.
    """
    manifest, config = read_description(path)
    wanted = checked_precisions(manifest.matrices, precisions, path)
    if mesh is not None:
        reader = TreeReader(path / _CHECKPOINT, manifest.arrays)
        config, params = split_params(config, manifest, reader, wanted, dtype, mesh)
        return Model(config=config, params=params, tokenizer=Tokenizer.from_folder(path), errors=manifest.errors)
    names = [name for name in manifest.arrays if _is_needed(name, manifest, wanted)]
    reader = TreeReader(path / _CHECKPOINT, manifest.arrays)
    leaves = {name: reader.read(name) for name in names}
    params = assembled(leaves, manifest.matrices, wanted, dtype)
    return Model(config=config, params=params, tokenizer=Tokenizer.from_folder(path), errors=manifest.errors)


def open_artefact(path: Path, *, precisions: Sequence[int] | None = None) -> Source:
    """An Orbax folder as a source, of only the planes and codebooks that the named precisions need.

    Where a stack is read layer by layer in order, the last layer tells whether it matches its checksum.

    Raises:
      ValueError: as for `load_artefact`.
    """
    manifest, config = read_description(path)
    wanted = checked_precisions(manifest.matrices, precisions, path)
    opened = functools.cache(lambda: TreeReader(path / _CHECKPOINT, manifest.arrays))  # who reads nothing needs none

    def part(name: str, layer: int | None) -> np.ndarray:
        return opened().read(name) if layer is None else opened().read_layer(name, layer)

    def read(parameter: str, layer: int | None) -> Leaf:
        entry = manifest.matrices.get(parameter)
        if entry is None:
            return part(parameter, layer)
        if entry.is_affine:
            return affine_on_host(*(part(f"{parameter}/{leaf}", layer) for leaf in manifests.AFFINE_LEAVES))
        planes = [part(f"{parameter}/bitplanes/{p}", layer) for p in range(max(wanted))]
        if entry.is_compact:
            names = leaf_shapes(entry.seed_precision, max(wanted), 1)
            books = codebooks_of({name: part(f"{parameter}/{name}", layer) for name in names}, wanted)
        else:
            books = {w: part(f"{parameter}/codebooks/{w}", layer) for w in wanted}
        return matrix_on_host(np.stack(planes, axis=-3), books, min(wanted), max(wanted), entry.k)

    matrices = {
        name: entry if entry.is_affine else _narrowed(entry, wanted) for name, entry in manifest.matrices.items()
    }
    dtypes = {
        name: manifests.DTYPES[e.dtype] for name, e in manifest.arrays.items() if name in parameter_shapes(config)
    }
    return Source(
        format="artefact" if manifest.precisions else "orbax",
        path=path,
        config=config,
        tokenizer=Tokenizer.from_folder(path),
        matrices=matrices,
        dtypes={name: np.dtype(dtype) for name, dtype in dtypes.items()},
        precisions=wanted,
        read=read,
        provenance=manifest.provenance,
        errors=manifest.errors,
    )


def read_description(path: Path) -> tuple[Manifest, ModelConfig]:
    """What an Orbax folder says of itself, checked for agreement; no array is read.

    Raises:
      ValueError: not such a folder, of a newer version, or its manifest and `config.json` are damaged or contradict each other.
    """
    manifest = manifests.read(path)
    config = _read_config(path)
    _check_shapes(manifest, config, path)
    return manifest, config


def is_quantized(params: Mapping[str, Any]) -> bool:
    """Whether any leaf is an any-precision matrix."""
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Matrix))
    return any(isinstance(leaf, Matrix) for leaf in leaves)


def _narrowed(entry: MatrixEntry, wanted: Sequence[int]) -> MatrixEntry:
    if entry.is_compact:  # of the precisions below, too, where those that are wanted come from
        return compact_entry(entry.k, entry.seed_precision, max(wanted))
    kinds = {str(w): entry.codebooks[str(w)] for w in range(min(wanted), max(wanted) + 1)}
    return MatrixEntry(k=entry.k, seed_precision=min(wanted), parent_precision=max(wanted), codebooks=kinds)


def _leaf_names(name: str, entry: MatrixEntry | None) -> list[str]:
    if entry is None:
        return [name]
    if entry.is_affine:
        return [f"{name}/{leaf}" for leaf in manifests.AFFINE_LEAVES]
    planes = [f"{name}/bitplanes/{p}" for p in range(entry.parent_precision)]
    return planes + [f"{name}/{leaf}" for leaf in entry.codebook_shapes(1)]


def _stored_bytes(name: str, shape: tuple[int, ...], source: Source) -> int:
    entry, weights = source.matrices.get(name), math.prod(shape)
    if entry is None:
        return weights * source.dtypes[name].itemsize
    if entry.is_affine:
        return weights + 8 * shape[0]
    rows = math.prod(shape[:-1])
    if entry.is_compact:
        codebooks = row_bytes(entry.seed_precision, entry.parent_precision)
    else:
        codebooks = 2 * sum(2 ** int(w) for w in entry.codebooks)
    return rows * (4 * entry.parent_precision * -(-entry.k // 32) + codebooks)


def _layers(name: str, shape: tuple[int, ...]) -> Sequence[int | None]:
    return range(shape[0]) if name.startswith(LAYERS) else (None,)


def _write_matrix(writer: TreeWriter, name: str, shape: tuple[int, ...], source: Source) -> None:
    for layer in _layers(name, shape):
        matrix = source.read(name, layer)
        if isinstance(matrix, AffineArray):
            affine.validate(matrix)
            parts = {leaf: np.asarray(getattr(matrix, leaf)) for leaf in manifests.AFFINE_LEAVES}
        else:
            assert isinstance(matrix, AnyPrecArray)
            _validate_layer(matrix, name, layer)
            parts = {f"bitplanes/{p}": matrix.bitplanes[..., p, :, :] for p in range(matrix.parent_precision)}
            parts |= codebook_leaves(matrix.codebooks, matrix.precisions)
        for part, values in parts.items():
            values = np.asarray(values)
            if layer == 0:
                axis = cut_axis(name) if part.startswith("bitplanes") else -2
                writer.create(f"{name}/{part}", values.dtype, (shape[0], *values.shape), axis=axis)
            writer.write(f"{name}/{part}", values, layer)


def _validate_layer(matrix: AnyPrecArray, name: str, layer: int | None) -> None:
    try:
        validate(matrix)
    except ValueError as error:
        raise ValueError(f"{name} of layer {layer}: {error}") from error


def _write_plain(writer: TreeWriter, name: str, shape: tuple[int, ...], source: Source, *, narrow: bool) -> None:
    def values(layer: int | None) -> np.ndarray:
        leaf = source.read(name, layer)
        assert isinstance(leaf, np.ndarray)
        return leaf

    layers = _layers(name, shape)
    dtype = source.dtypes[name]
    if narrow:
        dtype = narrowest_dtype(lambda: map(values, layers), dtype)
    for layer in layers:
        if layer == 0:
            writer.create(name, dtype, shape, axis=cut_axis(name))
        writer.write(name, values(layer).astype(dtype, copy=False), layer)


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
        expected |= {f"{name}/{leaf}": (*lead, *rows) for leaf, rows in matrix.codebook_shapes(n).items()}
    if differing := sorted(set(expected) ^ set(manifest.arrays)):
        side = "lacks" if differing[0] in expected else "has an unexpected"
        raise ValueError(f"{path} is damaged: its manifest {side} {differing[0]}")
    _check_errors(manifest, config, path)
    for name, entry in manifest.arrays.items():
        if entry.shape != expected[name]:
            raise ValueError(
                f"{path} is damaged: {name} has shape {entry.shape}, config.json calls for {expected[name]}"
            )


def _check_kinds(manifest: Manifest, path: Path) -> None:
    """Embedding and head may be affine, and nothing else; leaves that no product checks have their dtypes."""
    for name, matrix in manifest.matrices.items():
        if matrix.is_affine != (name in HEADS):
            raise ValueError(f"{path} is damaged: {name} has codebooks {matrix.codebooks}")
        for leaf in manifests.AFFINE_LEAVES if matrix.is_affine else ():
            entry, dtype = manifest.arrays.get(f"{name}/{leaf}"), "uint8" if leaf == "codes" else "float32"
            if entry is not None and entry.dtype != dtype:
                raise ValueError(f"{path} is damaged: {name}/{leaf} is {entry.dtype}, not {dtype}")
        for leaf in matrix.codebook_shapes(1) if matrix.is_compact else ():
            entry, dtype = manifest.arrays.get(f"{name}/{leaf}"), "float16" if leaf.startswith("scales") else "uint8"
            if entry is not None and entry.dtype != dtype:
                raise ValueError(f"{path} is damaged: {name}/{leaf} is {entry.dtype}, not {dtype}")


def _check_errors(manifest: Manifest, config: ModelConfig, path: Path) -> None:
    """Errors must be those of these linears, in these layers, at these precisions."""
    if (errors := manifest.errors) is None:
        return
    linears = {name.removeprefix(LAYERS) for name, matrix in manifest.matrices.items() if not matrix.is_affine}
    layers = {len(table) for table in errors.linears.values()}
    if (
        set(errors.linears) != linears
        or layers != {config.num_layers}
        or set(manifest.precisions) - {*errors.precisions}
    ):
        raise ValueError(f"{path} is damaged: the errors in its manifest are not those of its matrices")


def _is_needed(name: str, manifest: Manifest, wanted: Sequence[int]) -> bool:
    matrix, _, leaf = name.rpartition("/")
    matrix, _, part = matrix.rpartition("/")
    if matrix not in manifest.matrices:
        return True
    match part:
        case "bitplanes":
            return int(leaf) < max(wanted)
        case "codebooks":
            return int(leaf) in wanted
        case _:  # of compact ones, each is made of those below
            return int(leaf) <= max(wanted)
