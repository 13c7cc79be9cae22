"""Safetensors written tensor by tensor, read by the library."""

import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from anyprec_jax.checkpoint.safetensors_file import Described, write_safetensors

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "turned": np.arange(12, dtype=np.float16).reshape(3, 4).T,
    "ä": np.arange(5).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
    "one": np.asarray(2.5, np.float32),
}
DESCRIBED = {name: Described(values.dtype, values.shape) for name, values in ARRAYS.items()}


def test_the_library_reads_it(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", DESCRIBED, ARRAYS.__getitem__)
    back = load_file(tmp_path / "a.safetensors")
    assert set(back) == set(ARRAYS)
    for name, values in ARRAYS.items():
        assert back[name].dtype == values.dtype
        np.testing.assert_array_equal(back[name], values)
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as stream:
        assert stream.metadata() == {"format": "pt"}
    save_file(
        {n: np.ascontiguousarray(v) for n, v in ARRAYS.items()}, tmp_path / "b.safetensors", metadata={"format": "pt"}
    )
    assert (tmp_path / "a.safetensors").stat().st_size == (tmp_path / "b.safetensors").stat().st_size


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    before: list[weakref.ref] = []

    def read(_name: str) -> np.ndarray:
        assert all(reference() is None for reference in before[:-1])
        values = np.zeros(1000, np.float32)
        before.append(weakref.ref(values))
        return values

    described = {str(number): Described(np.dtype(np.float32), (1000,)) for number in range(5)}
    write_safetensors(tmp_path / "a.safetensors", described, read)
    assert len(before) == 5


def test_what_was_not_announced_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a is float32 \(4, 3\), not float32 \(3, 4\)"):
        write_safetensors(tmp_path / "a.safetensors", {"a": DESCRIBED["a"]}, lambda name: ARRAYS[name].reshape(4, 3))
