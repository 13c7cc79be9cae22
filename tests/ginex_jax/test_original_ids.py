"""Ids as files list them: numbers where each is a number's own name, text otherwise."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ginex_jax.ingest.original_ids import read_original_ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("7\n-5\n0\n", [7, -5, 0]),
        ("007\n", ["007"]),  # not 7: another id may be called that
        ("7\n+7\n1_0\n", ["7", "+7", "1_0"]),
        ("\ufeffa b\r\n\r\n c \r\n", ["a b", "c"]),
        ("99999999999999999999\n", ["99999999999999999999"]),
        ("", []),
    ],
)
def test_text(tmp_path, text, ids):
    (tmp_path / "ids.txt").write_text(text, encoding="utf-8", newline="")
    assert read_original_ids(tmp_path / "ids.txt").tolist() == ids


@pytest.mark.parametrize(
    "column", [pa.array([7, 5], pa.uint8()), pa.array(["a", "b"]), pa.array(["a", "a"]).dictionary_encode()]
)
def test_parquet(tmp_path, column):
    pq.write_table(pa.table({"other": [1, 2], "id": column}), tmp_path / "ids.parquet")
    assert read_original_ids(tmp_path / "ids.parquet").tolist() == column.to_pylist()


@pytest.mark.parametrize("array", [np.array([7, -5], np.int8), np.array(["x", "yy"])])
def test_arrays(tmp_path, array):
    np.save(tmp_path / "ids.npy", array)
    np.savez(tmp_path / "ids.npz", ids=array)
    assert read_original_ids(tmp_path / "ids.npy").tolist() == array.tolist()
    assert read_original_ids(tmp_path / "ids.npz").tolist() == array.tolist()


def test_what_is_no_id_is_named(tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match=r"ids.txt row 2 \(counting from 1\): .* is no UTF-8 text"):
        read_original_ids(tmp_path / "ids.txt")
    np.save(tmp_path / "ids.npy", np.array([1, 2**63], np.uint64))
    with pytest.raises(ValueError, match=r"ids.npy row 2 .*: 9223372036854775808 is too large"):
        read_original_ids(tmp_path / "ids.npy")
    pq.write_table(pa.table({"id": [1, None]}), tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match=r"ids.parquet row 2 .*: the id is missing"):
        read_original_ids(tmp_path / "ids.parquet")
    pq.write_table(pa.table({"id": [1.5]}), tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match="integers or text, got double"):
        read_original_ids(tmp_path / "ids.parquet")
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match="no column 'id'"):
        read_original_ids(tmp_path / "ids.parquet")
