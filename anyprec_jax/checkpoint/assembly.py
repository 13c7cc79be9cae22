"""The leaves of a quantized model, as a disk holds them, put together as the decoder wants them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax import affine
from anyprec_jax.affine import AffineArray
from anyprec_jax.array import AnyPrecArray, Matrix
from anyprec_jax.checkpoint.manifest import AFFINE_LEAVES, MatrixEntry, common_precisions
from anyprec_jax.checkpoint.source import Source, codebook_leaves
from anyprec_jax.checkpoint.tree import nested
from anyprec_jax.compact_codebooks import codebooks_of, leaf_shapes, validate_leaves
from anyprec_jax.layout import prepare
from anyprec_jax.models.families import LAYERS, parameter_shapes
from anyprec_jax.models.fusion import PARTS
from anyprec_jax.models.model import Model
from anyprec_jax.models.parameters import aligned_empty
from anyprec_jax.ops import cpu


def model_of(source: Source, *, precisions: Sequence[int] | None = None, dtype: Any = jnp.float32) -> Model:
    """Reads all of a quantized source that the named precisions need.

    Args:
      source: quantized, with a path.
      precisions: those that will be asked for; None means all.
      dtype: of the leaves that are not quantized.

    Raises:
      ValueError: a precision that is not stored, or what `source.read` raises.

    Memory: the model, and one matrix of all layers.
    """
    assert source.path is not None
    wanted = checked_precisions(source.matrices, precisions, source.path)
    leaves: dict[str, np.ndarray] = {}
    for parameter, shape in parameter_shapes(source.config).items():
        for layer in range(shape[0]) if parameter.startswith(LAYERS) else (None,):
            for name, values in _parts(parameter, source.read(parameter, layer), wanted).items():
                if layer is None:
                    leaves[name] = values
                    continue
                if layer == 0:
                    leaves[name] = np.empty((shape[0], *values.shape), values.dtype)
                leaves[name][layer] = values
    params = assembled(leaves, source.matrices, wanted, dtype)
    return Model(config=source.config, params=params, tokenizer=source.tokenizer)


def checked_precisions(
    matrices: Mapping[str, MatrixEntry], precisions: Sequence[int] | None, path: Path
) -> tuple[int, ...]:
    """The precisions that were asked for, ascending; all that the matrices have for None, and none where nothing is quantized.

    Raises:
      ValueError: one that is not stored (those that are get named).
    """
    if not matrices:
        if precisions is not None:
            raise ValueError(f"{path} is not quantized, so it has no precisions to choose from")
        return ()
    stored = common_precisions(matrices)
    if not stored:
        raise ValueError(f"{path} is damaged: its manifest lists no matrix that could be read")
    wanted = tuple(sorted(set(stored if precisions is None else precisions)))
    missing = [w for w in wanted if w not in stored]
    if missing or not wanted:
        raise ValueError(
            f"precision {missing[0] if missing else '()'} is not in {path}, which holds {', '.join(map(str, stored))}"
        )
    return wanted


def _parts(parameter: str, leaf: Any, wanted: Sequence[int]) -> dict[str, np.ndarray]:
    if isinstance(leaf, AnyPrecArray):
        parts = {f"bitplanes/{p}": leaf.bitplanes[..., p, :, :] for p in range(max(wanted))}
        parts |= codebook_leaves(leaf.codebooks, wanted)
    elif isinstance(leaf, AffineArray):
        parts = {name: getattr(leaf, name) for name in AFFINE_LEAVES}
    else:
        return {parameter: leaf}
    return {f"{parameter}/{part}": np.asarray(values) for part, values in parts.items()}


def assembled(
    leaves: dict[str, np.ndarray], matrices: Mapping[str, MatrixEntry], wanted: Sequence[int], dtype: Any
) -> dict[str, Any]:
    """Puts leaves back together, consuming them: each is released once it is in its matrix, and only one matrix is doubled.

    On a CPU JAX takes over their memory where it can, without a copy: nobody else may write into it.
    """
    params: dict[str, Any] = {}
    for name, parts in fused_groups(matrices).items():
        matrix = matrices[parts[0]]
        if matrix.is_affine:
            params[name] = AffineArray(**{leaf: jax.device_put(leaves.pop(f"{name}/{leaf}")) for leaf in AFFINE_LEAVES})
            affine.validate(params[name])
            continue
        params[name] = _ready(
            AnyPrecArray(
                bitplanes=_stacked_planes(leaves, parts, max(wanted)),
                codebooks=_joined_codebooks(leaves, parts, matrix, wanted),
                seed_precision=min(wanted),
                parent_precision=max(wanted),
                k=matrix.k,
            )
        )
        if f"{parts[0]}_bias" in leaves and len(parts) > 1:
            leaves[f"{name}_bias"] = np.concatenate([leaves.pop(f"{part}_bias") for part in parts], axis=-1)
    # Not `jnp.asarray`, which compiles a program for every shape.
    params |= {name: jax.device_put(np.asarray(leaf, dtype)) for name, leaf in leaves.items()}
    return nested(params)


def fused_groups(matrices: Mapping[str, MatrixEntry]) -> dict[str, tuple[str, ...]]:
    """Every matrix in memory, and the ones in the artefact that it is made of, in order."""
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in matrices}
    for whole, parts in PARTS.items():
        paths = tuple(f"{LAYERS}{part}" for part in parts)
        if all(path in matrices for path in paths):
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


def _joined_codebooks(
    leaves: dict[str, np.ndarray], parts: Sequence[str], matrix: MatrixEntry, wanted: Sequence[int]
) -> Mapping[int, Any]:
    """Those of all parts, row below row.

    Raises:
      ValueError: compact ones with a scale that is not finite.
    """
    if not matrix.is_compact:
        return {w: _joined([leaves.pop(f"{part}/codebooks/{w}") for part in parts], -2) for w in wanted}
    names = leaf_shapes(matrix.seed_precision, max(wanted), 1)
    joined = {name: _joined([leaves.pop(f"{part}/{name}") for part in parts], -2) for name in names}
    codebooks = codebooks_of(joined, tuple(wanted))
    *lead, n, _ = joined[f"scales/{matrix.seed_precision}"].shape
    validate_leaves(codebooks, tuple(lead), n, max(wanted))
    return codebooks


def _joined(parts: Sequence[np.ndarray], axis: int) -> jax.Array:
    return jax.device_put(np.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0])


def _ready(stack: AnyPrecArray) -> Matrix:
    """The last step of a load, on one stack after the other: into the layout that the native product reads fastest, if it will run."""
    return prepare(stack) if jax.default_backend() == "cpu" and cpu.why_unavailable() is None else stack
