"""The manifest of an artefact: what the folder holds, checked before anything else is read.

`manifest.json` lists every array of the Orbax checkpoint beside it with shape, dtype, size and SHA-256 of its decoded bytes, and
says which leaves form an any-precision matrix, and what each precision costs each of them where that was measured. A folder without
a manifest is not an artefact.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from anyprec_jax.compact_codebooks import leaf_shapes
from anyprec_jax.models.precision_map import QuantizationErrors

FORMAT = "bandwise.anyprec"
FORMAT_VERSION = 1
CODEBOOK_KIND = "float16"  # the paper's: one float16 centroid per code, row and precision
COMPACT_KIND = "compact"  # from its parent's entry (`CompactCodebooks`); of all precisions or none
AFFINE_KIND = "affine"  # one scale and one offset per row (`AffineArray`); of 8 bits and no others
AFFINE_LEAVES = ("codes", "scale", "offset")
_FILE = "manifest.json"
_MAX_MANIFEST_BYTES = 64 << 20
_MAX_AXES = 8
DTYPES = {
    "uint8": np.uint8,
    "uint32": np.uint32,
    "float16": np.float16,
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayEntry:
    """One leaf of the checkpoint."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if len(self.shape) > _MAX_AXES or not all(type(size) is int and size >= 0 for size in self.shape):
            raise ValueError(f"shape {self.shape!s:.80} is not a list of sizes")
        expected = int(np.prod(self.shape, dtype=object)) * np.dtype(DTYPES[self.dtype]).itemsize
        if self.nbytes != expected:
            raise ValueError(
                f"{self.nbytes} bytes do not fit shape {self.shape} of {self.dtype}, which takes {expected}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixEntry:
    """A quantized matrix, or a stack of them.

    Any-precision: its leaves are `NAME/bitplanes/P` and `NAME/codebooks/W`, or where these are compact `NAME/entries/W` and
    `NAME/scales/W`. Affine: they are `NAME/codes`, `NAME/scale` and `NAME/offset`, and seed and parent precision are both 8.
    """

    k: int
    seed_precision: int
    parent_precision: int
    codebooks: dict[str, str]  # precision -> kind

    def __post_init__(self) -> None:
        if not all(type(number) is int for number in (self.k, self.seed_precision, self.parent_precision)):
            raise ValueError(
                f"k {self.k!r}, seed {self.seed_precision!r}, parent {self.parent_precision!r} should be integers"
            )
        if not 1 <= self.seed_precision <= self.parent_precision <= 8 or self.k < 1:
            raise ValueError(f"seed {self.seed_precision}, parent {self.parent_precision}, k {self.k} are no matrix")
        kinds = set(self.codebooks.values())
        if unknown := sorted(kinds - {CODEBOOK_KIND, COMPACT_KIND, AFFINE_KIND}):
            raise ValueError(
                f"codebooks of kind {unknown[0]!r}; this version reads {CODEBOOK_KIND!r}, {COMPACT_KIND!r} and {AFFINE_KIND!r}"
            )
        if COMPACT_KIND in kinds and len(kinds) > 1:
            raise ValueError(f"codebooks {self.codebooks}: all precisions are compact or none")
        if set(self.codebooks) != {str(w) for w in range(self.seed_precision, self.parent_precision + 1)}:
            raise ValueError(
                f"codebooks for precisions {sorted(self.codebooks)}, not {self.seed_precision}..{self.parent_precision}"
            )
        if AFFINE_KIND in self.codebooks.values() and self.codebooks != {"8": AFFINE_KIND}:
            raise ValueError(f"codebooks {self.codebooks}: an affine one is alone and of 8 bits")

    @property
    def is_affine(self) -> bool:
        """Whether it is read whole at every precision of the model."""
        return AFFINE_KIND in self.codebooks.values()

    @property
    def is_compact(self) -> bool:
        """Whether its codebooks are made of each other."""
        return COMPACT_KIND in self.codebooks.values()

    def codebook_shapes(self, n: int) -> dict[str, tuple[int, ...]]:
        """The leaves beside the planes of an any-precision matrix of `n` rows, as `codebooks/W` or as `entries/W` and `scales/W`."""
        if self.is_compact:
            return leaf_shapes(self.seed_precision, self.parent_precision, n)
        return {f"codebooks/{w}": (n, 2 ** int(w)) for w in self.codebooks}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about an artefact but its arrays."""

    matrices: dict[str, MatrixEntry]
    arrays: dict[str, ArrayEntry]
    provenance: dict[str, Any]  # source, quantization settings, calibration: for people and for resuming
    errors: QuantizationErrors | None = (
        None  # what `allocation` shares bits out by; the names are those of the layers' linears
    )

    @property
    def precisions(self) -> tuple[int, ...]:
        """Precisions that every any-precision matrix can be read at."""
        return common_precisions(self.matrices)


def common_precisions(matrices: Mapping[str, MatrixEntry]) -> tuple[int, ...]:
    """Precisions that every any-precision matrix among some can be read at, ascending."""
    ranges = [set(range(m.seed_precision, m.parent_precision + 1)) for m in matrices.values() if not m.is_affine]
    return tuple(sorted(set.intersection(*ranges))) if ranges else ()


def array_entry(array: np.ndarray) -> ArrayEntry:
    """Describes an array; the checksum is of its bytes in C order."""
    contiguous = np.ascontiguousarray(array)
    digest = hashlib.sha256(contiguous.reshape(-1).view(np.uint8).data).hexdigest()
    return ArrayEntry(shape=array.shape, dtype=array.dtype.name, nbytes=array.nbytes, sha256=digest)


def is_artefact(path: Path) -> bool:
    """Whether `path` claims to be an artefact; `read` says whether it is a sound one."""
    return (path / _FILE).is_file()


def write(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into a folder that is not published yet."""
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "matrices": {name: dataclasses.asdict(entry) for name, entry in sorted(manifest.matrices.items())},
        "arrays": {name: dataclasses.asdict(entry) for name, entry in sorted(manifest.arrays.items())},
        "provenance": manifest.provenance,
    }
    if (errors := manifest.errors) is not None:
        tables = {name: np.asarray(table).tolist() for name, table in sorted(errors.linears.items())}
        document["errors"] = {"precisions": list(errors.precisions), "linears": tables}
    (folder / _FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> Manifest:
    """Reads and checks `manifest.json`.

    Raises:
      ValueError: not an artefact, of a newer version, or damaged; one line that says which.
    """
    file = folder / _FILE
    if not file.is_file():
        raise ValueError(f"{folder} is not an any-precision artefact: it has no {_FILE}")
    if file.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ValueError(f"{file} is {file.stat().st_size:,} bytes, too large for a manifest")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{file} is not the manifest of an any-precision artefact (format {FORMAT!r} wanted)")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{file} has format version {version!r}; this version of bandwise reads {FORMAT_VERSION}")
    try:
        return Manifest(
            matrices={name: MatrixEntry(**entry) for name, entry in document["matrices"].items()},
            arrays={
                name: ArrayEntry(**entry | {"shape": tuple(entry["shape"])})
                for name, entry in document["arrays"].items()
            },
            provenance=dict(document["provenance"]),
            errors=_errors(document.get("errors")),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _errors(document: Any) -> QuantizationErrors | None:
    """What the manifest says that precisions cost; raises ValueError where that is no table of numbers."""
    if document is None:
        return None
    precisions = tuple(document["precisions"])
    if not all(type(w) is int and 1 <= w <= 8 for w in precisions) or precisions != tuple(sorted(set(precisions))):
        raise ValueError(
            f"errors of the precisions {document['precisions']!s:.80}, which should ascend from 1 to 8 at most"
        )
    tables = {name: np.asarray(table, np.float64) for name, table in document["linears"].items()}
    for name, table in tables.items():
        if table.ndim != 2 or table.shape[1] != len(precisions) or not (np.isfinite(table) & (table >= 0)).all():
            raise ValueError(f"errors of {name} should be numbers of at least 0, {len(precisions)} for each layer")
    return QuantizationErrors(precisions, tables)
