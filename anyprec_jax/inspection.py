"""What an artefact holds, from its manifest and configuration alone: no array is read."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from anyprec_jax import affine
from anyprec_jax.affine import AffineArray
from anyprec_jax.array import AnyPrecArray, nbytes
from anyprec_jax.checkpoint import manifest as manifests
from anyprec_jax.checkpoint.manifest import Manifest, MatrixEntry
from anyprec_jax.checkpoint.orbax import read_description


def inspect(path: Path) -> dict[str, Any]:
    """Describes an artefact: its matrices, precisions, bits per weight, bytes and checksums.

    Bits per weight count planes and codebooks of the any-precision matrices: `resident` with every precision in memory, `read` what
    one pass over them at that precision touches. Affine matrices (embedding and head) are listed by themselves.

    Returns:
      A JSON-able report.

    Raises:
      ValueError: not an artefact, or a damaged one.
    """
    manifest, _ = read_description(path)
    stacks = {
        name: _abstract(name, entry, manifest) for name, entry in manifest.matrices.items() if not entry.is_affine
    }
    heads = {name: _abstract_affine(name, manifest) for name, entry in manifest.matrices.items() if entry.is_affine}
    weights = sum(math.prod(stack.shape) for stack in stacks.values())
    quantized_bytes = sum(nbytes(stack) for stack in stacks.values())
    unquantized = {
        name: e
        for name, e in manifest.arrays.items()
        if name.rpartition("/")[0] not in heads and name.rpartition("/")[0].rpartition("/")[0] not in stacks
    }
    return {
        "path": str(path),
        "format_version": manifests.FORMAT_VERSION,
        "precisions": list(manifest.precisions),
        "quantized_weights": weights,
        "affine_weights": sum(math.prod(head.shape) for head in heads.values()),
        "unquantized_weights": sum(math.prod(entry.shape) for entry in unquantized.values()),
        "bits_per_weight": {
            "resident": 8 * quantized_bytes / weights,
            "read": {
                str(w): 8 * sum(nbytes(stack, precision=w) for stack in stacks.values()) / weights
                for w in manifest.precisions
            },
        },
        "bytes": {
            "quantized": quantized_bytes,
            "affine": sum(affine.nbytes(head) for head in heads.values()),
            "unquantized": sum(entry.nbytes for entry in unquantized.values()),
            "on_disk": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        },
        "matrices": {name: _describe(stack, manifest.matrices[name]) for name, stack in stacks.items()},
        "affine": {
            name: {
                "n": head.n,
                "k": head.k,
                "precision": affine.BITS,
                "bits_per_weight": affine.bits_per_weight(head),
                "bytes": affine.nbytes(head),
            }
            for name, head in heads.items()
        },
        "arrays": {
            name: {"shape": list(entry.shape), "dtype": entry.dtype, "bytes": entry.nbytes, "sha256": entry.sha256}
            for name, entry in manifest.arrays.items()
        },
        "provenance": manifest.provenance,
    }


def _abstract(name: str, entry: MatrixEntry, manifest: Manifest) -> AnyPrecArray:
    """The matrix as shapes only."""
    *lead, n, words = manifest.arrays[f"{name}/bitplanes/0"].shape
    codebooks = {int(w): manifest.arrays[f"{name}/codebooks/{w}"] for w in entry.codebooks}
    return AnyPrecArray(
        bitplanes=jax.ShapeDtypeStruct((*lead, entry.parent_precision, n, words), np.uint32),  # pyright: ignore[reportArgumentType]
        codebooks={w: jax.ShapeDtypeStruct(book.shape, np.float16) for w, book in codebooks.items()},  # pyright: ignore[reportArgumentType]
        seed_precision=entry.seed_precision,
        parent_precision=entry.parent_precision,
        k=entry.k,
    )


def _abstract_affine(name: str, manifest: Manifest) -> AffineArray:
    entries = {leaf: manifest.arrays[f"{name}/{leaf}"] for leaf in manifests.AFFINE_LEAVES}
    leaves: Any = {leaf: jax.ShapeDtypeStruct(e.shape, np.dtype(e.dtype)) for leaf, e in entries.items()}
    return AffineArray(**leaves)


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
