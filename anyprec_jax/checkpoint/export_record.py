"""What an exported folder says of the files in it: `export.json`, sizes and checksums of the weights and where they came from.

Other software ignores it. Folders without one are read all the same.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyprec_jax.checkpoint.source import Source
from anyprec_jax.models.precision_map import Precision, PrecisionMap

FORMAT = "bandwise.export"
FORMAT_VERSION = 1
_FILE = "export.json"
_MAX_BYTES = 16 << 20


def write(folder: Path, source: Source, files: Sequence[str]) -> None:
    """Writes the record of finished files into a folder that is not published yet."""
    described = {name: {"nbytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in files}
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "source": None if source.path is None else source.path.resolve().name,
        "read_at": precision_in_json(source.read_at),
        "provenance": dict(source.provenance),
        "files": described,
    }
    (folder / _FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """The record of a folder, its files' sizes compared; None where there is none.

    Raises:
      FileNotFoundError: a file that it names is missing.
      ValueError: it is damaged, or a file has another size.
    """
    file = folder / _FILE
    if not file.is_file():
        return None
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{file} is {file.stat().st_size:,} bytes, too large for what it should be")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    files = document.get("files") if isinstance(document, dict) else None
    if not isinstance(files, dict) or not all(_is_described(name, entry) for name, entry in files.items()):
        raise ValueError(f"{file} is damaged: it should give size and checksum of files beside it")
    for name, entry in files.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: {_FILE} says that it holds weights")
        if (folder / name).stat().st_size != entry["nbytes"]:
            raise ValueError(
                f"{folder / name} has {(folder / name).stat().st_size:,} bytes, {_FILE} says {entry['nbytes']:,}: it is damaged"
            )
    return document


def check(folder: Path) -> None:
    """Compares the files with their checksums, where the folder has a record.

    Raises:
      FileNotFoundError, ValueError: as for `read`; or a file does not match its checksum.

    Cost: one pass over the files.
    """
    document = read(folder)
    for name, entry in (document or {"files": {}})["files"].items():
        if _digest(folder / name) != entry["sha256"]:
            raise ValueError(f"{folder / name} is damaged: it does not match its checksum in {_FILE}")


def precision_in_json(precision: Precision | None) -> Any:
    """A precision in JSON: a number, or linear -> one for each layer."""
    return (
        {name: list(layers) for name, layers in precision.linears.items()}
        if isinstance(precision, PrecisionMap)
        else precision
    )


def _is_described(name: str, entry: object) -> bool:
    is_beside = Path(name).name == name and "\\" not in name and "\0" not in name
    return is_beside and isinstance(entry, Mapping) and type(entry.get("nbytes")) is int and "sha256" in entry


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
