"""A model on disk that is read a layer of a parameter at a time: what every format is read as, and written from.

Conversions hold one tensor of the model in memory. Everything here is NumPy: nothing is compiled, nothing goes to a device.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jaxtyping import Float32, Shaped

from anyprec_jax import affine
from anyprec_jax.affine import AffineArray
from anyprec_jax.array import AnyPrecArray, Matrix, expand
from anyprec_jax.bitplanes import row_codes
from anyprec_jax.checkpoint.manifest import (
    AFFINE_KIND,
    CODEBOOK_KIND,
    COMPACT_KIND,
    MatrixEntry,
    common_precisions,
)
from anyprec_jax.compact_codebooks import CompactCodebooks
from anyprec_jax.compaction import compact
from anyprec_jax.layout import natural
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import LAYERS, parameter_shapes
from anyprec_jax.models.fusion import unfused
from anyprec_jax.models.model import Model
from anyprec_jax.models.precision_map import Precision, PrecisionMap, QuantizationErrors, precisions_in
from anyprec_jax.tokenizer import Tokenizer

Leaf: TypeAlias = np.ndarray | AnyPrecArray | AffineArray  # the last two with NumPy leaves
CodebookKind: TypeAlias = Literal["float16", "compact"]

_WEIGHTS_AT_ONCE = 1 << 22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Everything about a model but its weights, and how to get at those.

    Attributes:
      format: huggingface, gguf, artefact, orbax or upstream; memory for a model that was not read from disk.
      path: the folder or file; None for a model in memory.
      config: sizes and settings.
      tokenizer: None where there is none.
      matrices: parameter -> what is quantized of it; all others are plain.
      dtypes: plain parameter -> dtype of what `read` gives.
      precisions: those that the model can be read at; none if it is not quantized.
      read: (parameter, layer) -> its weights in that layer; the layer is None outside the layers.
      provenance: JSON-able facts about how the model was made.
      read_at: the precision that plain weights were dequantized at; None where they were not.
      errors: what each precision costs each linear of the layers; None where nobody measured it.
    """

    format: str
    path: Path | None
    config: ModelConfig
    tokenizer: Tokenizer | None
    matrices: Mapping[str, MatrixEntry]
    dtypes: Mapping[str, np.dtype]
    precisions: tuple[int, ...]
    read: Callable[[str, int | None], Leaf]
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read_at: Precision | None = None
    errors: QuantizationErrors | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether anything is an any-precision matrix."""
        return any(not entry.is_affine for entry in self.matrices.values())


def model_source(model: Model) -> Source:
    """A model in memory as a source. What is read are views where the leaves are on the host."""
    leaves = {name: leaf for name, leaf in model.params.items() if name != "layers"}
    leaves |= {f"{LAYERS}{name}": leaf for name, leaf in _unfused_on_host(model.params["layers"]).items()}
    matrices = {name: entry for name, leaf in leaves.items() if (entry := matrix_entry(leaf)) is not None}
    plain = {name: np.asarray(leaf) for name, leaf in leaves.items() if name not in matrices}

    def read(parameter: str, layer: int | None) -> Leaf:
        if parameter in plain:
            return plain[parameter] if layer is None else plain[parameter][layer]
        leaf = leaves[parameter]
        if isinstance(leaf, AffineArray):
            return affine_on_host(np.asarray(leaf.codes), np.asarray(leaf.scale), np.asarray(leaf.offset))
        books = jax.tree.map(lambda book: np.asarray(book)[layer], leaf.codebooks)
        planes = np.asarray(leaf.bitplanes)[layer]
        return matrix_on_host(planes, books, leaf.seed_precision, leaf.parent_precision, leaf.k)

    return Source(
        format="memory",
        path=None,
        config=model.config,
        tokenizer=model.tokenizer,
        matrices=matrices,
        dtypes={name: leaf.dtype for name, leaf in plain.items()},
        precisions=common_precisions(matrices),
        read=read,
        errors=model.errors,
    )


def matrix_on_host(planes: np.ndarray, books: Mapping[int, np.ndarray], seed: int, parent: int, k: int) -> AnyPrecArray:
    """An any-precision matrix with NumPy leaves, which everything takes but the products. It is not validated."""
    leaves: tuple[Any, Any] = planes, books
    return AnyPrecArray(*leaves, seed, parent, k)


def affine_on_host(codes: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> AffineArray:
    """Affine rows with NumPy leaves. They are not validated."""
    leaves: tuple[Any, Any, Any] = codes, scale, offset
    return AffineArray(*leaves)


def matrix_entry(leaf: Any) -> MatrixEntry | None:
    """What the manifest says of a quantized leaf; None of a plain one."""
    if isinstance(leaf, AnyPrecArray):
        if isinstance(leaf.codebooks, CompactCodebooks):
            stored = leaf.codebooks.scales
            return compact_entry(leaf.k, min(stored), max(stored))
        kinds = {str(w): CODEBOOK_KIND for w in leaf.precisions}
        return MatrixEntry(
            k=leaf.k, seed_precision=leaf.seed_precision, parent_precision=leaf.parent_precision, codebooks=kinds
        )
    if isinstance(leaf, AffineArray):
        kinds = {str(affine.BITS): AFFINE_KIND}
        return MatrixEntry(k=leaf.k, seed_precision=affine.BITS, parent_precision=affine.BITS, codebooks=kinds)
    return None


def compact_entry(k: int, seed: int, parent: int) -> MatrixEntry:
    """What the manifest says of a matrix with compact codebooks."""
    kinds = {str(w): COMPACT_KIND for w in range(seed, parent + 1)}
    return MatrixEntry(k=k, seed_precision=seed, parent_precision=parent, codebooks=kinds)


def codebook_leaves(codebooks: Mapping[int, Any], wanted: Sequence[int]) -> dict[str, np.ndarray]:
    """What is stored of a matrix beside its planes, for reading it at some precisions, by the names that the manifest has for it."""
    if not isinstance(codebooks, CompactCodebooks):
        return {f"codebooks/{w}": np.asarray(codebooks[w]) for w in wanted}
    parts = {"entries": codebooks.entries, "scales": codebooks.scales}
    return {
        f"{part}/{w}": np.asarray(leaf)
        for part, leaves in parts.items()
        for w, leaf in leaves.items()
        if w <= max(wanted)
    }


def with_codebooks(source: Source, kind: CodebookKind) -> Source:
    """The source with every any-precision matrix's codebooks of one kind; what is of that kind is handed on as it is.

    Its provenance says so: what was made of it is not what `quantize` makes without.

    Raises:
      ValueError: when read, a matrix that compact codebooks cannot be made of (`compaction.compact`).
    """

    def entry(matrix: MatrixEntry) -> MatrixEntry:
        if matrix.is_affine:
            return matrix
        if kind == COMPACT_KIND:
            return compact_entry(matrix.k, matrix.seed_precision, matrix.parent_precision)
        return dataclasses.replace(matrix, codebooks=dict.fromkeys(matrix.codebooks, CODEBOOK_KIND))

    def read(parameter: str, layer: int | None) -> Leaf:
        leaf = source.read(parameter, layer)
        if not isinstance(leaf, AnyPrecArray):
            return leaf
        return compact(leaf) if kind == COMPACT_KIND else expand(leaf, leaf.precisions)

    matrices = {name: entry(matrix) for name, matrix in source.matrices.items()}
    if matrices == source.matrices:
        return source
    provenance = dict(source.provenance)
    if isinstance(made := provenance.get("quantization", {}), dict):  # a foreign hand may have left something else
        described = kind if kind == COMPACT_KIND else "float16, once compact"
        provenance["quantization"] = made | {"codebooks": described}
    return dataclasses.replace(source, matrices=matrices, read=read, provenance=provenance)


def plain_source(source: Source, *, precision: Precision | None, dtype: np.dtype | None) -> Source:
    """The model as plain arrays: what is quantized as `precision` has it.

    Args:
      source: any.
      precision: None for a model that has no any-precision matrices.
      dtype: of every weight; None keeps those of plain leaves, and makes the others float32.

    Raises:
      ValueError: no precision for a model that needs one, one for a model that has none, or one that it cannot be read at; when
        read, a weight too large for `dtype`.
    """
    _check_precision(source, precision)
    float32 = np.dtype(np.float32)
    dtypes = {name: dtype or source.dtypes.get(name, float32) for name in parameter_shapes(source.config)}

    def read(parameter: str, layer: int | None) -> Leaf:
        leaf, wanted = source.read(parameter, layer), dtypes[parameter]
        if isinstance(leaf, AnyPrecArray):
            plain = dequantized_matrix(leaf, precision=_precision_at(precision, parameter, layer), dtype=wanted)
        elif isinstance(leaf, AffineArray):
            plain = dequantized_rows(leaf, dtype=wanted)
        else:
            with np.errstate(over="ignore"):
                plain = leaf.astype(wanted, copy=False)
        _check_finite(plain, leaf, parameter, layer)
        return plain

    changes: dict[str, Any] = {"matrices": {}, "dtypes": dtypes, "precisions": (), "read_at": precision, "errors": None}
    return dataclasses.replace(source, read=read, **changes)


def _precision_at(precision: Precision | None, parameter: str, layer: int | None) -> int:
    if isinstance(precision, PrecisionMap):
        assert layer is not None
        return precision.of(parameter.removeprefix(LAYERS))[layer]
    assert precision is not None
    return precision


def dequantized_matrix(matrix: AnyPrecArray, *, precision: int, dtype: np.dtype) -> Shaped[np.ndarray, "*lead n k"]:
    """The weights of a matrix with NumPy leaves at one precision. Memory: the result, and 100 MB."""
    lead, n, k = matrix.shape[:-2], matrix.n, matrix.k
    result = np.empty((*lead, n, k), dtype)
    step = max(1, _WEIGHTS_AT_ONCE // k)
    books = np.asarray(matrix.codebooks[precision])
    for index in np.ndindex(*lead):
        planes, book = matrix.bitplanes[index][:precision], books[index].astype(dtype)
        for start in range(0, n, step):
            rows = slice(start, start + step)
            codes = row_codes(np.asarray(planes[:, rows]), k)
            result[(*index, rows)] = np.take_along_axis(book[rows], codes.astype(np.intp), axis=1)
    return result


def dequantized_rows(array: AffineArray, *, dtype: np.dtype) -> Shaped[np.ndarray, "n k"]:
    """The weights of affine rows with NumPy leaves. Memory: the result, and 100 MB."""
    result = np.empty(array.shape, dtype)
    step = max(1, _WEIGHTS_AT_ONCE // array.k)
    codes, scale, offset = (np.asarray(leaf) for leaf in (array.codes, array.scale, array.offset))
    for start in range(0, array.n, step):
        rows = slice(start, start + step)
        values: Float32[np.ndarray, "rows k"] = codes[rows].astype(np.float32) * scale[rows, None] + offset[rows, None]
        with np.errstate(over="ignore"):
            result[rows] = values.astype(dtype)
    return result


def _check_precision(source: Source, precision: Precision | None) -> None:
    where = "the model" if source.path is None else str(source.path)
    if not source.is_quantized and precision is not None:
        raise ValueError(f"{where} is not quantized, so it has no precisions to choose from")
    if isinstance(precision, PrecisionMap):
        _check_names(source, precision)
    if source.is_quantized and (
        missing := [w for w in precisions_in(precision) or (None,) if w not in source.precisions]
    ):
        stored = ", ".join(map(str, source.precisions))
        wanted = "a precision is needed for" if precision is None else f"precision {missing[0]} is not in"
        raise ValueError(f"{wanted} {where}, which holds {stored}")


def _check_names(source: Source, precisions: PrecisionMap) -> None:
    for name, entry in source.matrices.items():
        if not entry.is_affine and len(precisions.of(name.removeprefix(LAYERS))) != source.config.num_layers:
            raise ValueError(f"the precision map is not one of {source.config.num_layers} layers")


def _check_finite(plain: np.ndarray, leaf: Leaf, parameter: str, layer: int | None) -> None:
    """A weight that became infinite in a narrower dtype; one that was infinite before is not ours to judge."""
    if plain.dtype != np.float16 or not np.isinf(plain).any():
        return
    if isinstance(leaf, np.ndarray) and np.isinf(leaf).any():
        return
    where = parameter if layer is None else f"{parameter} of layer {layer}"
    raise ValueError(f"{where} has weights beyond float16's 65504: choose bfloat16 or float32")


def _unfused_on_host(layers: Mapping[str, Any]) -> dict[str, Any]:
    on_host = jax.tree.map(np.asarray, dict(layers))  # parts of a fused linear are then views
    return {name: natural(leaf) if isinstance(leaf, Matrix) else leaf for name, leaf in unfused(on_host).items()}
