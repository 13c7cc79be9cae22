"""An Orbax folder read share by share onto the devices that a model is split over."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from anyprec_jax.affine import AffineArray
from anyprec_jax.array import AnyPrecArray
from anyprec_jax.checkpoint.manifest import AFFINE_LEAVES, ArrayEntry, Manifest, MatrixEntry
from anyprec_jax.checkpoint.tree import TreeReader, nested
from anyprec_jax.compact_codebooks import codebooks_of, leaf_shapes
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import parameter_shapes
from anyprec_jax.sharding import Index, placed


def split_params(
    config: ModelConfig, manifest: Manifest, reader: TreeReader, wanted: Sequence[int], dtype: Any, mesh: Mesh
) -> tuple[ModelConfig, dict[str, Any]]:
    """The settings and weights of the split model, as `sharding.placed` gives them.

    Args:
      config: the model's.
      manifest: checked against it.
      reader: of the folder's arrays.
      wanted: the precisions to read, ascending; none where nothing is quantized.
      dtype: of the leaves that are not quantized.
      mesh: the devices.

    Raises:
      ValueError: an array that cannot be read, or a codebook that is not finite.
    """
    described = {name: _described(name, manifest, wanted, np.dtype(dtype)) for name in parameter_shapes(config)}

    def read(name: str, index: Index) -> np.ndarray:
        parameter, _, leaf = name.rpartition("/")
        if leaf == "bitplanes":
            return _planes(reader, name, index)
        for kind in ("entries", "scales"):  # compact ones are stored beside the planes
            name = name.replace(f"/codebooks/{kind}/", f"/{kind}/")
        values = reader.read_part(name, index)
        if parameter.endswith(("/codebooks", "/scales")) and not np.isfinite(values).all():
            raise ValueError(f"{name} is damaged: codebooks should be finite")
        return values.astype(dtype) if name in described else values

    return placed(config, nested(described), read, mesh)


def _planes(reader: TreeReader, name: str, index: Index) -> np.ndarray:
    """A part of the planes of a matrix, which are stored one by one: [*lead, planes, n, words]."""
    *lead, planes, rows, words = index
    parts = [reader.read_part(f"{name}/{p}", (*lead, rows, words)) for p in range(planes.start, planes.stop)]
    return np.stack(parts, axis=-3)


def _described(name: str, manifest: Manifest, wanted: Sequence[int], dtype: np.dtype) -> Any:
    """A parameter with shapes and dtypes for leaves."""
    entry, arrays = manifest.matrices.get(name), manifest.arrays
    if entry is None:
        return jax.ShapeDtypeStruct(arrays[name].shape, dtype)
    if entry.is_affine:
        return AffineArray(**{leaf: _shape(arrays[f"{name}/{leaf}"]) for leaf in AFFINE_LEAVES})
    return _described_matrix(name, entry, arrays, wanted)


def _described_matrix(
    name: str, entry: MatrixEntry, arrays: Mapping[str, ArrayEntry], wanted: Sequence[int]
) -> AnyPrecArray:
    *lead, n, words = arrays[f"{name}/bitplanes/0"].shape
    planes: Any = jax.ShapeDtypeStruct((*lead, max(wanted), n, words), np.uint32)
    books: Any = {w: _shape(arrays[f"{name}/codebooks/{w}"]) for w in wanted if not entry.is_compact}
    if entry.is_compact:
        leaves = leaf_shapes(entry.seed_precision, max(wanted), n)
        books = codebooks_of({leaf: _shape(arrays[f"{name}/{leaf}"]) for leaf in leaves}, tuple(wanted))
    return AnyPrecArray(planes, books, min(wanted), max(wanted), entry.k)


def _shape(entry: ArrayEntry) -> Any:
    return jax.ShapeDtypeStruct(entry.shape, entry.dtype)
