"""Inputs of decoding steps as a file: queries, keys and values of every layer of a text."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a3_jax.workloads.decode_inputs import StepInputs, check_steps

NAMES = ("queries", "keys", "values")
_DTYPES = (np.float16, np.float32, np.float64)


def write_steps(file: Path, layers: Sequence[StepInputs]) -> None:
    """An .npz file with `queries` [layers, heads, steps, d], `keys` and `values` [layers, kv_heads, n, d], whole or not at all.

    ValueError unless there are layers, all of the same shapes, that fit each other.
    """
    if not layers:
        raise ValueError("layers: wanted at least one")
    for layer in layers:
        check_steps(layer)
    arrays: dict[str, Any] = {
        name: np.stack(stack) for name, stack in zip(NAMES, zip(*layers, strict=True), strict=True)
    }
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            np.savez(stream, **arrays)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_steps(file: Path) -> list[StepInputs]:
    """The layers of a file as `write_steps` writes it, from there or elsewhere, in float32.

    ValueError, a line, for another file: no .npz file, an array that is missing, not of floats, of a shape that does not fit the others,
    or has NaN or infinity in it. OSError if it cannot be read. Memory: that of the arrays, whose sizes the file has to hold.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = set(archive.namelist())
            if missing := [name for name in NAMES if f"{name}.npy" not in members]:
                raise ValueError(f"it has no {missing[0]}")
            arrays = [_read_array(archive, name) for name in NAMES]
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(_wanted(file, f"it is no .npz file: {error}")) from None
    except ValueError as error:
        raise ValueError(_wanted(file, str(error))) from None
    if len({len(array) for array in arrays}) > 1:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in zip(NAMES, arrays, strict=True))
        raise ValueError(_wanted(file, f"its arrays differ in the number of layers: {shapes}"))
    layers = [StepInputs(*layer) for layer in zip(*arrays, strict=True)]
    for number, layer in enumerate(layers):
        try:
            check_steps(layer)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        for name, array in zip(NAMES, layer, strict=True):
            if not np.isfinite(array).all():
                place = np.argwhere(~np.isfinite(array))[0].tolist()
                raise ValueError(f"{file}: {name} has NaN or infinity in it, the first at {[number, *place]}")
    return layers


def find_files(place: Path) -> list[Path]:
    """The file, or the .npz files of the folder by name. FileNotFoundError where there are none."""
    if place.is_dir():
        if not (found := sorted(place.glob("*.npz"))):
            raise FileNotFoundError(f"{place} has no .npz file")
        return found
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist: give an .npz file, or a folder of them")
    return [place]


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """In float32. Looked at before it is read: what its header promises is there."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        is_first = np.lib.format.read_magic(stream) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        if dtype not in _DTYPES:
            raise ValueError(f"{name} should be floats of 16, 32 or 64 bits, got {dtype}")
        if len(shape) != 4 or 0 in shape:
            raise ValueError(f"{name} should have four axes and no empty one, got {list(shape)}")
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size > member.file_size or size > 1032 * member.compress_size:  # the most that deflate packs
            raise ValueError(f"{name} is cut off: {size:,} bytes were to come")
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    return np.ascontiguousarray(array, np.float32)


def _wanted(file: Path, why: str) -> str:
    return f"{file}: {why}; wanted an .npz file with queries [layers, heads, steps, d], keys and values [layers, kv_heads, n, d], floats"
