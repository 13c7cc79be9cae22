"""Folders that appear whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yields an empty sibling of `path` to write into, and renames it to `path` when the block ends well.

    If the block raises, the sibling is removed and `path` is untouched. A process killed inside the block leaves only the sibling,
    named `.NAME.*.partial`.

    Raises:
      FileExistsError: `path` exists and is not an empty folder.
      OSError: the parent cannot be written.
    """
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    folder.mkdir()
    try:
        yield folder
        sync(folder)
        folder.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def require_free(path: Path) -> None:
    """Raises FileExistsError unless nothing, or an empty folder, is at `path`."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} already exists: remove it or choose another place")


def require_room(folder: Path, num_bytes: int) -> None:
    """Raises OSError unless the disk of `folder`, which need not exist yet, has `num_bytes` free."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise OSError(f"{folder} needs about {num_bytes / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free: make room")


def sync(folder: Path) -> None:
    """Forces the files below `folder` to the disk, so that a rename that survives a power cut names complete files."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Forces a rename inside `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
