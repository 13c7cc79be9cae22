"""What a model on disk is and holds, in any format, from its descriptions alone: no weight is read."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from anyprec_jax import affine
from anyprec_jax.affine import AffineArray
from anyprec_jax.array import AnyPrecArray, nbytes
from anyprec_jax.checkpoint import export_record
from anyprec_jax.checkpoint import manifest as manifests
from anyprec_jax.checkpoint.formats import open_source
from anyprec_jax.checkpoint.manifest import MatrixEntry
from anyprec_jax.checkpoint.source import CodebookKind, Source, with_codebooks
from anyprec_jax.compact_codebooks import codebooks_of
from anyprec_jax.models.families import parameter_shapes

_PLAIN_BYTES = 4  # of a plain weight once it is loaded: float32


def inspect(path: Path) -> dict[str, Any]:
    """Describes a model: family, parameters, precisions, matrices, bits per weight, bytes and checksums.

    Bits per weight count planes and codebooks of the any-precision matrices: `resident` with every precision in memory, `read` what
    one pass over them at that precision touches. Affine matrices (embedding and head) are listed by themselves. `resident_bytes` is
    what all weights take in memory once loaded, at each precision alone, and with all of them; `resident_bits_by_codebooks`, what the
    any-precision matrices would take with either kind of codebooks.

    Returns:
      A JSON-able report.

    Raises:
      FileNotFoundError: nothing is there, or a file of it is missing.
      ValueError: not a model, a damaged one, or an architecture that is not supported.
    """
    source = open_source(path)
    shapes = parameter_shapes(source.config)
    stacks = {name: _abstract(shapes[name], e) for name, e in source.matrices.items() if not e.is_affine}
    heads = {name: _abstract_affine(shapes[name]) for name, e in source.matrices.items() if e.is_affine}
    plain = {name: math.prod(shape) for name, shape in shapes.items() if name not in source.matrices}
    weights = sum(math.prod(stack.shape) for stack in stacks.values())
    sizes = {
        "quantized": sum(nbytes(stack) for stack in stacks.values()),
        "affine": sum(affine.nbytes(head) for head in heads.values()),
        "unquantized": sum(count * source.dtypes[name].itemsize for name, count in plain.items()),
        "on_disk": _on_disk(path),
    }
    record = export_record.read(path) if path.is_dir() else None
    return {
        "path": str(path),
        "format": source.format,
        "format_version": manifests.FORMAT_VERSION if source.format in ("artefact", "orbax") else None,
        "family": source.config.family,
        "layers": source.config.num_layers,
        "context": source.config.max_position_embeddings,
        "tokenizer": source.tokenizer is not None,
        "precisions": list(source.precisions),
        "fractional_precisions": source.errors is not None if source.is_quantized else None,
        "parameters": sum(map(math.prod, shapes.values())),
        "quantized_weights": weights,
        "affine_weights": sum(math.prod(head.shape) for head in heads.values()),
        "unquantized_weights": sum(plain.values()),
        "dtypes": sorted({dtype.name for dtype in source.dtypes.values()}),
        "bits_per_weight": _bits_per_weight(stacks, source.precisions),
        "codebooks": sorted(
            {kind for e in source.matrices.values() if not e.is_affine for kind in e.codebooks.values()}
        ),
        "resident_bits_by_codebooks": _resident_by_kind(source, shapes),
        "bytes": sizes,
        "resident_bytes": _resident_bytes(
            stacks, sizes["affine"] + _PLAIN_BYTES * sum(plain.values()), source.precisions
        ),
        "matrices": {name: _describe(stack, source.matrices[name]) for name, stack in stacks.items()},
        "affine": {name: _describe_affine(head) for name, head in heads.items()},
        "arrays": _arrays(path) if source.format in ("artefact", "orbax") else {},
        "files": {} if record is None else record["files"],
        "provenance": dict(source.provenance),
    }


def _bits_per_weight(stacks: Mapping[str, AnyPrecArray], precisions: tuple[int, ...]) -> dict[str, Any] | None:
    if not stacks:
        return None
    weights = sum(math.prod(stack.shape) for stack in stacks.values())
    read = {str(w): 8 * sum(nbytes(stack, precision=w) for stack in stacks.values()) / weights for w in precisions}
    return {"resident": _resident_bits(stacks), "read": read}


def _resident_bits(stacks: Mapping[str, AnyPrecArray]) -> float:
    return 8 * sum(map(nbytes, stacks.values())) / sum(math.prod(stack.shape) for stack in stacks.values())


def _resident_by_kind(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float] | None:
    """Resident bits per weight with codebooks of either kind, of which the model has one."""
    if not source.is_quantized:
        return None
    sources = {kind: with_codebooks(source, kind) for kind in get_args(CodebookKind)}
    return {
        kind: _resident_bits({name: _abstract(shapes[name], e) for name, e in s.matrices.items() if not e.is_affine})
        for kind, s in sources.items()
    }


def _resident_bytes(stacks: Mapping[str, AnyPrecArray], others: int, precisions: tuple[int, ...]) -> dict[str, int]:
    """By precision, where only that one is loaded; and all of it."""
    alone = {str(w): others + sum(nbytes(stack, precision=w) for stack in stacks.values()) for w in precisions}
    return alone | {"all": others + sum(nbytes(stack) for stack in stacks.values())}


def _on_disk(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _arrays(path: Path) -> dict[str, Any]:
    return {
        name: {"shape": list(entry.shape), "dtype": entry.dtype, "bytes": entry.nbytes, "sha256": entry.sha256}
        for name, entry in manifests.read(path).arrays.items()
    }


def _abstract(shape: tuple[int, ...], entry: MatrixEntry) -> AnyPrecArray:
    """The matrix as shapes only."""
    *lead, n, k = shape
    planes: Any = jax.ShapeDtypeStruct((*lead, entry.parent_precision, n, -(-k // 32)), np.uint32)
    books: Any = {
        name: jax.ShapeDtypeStruct((*lead, *rows), np.uint8 if name.startswith("entries") else np.float16)
        for name, rows in entry.codebook_shapes(n).items()
    }
    if entry.is_compact:
        books = codebooks_of(books, tuple(map(int, entry.codebooks)))
    else:
        books = {int(name.removeprefix("codebooks/")): book for name, book in books.items()}
    return AnyPrecArray(planes, books, entry.seed_precision, entry.parent_precision, entry.k)


def _abstract_affine(shape: tuple[int, ...]) -> AffineArray:
    row = jax.ShapeDtypeStruct(shape[:1], np.float32)
    leaves: tuple[Any, Any, Any] = (jax.ShapeDtypeStruct(shape, np.uint8), row, row)
    return AffineArray(*leaves)


def _describe(stack: AnyPrecArray, entry: MatrixEntry) -> dict[str, Any]:
    weights = math.prod(stack.shape)
    return {
        "layers": math.prod(stack.shape[:-2]),
        "n": stack.n,
        "k": stack.k,
        "seed_precision": stack.seed_precision,
        "parent_precision": stack.parent_precision,
        "codebooks": entry.codebooks,
        "bits_per_weight": {
            "resident": 8 * nbytes(stack) / weights,
            "read": {str(w): 8 * nbytes(stack, precision=w) / weights for w in stack.precisions},
        },
        "bytes": nbytes(stack),
    }


def _describe_affine(head: AffineArray) -> dict[str, Any]:
    return {
        "n": head.n,
        "k": head.k,
        "precision": affine.BITS,
        "bits_per_weight": affine.bits_per_weight(head),
        "bytes": affine.nbytes(head),
    }
