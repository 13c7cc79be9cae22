"""One way in and one way out, whatever the format."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from jax.sharding import Mesh

from anyprec_jax.affine import AffineArray
from anyprec_jax.checkpoint import export_record, gguf, huggingface, manifest, upstream
from anyprec_jax.checkpoint import orbax as orbax_folder
from anyprec_jax.checkpoint.atomic import require_free
from anyprec_jax.checkpoint.orbax import is_quantized, load_artefact, save_artefact
from anyprec_jax.checkpoint.source import CodebookKind, Source, plain_source, with_codebooks
from anyprec_jax.models.model import Model
from anyprec_jax.models.precision_map import Precision, precisions_in
from anyprec_jax.sharding import shard

TARGETS = ("huggingface", "orbax", "upstream", "artefact")  # what `export` writes


def load(path: str | Path, *, precisions: Sequence[Precision] | None = None, mesh: Mesh | None = None) -> Model:
    """Reads a model: an artefact or another Orbax folder, a checkpoint of the paper's authors, a Hugging Face folder
    (safetensors) or a GGUF file.

    Args:
      path: the folder or file.
      precisions: for a quantized model, those that will be asked for, ints and maps: planes and codebooks that none of them needs are
        not kept.
      mesh: devices to split the model over (`sharding.shard`). Of an artefact or another Orbax folder, a process then reads the shares
        of its own devices; other formats are read whole first.

    Returns:
      The model, unquantized leaves in float32; `tokenizer` is None where there is none.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: not a model, a damaged one, an unsupported architecture, or `precisions` of a model that is not quantized; a mesh
        without an axis "model".
    """
    path, precisions = Path(path), _whole(precisions)
    kind = _format_of(path)
    if mesh is not None and kind != "orbax":
        return shard(load(path, precisions=precisions), mesh)
    match kind:
        case "orbax":
            return load_artefact(path, precisions=precisions, mesh=mesh)
        case "upstream":
            return upstream.load_folder(path, precisions=precisions)
        case _ if precisions is not None:
            raise ValueError(f"{path} is not an any-precision model, so it has no precisions to choose from")
        case "huggingface":
            return huggingface.load_folder(path)
        case _:
            return gguf.load_file(path)


def open_source(path: str | Path, *, precisions: Sequence[Precision] | None = None) -> Source:
    """A model of any format, described and checked, its weights to be read one by one.

    Raises:
      FileNotFoundError, ValueError: as for `load`.
    """
    path, precisions = Path(path), _whole(precisions)
    match _format_of(path):
        case "orbax":
            return orbax_folder.open_artefact(path, precisions=precisions)
        case "upstream":
            return upstream.open_folder(path)
        case "huggingface":
            return huggingface.open_folder(path)
        case _:
            return gguf.open_file(path)


def save(path: str | Path, model: Model) -> None:
    """Writes a model; it appears under `path` whole or not at all.

    A model with any-precision matrices becomes an artefact, one without a Hugging Face folder. `load` reads both.

    Raises:
      FileExistsError: `path` exists and is not an empty folder.
      OSError: it cannot be written.
      ValueError: embedding or head are affine and no linear is quantized, which neither format holds.
    """
    if is_quantized(model.params) or any(isinstance(leaf, AffineArray) for leaf in model.params.values()):
        save_artefact(Path(path), model, provenance={})
    else:
        huggingface.save_folder(Path(path), model)


def export(
    path: str | Path,
    dest: str | Path,
    target: str,
    *,
    precision: Precision | None = None,
    dtype: str | None = None,
    codebooks: CodebookKind | None = None,
) -> None:
    """Converts a model on disk into another format, one tensor at a time; the result appears whole or not at all.

    Args:
      path: a model of any format that `load` reads.
      dest: the folder to write: must not exist, or be empty.
      target: "huggingface" and "orbax" are plain weights, "upstream" (the layout of the paper's authors) and "artefact" keep codes and
        codebooks bit for bit (compact ones as the float16 that they stand for in "upstream").
      precision: at which a quantized model becomes plain, an int or a map; None for a plain model and for the other two targets.
      dtype: of plain weights: float32, float16 or bfloat16. None keeps those of plain models, and takes float32 for others.
      codebooks: of an artefact: "compact" makes compact ones (`compaction.compact`), "float16" decodes those; None keeps what there is.

    Raises:
      FileExistsError: `dest` is taken.
      OSError: not enough room, or it cannot be written.
      ValueError: what `load` raises; a precision that is missing, not wanted or not stored; a model that the target cannot hold.

    Memory: the largest tensor, and 500 MB, libraries included.
    """
    path, dest = Path(path), Path(dest)
    if target not in TARGETS:
        raise ValueError(f"format {target!r} is not one of {', '.join(TARGETS)}")
    require_free(dest)  # before anything is read
    if codebooks is not None and (target != "artefact" or codebooks not in get_args(CodebookKind)):
        raise ValueError(f"codebooks may be float16 or compact, of an artefact only, got {codebooks!r} for {target}")
    if target in ("upstream", "artefact"):
        if precision is not None or dtype is not None:
            raise ValueError(
                f"the {target} format keeps every precision as it is: give neither a precision nor a dtype"
            )
        source = open_source(path)
        if not source.is_quantized:
            raise ValueError(f"{path} is not quantized: there are no codes to write")
        if kind := "float16" if target == "upstream" else codebooks:
            source = with_codebooks(source, kind)
    else:
        wanted = None if dtype is None else _dtype(dtype)
        source = open_source(path, precisions=None if precision is None else (precision,))
        source = plain_source(source, precision=precision, dtype=wanted)
    if path.is_dir():
        export_record.check(path)
    match target:
        case "huggingface":
            huggingface.write_folder(dest, source)
        case "orbax":
            orbax_folder.write_folder(dest, source, provenance=_provenance(source), narrow=False)
        case "upstream":
            upstream.write_folder(dest, source)
        case _:
            orbax_folder.write_folder(dest, source, provenance=source.provenance)


def _whole(precisions: Sequence[Precision] | None) -> list[int] | None:
    return None if precisions is None else sorted({w for precision in precisions for w in precisions_in(precision)})


def _format_of(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give an artefact, a Hugging Face folder or a GGUF file")
    if path.is_dir() and manifest.is_artefact(path):
        return "orbax"
    if path.is_dir() and (path / "config.json").is_file():
        return "upstream" if upstream.is_upstream(path) else "huggingface"
    if path.is_file() and _starts_with(path, b"GGUF"):
        return "gguf"
    what = (
        "folder has neither manifest.json nor config.json" if path.is_dir() else "file does not start as GGUF files do"
    )
    raise ValueError(f"{path} is not a model: the {what}")


def _provenance(source: Source) -> dict[str, object]:
    name = None if source.path is None else source.path.resolve().name
    return {
        "source": {"name": name, "format": source.format},
        "read_at": export_record.precision_in_json(source.read_at),
    }


def _dtype(name: str) -> np.dtype:
    dtypes = {dtype.name: dtype for dtype in huggingface.DTYPES.values()}
    if name not in dtypes:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(dtypes)}")
    return dtypes[name]


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic
