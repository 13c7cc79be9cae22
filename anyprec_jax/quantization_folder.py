"""The folder in which a quantization is on its way: what is done lies there, complete, under the name that says so.

    .NAME.quantizing/run.json              what is being made: another command must not continue it
    .NAME.quantizing/sensitivity-00012/    the sensitivity summed over the first 12 sequences, one .npy a linear
    .NAME.quantizing/layer-00007.npz       a finished layer, and what each precision costs its linears
    .NAME.quantizing/share-00001/          of several processes, what the second one sums

Every entry is written under another name and then renamed.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anyprec_jax import sensitivity
from anyprec_jax.checkpoint import manifest as manifests
from anyprec_jax.checkpoint.atomic import require_free, require_room, sync, sync_folder
from anyprec_jax.models.fusion import linears
from anyprec_jax.models.model import Model
from anyprec_jax.processes import meet, processes

_RUN = "run.json"


def is_finished(out: Path, provenance: dict[str, Any]) -> bool:
    """Whether `out` holds what this run makes. Raises FileExistsError if it holds anything else."""
    if out.is_dir() and manifests.is_artefact(out):
        stored = manifests.read(out).provenance
        if {name: stored.get(name) for name in provenance} == provenance:
            return True
        raise FileExistsError(
            f"{out} holds an artefact made from another model or with other settings: remove it or choose another place"
        )
    require_free(out)
    return False


def staging(out: Path) -> Path:
    """The folder of the run that makes `out`."""
    return out.parent / f".{out.name}.quantizing"


@contextlib.contextmanager
def run_folder(out: Path, provenance: dict[str, Any], bytes_needed: int) -> Iterator[Path]:
    """The folder of this run, new or continued, locked against a second process."""
    folder = staging(out)
    if not processes().is_first:
        meet("run folder")
        with _removed_after_errors(folder):
            yield folder
        return
    is_new = not folder.exists()
    if is_new:
        require_room(out.parent, bytes_needed)
        folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"another process is writing {out}: wait for it or choose another place") from None
        _claim(folder, provenance)
        for leftover in (*folder.glob("*.partial"), *out.parent.glob(f".{out.name}.*.partial")):
            _remove(leftover)
        meet("run folder")
        with _removed_after_errors(folder):
            yield folder
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = f"{folder}: the disk is full: make room and repeat the command, which continues from there"
            raise OSError(message) from error
        raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _removed_after_errors(folder: Path) -> Iterator[None]:
    """A ValueError would come again: what is there is of no use."""
    try:
        yield
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _claim(folder: Path, provenance: dict[str, Any]) -> None:
    """Records what this run makes, or checks that the run being continued makes the same."""
    record = folder / _RUN
    if not record.exists():
        temporary = folder / f"{_RUN}.partial"
        temporary.write_text(json.dumps(provenance, indent=1), encoding="utf-8")
        temporary.rename(record)
        return
    started = json.loads(record.read_text(encoding="utf-8"))
    if started != provenance:
        differing = ", ".join(key for key in provenance if started.get(key) != provenance[key])
        raise FileExistsError(
            f"{folder} holds an unfinished run that differs in {differing}: repeat its command, or remove the folder"
        )


def sum_folder(folder: Path, done: int) -> Path:
    """That of the sensitivity over the first `done` sequences."""
    return folder / f"sensitivity-{done:05d}"


def last_sum(folder: Path, model: Model, kind: sensitivity.Kind) -> tuple[int, sensitivity.Sensitivity]:
    """How many sequences are summed up on disk, and their sum; none and zeros at the beginning."""
    finished = sorted(folder.glob("sensitivity-?????"))
    if not finished:
        return 0, sensitivity.zeros(model.params, kind)
    names = linears(model.params["layers"])
    return int(finished[-1].name[-5:]), {name: np.load(finished[-1] / f"{name}.npy") for name in names}


def save_sum(folder: Path, total: sensitivity.Sensitivity, done: int) -> None:
    """Writes the sum over the first `done` sequences in place of those over fewer."""
    final = sum_folder(folder, done)
    partial = final.with_name(final.name + ".partial")
    partial.mkdir()
    for name, values in total.items():
        np.save(partial / f"{name}.npy", values)
    sync(partial)
    partial.rename(final)
    for older in sorted(folder.glob("sensitivity-?????"))[:-1]:
        _remove(older)


def layer_file(folder: Path, layer: int) -> Path:
    """That of a finished layer."""
    return folder / f"layer-{layer:05d}.npz"


def save_layer(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes it; it is on the disk when this returns."""
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as stream:
        np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(file)
    sync_folder(file.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
