"""Datasets that appear whole or not at all, also when the process is killed."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` to build in, and renames it to `path` when the block ends well.

    The folder, `.NAME.partial`, is removed if the block raises. A killed process leaves it behind, and the next one that wants the
    same `path` removes it first.

    Raises:
      FileExistsError: `path` exists and is not an empty folder, or another process is building it.
      OSError: the parent cannot be written.
    """
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial"
    try:
        with _locked_folder(partial, path):
            try:
                _empty(partial)
                yield partial
                _sync(partial)
                partial.rename(path)
                _sync_folder(path.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            partial.rmdir()  # made, and not locked yet
        raise


def require_free(path: Path) -> None:
    """Raises FileExistsError unless nothing, or an empty folder, is at `path`; ValueError where the last part of it is no name."""
    if path.name in ("", ".."):
        raise ValueError(
            f"{path} is no name for a new folder, which is made beside its place and then renamed: give it one"
        )
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} already exists: remove it or choose another place")


def require_room(folder: Path, num_bytes: int) -> None:
    """Raises OSError unless the disk of `folder`, which need not exist yet, has `num_bytes` free."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise OSError(f"{folder} needs about {num_bytes / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free: make room")


@contextlib.contextmanager
def _locked_folder(folder: Path, path: Path) -> Iterator[None]:
    """Makes `folder` if need be and holds a lock on it, which the system lets go of when the process dies."""
    if folder.is_symlink():
        raise FileExistsError(f"{folder} is a link, and {path} is to be built there: remove it")
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"another process is writing {path}: wait for it") from None
        # Between opening and locking, the process that held it may have published or removed it.
        if not _is_at(descriptor, folder):
            raise FileExistsError(f"another process has just written {path}")
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, folder: Path) -> bool:
    return folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat())


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync(folder: Path) -> None:
    """Forces everything below `folder` to the disk, so that a rename that survives a power cut names complete files."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_folder(file)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
