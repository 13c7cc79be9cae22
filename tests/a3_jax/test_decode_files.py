"""Files of steps: there and back, and what cannot be one."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from a3_jax.workloads.decode_files import find_files, read_steps, write_steps
from a3_jax.workloads.decode_inputs import StepInputs


def layers(count: int = 2) -> list[StepInputs]:
    rng = np.random.default_rng(0)
    shapes = (4, 3, 6), (2, 9, 6), (2, 9, 6)
    return [StepInputs(*(rng.normal(size=shape).astype(np.float32) for shape in shapes)) for _ in range(count)]


def stacked(**changes: Any) -> dict[str, Any]:
    names = ("queries", "keys", "values")
    return dict(zip(names, map(np.stack, zip(*layers(), strict=True)), strict=True)) | changes


def test_there_and_back(tmp_path: Path) -> None:
    write_steps(tmp_path / "a.npz", layers())
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    for written, read in zip(layers(), read_steps(tmp_path / "a.npz"), strict=True):
        for before, after in zip(written, read, strict=True):
            np.testing.assert_array_equal(before, after)
    with np.load(tmp_path / "a.npz") as contents:  # what others read it with
        assert contents["keys"].shape == (2, 2, 9, 6)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_other_floats_are_widened(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **{name: array.astype(np.float16) for name, array in stacked().items()})
    (first, _) = read_steps(tmp_path / "a.npz")
    assert first.key.dtype == np.float32
    np.testing.assert_allclose(first.key, layers()[0].key, rtol=1e-3)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        write_steps(tmp_path / "a.npz", [])
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OSError):
        write_steps(tmp_path / "folder.npz", layers())
    assert [file.name for file in tmp_path.iterdir()] == ["folder.npz"]


def with_nan() -> np.ndarray:
    keys = stacked()["keys"].copy()
    keys[1, 0, 3, 2] = np.nan
    return keys


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"keys": None}, "it has no keys"),
        ({"keys": np.zeros((2, 2, 9, 6), int)}, "keys should be floats of 16, 32 or 64 bits, got int64"),
        ({"keys": np.zeros((2, 9, 6))}, r"keys should have four axes and no empty one, got \[2, 9, 6\]"),
        ({"keys": np.zeros((2, 2, 0, 6))}, r"no empty one, got \[2, 2, 0, 6\]"),
        ({"keys": np.zeros((1, 2, 9, 6))}, "differ in the number of layers"),
        ({"keys": np.zeros((2, 2, 9, 5))}, "keys: wanted"),
        ({"keys": np.zeros((2, 3, 9, 6)), "values": np.zeros((2, 3, 9, 6))}, "multiple of the keys' 3 heads"),
        ({"values": np.zeros((2, 2, 8, 6))}, "values: wanted"),
        ({"keys": with_nan()}, r"keys has NaN or infinity in it, the first at \[1, 0, 3, 2\]"),
        ({"keys": np.array([{}], dtype=object)}, "keys should be floats"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    arrays = {name: array for name, array in stacked(**changes).items() if array is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=complaint):
        read_steps(tmp_path / "a.npz")


def test_files_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    file.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="it is no .npz file"):
        read_steps(file)
    write_steps(file, layers())
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="it is no .npz file"):
        read_steps(file)
    file.write_bytes(whole.replace(whole[200:216], bytes(16), 1))
    with pytest.raises(ValueError, match="it is no .npz file"):  # the checksum
        read_steps(file)


def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2, 2, 2**40, 2**20)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("queries", "keys", "values"):
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(100))
    with pytest.raises(ValueError, match="queries is cut off"):
        read_steps(tmp_path / "a.npz")


def test_finding(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no .npz file"):
        find_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_files(tmp_path / "nothing")
    for name in ("b.npz", "a.npz", "c.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in find_files(tmp_path)] == ["a.npz", "b.npz"]
    assert find_files(tmp_path / "c.txt") == [tmp_path / "c.txt"]
