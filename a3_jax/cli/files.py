"""Files that commands read and write: YAML or JSON, arrays, and results, which are there whole or not at all."""

import contextlib
import csv
import io
import json
import tokenize
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

_MAX_BYTES = 64 << 20
# What NumPy lets through of broken headers, of sizes that no memory holds, and of what only begins like an archive.
_LOAD_ERRORS = (ValueError, EOFError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile)


def read_mapping(file: Path) -> Mapping[str, Any]:
    """A YAML or JSON file that maps names to values; nothing in it is an empty mapping.

    ValueError if it is something else, has a key twice or an alias; OSError if it cannot be read.
    """
    with file.open("rb") as opened:
        text = opened.read(_MAX_BYTES + 1)  # a device has no size to ask for first
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{file} is too large for a configuration")
    try:
        document = yaml.load(text.decode("utf-8"), Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is neither YAML nor JSON: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError(f"{file} should have one name and value a line, such as `n: 320`")
    return document


def read_array(file: Path, *, ndim: int) -> np.ndarray:
    """A .npy file of finite numbers with so many axes, none of them empty; floats are float32. ValueError for another."""
    try:
        with file.open("rb") as opened:  # by name, NumPy leaves it open where an archive is broken
            array = np.load(opened, allow_pickle=False)
    except _LOAD_ERRORS as error:
        raise ValueError(f"{file} is no .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(f"{file} should be a .npy file of numbers")
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{file} should have {ndim} axes and no empty one, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{file} has NaN or infinity in it, the first at {np.argwhere(~np.isfinite(array))[0].tolist()}"
        )
    return array


def to_yaml(mapping: Mapping[str, Any]) -> str:
    """What `read_mapping` reads."""
    return yaml.safe_dump(dict(mapping), sort_keys=False, allow_unicode=True, width=120)


def to_json(document: Any) -> str:
    """With a newline at the end; NaN and infinity, which JSON has not, are errors."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A header, the keys of all rows in the order of their first appearance, and a line for each row."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def require_place(file: Path) -> None:
    """ValueError if a file could not be written there, before the work for it begins; also for a device, whose place it would take."""
    if not file.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {file.absolute().parent} for {file.name}")
    if file.is_dir():
        raise ValueError(f"{file} is a folder, and should be a file")
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is there and is no ordinary file")


def require_places(files: Sequence[Path | None]) -> None:
    """`require_place` for those that are wanted; ValueError if two are the same."""
    wanted = [file for file in files if file is not None]
    for place, file in enumerate(wanted):
        require_place(file)
        if file.resolve() in [other.resolve() for other in wanted[:place]]:
            raise ValueError(f"{file} cannot be two files at once: name another")


def write_text(file: Path, text: str) -> None:
    """The file is there whole, the old or the new one, also when the process is killed or the disk is full."""
    with partial_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def partial_file(file: Path) -> Iterator[Path]:
    """A file beside it, to be written within the block, that takes its place at the end, or goes if there was an error."""
    partial = file.with_name(f".{file.stem}.partial{file.suffix}")
    try:
        yield partial
        partial.replace(file)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(partial):
            error.filename = str(file)  # the one that the user knows
        raise


class _PlainLoader(yaml.SafeLoader):
    """Errors where PyYAML would take the last of several equal keys, and for aliases, with which a few lines are a billion values."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias, such as *name, is not taken: write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [value for number, (tag, value) in enumerate(keys) if (tag, value) in keys[:number]]:
            raise yaml.YAMLError(f"{repeated[0][:50]} is there twice")
        return super().construct_mapping(node, deep)
