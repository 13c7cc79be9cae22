"""One way in and one way out, whatever the format."""

from collections.abc import Sequence
from pathlib import Path

from anyprec_jax.affine import AffineArray
from anyprec_jax.checkpoint import gguf, huggingface, manifest
from anyprec_jax.checkpoint.orbax import is_quantized, load_artefact, save_artefact
from anyprec_jax.models.model import Model


def load(path: str | Path, *, precisions: Sequence[int] | None = None) -> Model:
    """Reads a model: an any-precision artefact, a Hugging Face folder (safetensors) or a GGUF file.

    Args:
      path: the folder or file.
      precisions: for an artefact, those that will be asked for: planes and codebooks that none of them needs are not read.

    Returns:
      The model, unquantized leaves in float32; `tokenizer` is None where there is none.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: not a model, a damaged one, an unsupported architecture, or `precisions` of a model that is not quantized.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give an artefact, a Hugging Face folder or a GGUF file")
    if path.is_dir() and manifest.is_artefact(path):
        return load_artefact(path, precisions=precisions)
    if precisions is not None:
        raise ValueError(f"{path} is not an any-precision artefact, so it has no precisions to choose from")
    if path.is_dir() and (path / "config.json").is_file():
        return huggingface.load_folder(path)
    if path.is_file() and _starts_with(path, b"GGUF"):
        return gguf.load_file(path)
    what = (
        "folder has neither manifest.json nor config.json" if path.is_dir() else "file does not start as GGUF files do"
    )
    raise ValueError(f"{path} is not a model: the {what}")


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


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic
