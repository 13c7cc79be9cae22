"""Every format read in blocks equals what its own library reads at once; whatever is wrong is said with file, row and value."""

import gzip
import io
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from ginex_jax.ingest.graph_source import ArrayMatrix, MatrixSource
from ginex_jax.ingest.labels import label_blocks, label_dtype, read_ids
from ginex_jax.ingest.node_files import FeatureBlock, feature_blocks, open_matrix
from ginex_jax.ingest.parquet_matrix import ParquetMatrix

MATRIX = np.random.default_rng(0).standard_normal((1003, 7)).astype(np.float32)
FLOAT32 = np.dtype(np.float32)


def write_npy(folder: Path) -> Path:
    np.save(folder / "m.npy", MATRIX)
    return folder / "m.npy"


def write_fortran_npy(folder: Path) -> Path:
    np.save(folder / "m.npy", np.asfortranarray(MATRIX))
    return folder / "m.npy"


def write_big_endian_npy(folder: Path) -> Path:
    np.save(folder / "m.npy", MATRIX.astype(">f4"))
    return folder / "m.npy"


def write_npz(folder: Path) -> Path:
    np.savez(folder / "m.npz", x=MATRIX)
    return folder / "m.npz"


def write_compressed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "m.npz", x=MATRIX)
    return folder / "m.npz"


def write_parquet(folder: Path) -> Path:
    columns = {f"c{column}": MATRIX[:, column] for column in range(MATRIX.shape[1])}
    pq.write_table(pa.table(columns), folder / "m.parquet", row_group_size=100)
    return folder / "m.parquet"


def write_fixed_list_parquet(folder: Path) -> Path:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(MATRIX.ravel()), MATRIX.shape[1])
    pq.write_table(pa.table({"x": lists, "id": np.arange(len(MATRIX))}), folder / "m.parquet")
    return folder / "m.parquet"


def write_list_parquet(folder: Path) -> Path:
    pq.write_table(pa.table({"x": list(MATRIX)}), folder / "m.pq", row_group_size=100)
    return folder / "m.pq"


def write_zarr(folder: Path, *, version: int) -> Path:
    array = zarr.create_array(
        folder / "m.zarr", shape=MATRIX.shape, chunks=(64, 4), dtype=MATRIX.dtype, zarr_format=version
    )
    array[:] = MATRIX
    return folder / "m.zarr"


def write_zarr2(folder: Path) -> Path:
    return write_zarr(folder, version=2)


def write_zarr3(folder: Path) -> Path:
    return write_zarr(folder, version=3)


def write_csv(folder: Path) -> Path:
    with gzip.open(folder / "m.csv.gz", "wt") as stream:
        np.savetxt(stream, MATRIX, "%.9g", delimiter=",")
    return folder / "m.csv.gz"


WRITERS = (
    write_npy, write_fortran_npy, write_big_endian_npy, write_npz, write_compressed_npz, write_parquet,
    write_fixed_list_parquet, write_list_parquet, write_zarr2, write_zarr3, write_csv,
)  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("rows_per_block", [1, 100, 5000])
def test_every_format_is_what_was_written(writer, rows_per_block: int, tmp_path: Path) -> None:
    source = open_matrix(writer(tmp_path))
    assert isinstance(source, MatrixSource)
    assert (source.num_rows, source.width) == MATRIX.shape
    for _ in range(2):  # every call starts again
        blocks = list(source.blocks(rows_per_block))
        assert max(map(len, blocks)) <= rows_per_block
        np.testing.assert_array_equal(np.concatenate(blocks).astype(np.float32), MATRIX)
        assert all(block.dtype == source.dtype and block.flags.writeable for block in blocks)


def test_a_member_is_chosen_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=MATRIX, b=np.arange(5))
    np.testing.assert_array_equal(next(open_matrix(tmp_path / "m.npz", member="b").blocks(9))[:, 0], np.arange(5))
    with pytest.raises(ValueError, match="one array, or say which: it has a, b"):
        open_matrix(tmp_path / "m.npz")
    with pytest.raises(ValueError, match="no array 'c'"):
        open_matrix(tmp_path / "m.npz", member="c")


def test_bfloat16_in_zarr_is_uint16_with_an_attribute(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "m", shape=(4, 2), chunks=(4, 2), dtype=np.uint16)
    array.attrs["dtype"] = "bfloat16"
    expected = np.arange(8).reshape(4, 2).astype(ml_dtypes.bfloat16)
    array[:] = expected.view(np.uint16)
    source = open_matrix(tmp_path / "m")
    assert source.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(next(source.blocks(4)), expected)


def test_an_empty_matrix_has_no_blocks(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.empty((0, 3)))
    source = open_matrix(tmp_path / "m.npy")
    assert source.num_rows == 0 and not list(source.blocks(10))


def test_parquet_keeps_ids_apart(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2, 3], "id": ["x", "y", "z"], "b": [4.0, None, 6.0]}), tmp_path / "m.parquet")
    source = ParquetMatrix(tmp_path / "m.parquet")
    assert source.has_ids and source.width == 2
    np.testing.assert_array_equal(np.concatenate(list(source.blocks(2))), [[1, 4], [2, np.nan], [3, 6]])
    assert np.concatenate(list(source.id_blocks(2))).tolist() == ["x", "y", "z"]


def test_missing_integers_are_nan(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, None, 3]}), tmp_path / "m.parquet")
    np.testing.assert_array_equal(next(open_matrix(tmp_path / "m.parquet").blocks(9)), [[1], [np.nan], [3]])


@pytest.mark.parametrize("writer", [write_npy, write_compressed_npz])
def test_memory_follows_the_block_and_not_the_file(writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.MATRIX", np.zeros((200_000, 16), np.float32))
    source = open_matrix(writer(tmp_path))
    for _ in source.blocks(1):
        break
    tracemalloc.start()
    rows = sum(len(block) for block in source.blocks(1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 200_000 and peak < 2_000_000  # the file is 12.8 MB


def damaged_header(path: Path, header: bytes) -> Path:
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4)}", "promises"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 4)}", "damaged"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 4)}", "plain numbers"),
        (b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 4)}", "plain numbers"),
        (b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (2, 4)}", "damaged"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4, 2)}", "should be \\[rows"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': 16}", "damaged"),
        (b"__import__('os').abort()", "damaged"),
        (b"(" * 9000, "damaged"),
    ],
)
def test_hostile_headers_are_refused(header: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_matrix(damaged_header(tmp_path / "m.npy", header))


@pytest.mark.parametrize("writer", WRITERS)
def test_truncation_is_reported(writer, tmp_path: Path) -> None:
    path = writer(tmp_path)
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and p.parent.name == "c"]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    if path.is_dir() and path.name == "m.zarr" and (path / ".zarray").exists():
        (path / ".zarray").write_text("{")
    if path.is_dir():
        (path / "zarr.json").write_text("{") if (path / "zarr.json").exists() else None
    with pytest.raises(ValueError, match="m\\."):
        for _ in open_matrix(path).blocks(100):
            pass


def test_a_member_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, x=np.zeros((1000, 1000)))
    data = bytearray(packed.getvalue())
    with zipfile.ZipFile(io.BytesIO(packed.getvalue())) as archive:
        size = archive.infolist()[0].file_size
    data = data.replace(size.to_bytes(4, "little"), (1 << 31).to_bytes(4, "little"))
    (tmp_path / "m.npz").write_bytes(data)
    with pytest.raises(ValueError, match="m.npz.*(damaged|promises)"):
        open_matrix(tmp_path / "m.npz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"1,2\n3,4,5\n", "m.csv row 2 .counting from 1.: 3 values, and the first row has 2"),
        ("m.csv", b"1,2\n3,x\n", "m.csv row 2 .counting from 1.: 'x' in column 1 is not a number"),
        ("m.csv.gz", b"1,2\n", "m.csv.gz is damaged"),
        ("m.npz", b"1,2\n", "m.npz is damaged"),
        ("m.parquet", b"1,2\n", "m.parquet is damaged"),
        ("m.npy", b"1,2\n", "m.npy is not a NumPy file"),
        ("m.doc", b"1,2\n", "m.doc is not .npy"),
    ],
)
def test_what_is_no_matrix_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        for _ in open_matrix(tmp_path / name).blocks(10):
            pass


def test_parquet_says_what_it_cannot_use(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"a": [1, 2], "name": ["x", "y"]}), path)
    with pytest.raises(ValueError, match="column 'name' is string"):
        open_matrix(path)
    pq.write_table(pa.table({"x": [[1.0, 2.0], [3.0]]}), path)
    with pytest.raises(ValueError, match="m.parquet row 2 .counting from 1.: 1 values, and the first row has 2"):
        list(open_matrix(path).blocks(10))


def test_a_zarr_group_names_its_arrays(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "g").create_array("inside", shape=(2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="group: name one of its arrays, inside"):
        open_matrix(tmp_path / "g")


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    for name in ("m.npy", "m.npz", "m.parquet", "m.csv", "m.zarr"):
        with pytest.raises(FileNotFoundError, match=name):
            open_matrix(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("source_dtype", [np.float64, np.float32, np.float16, np.int32, np.uint8, bool])
def test_features_are_cast_as_numpy_casts(dtype: type, source_dtype: type) -> None:
    values = (20 * np.abs(MATRIX)).astype(source_dtype)
    blocks = list(feature_blocks(ArrayMatrix(values), dtype=np.dtype(dtype), rows_per_block=100))
    expected = values.astype(np.float32).astype(dtype)
    np.testing.assert_array_equal(np.concatenate([block.rows for block in blocks]), expected)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, np.float32, "m row 151 .counting from 1.: value nan in column 2 is not finite"),
        (-np.inf, np.float32, "m row 151 .counting from 1.: value -inf in column 2 is not finite"),
        (1e300, np.float32, "m row 151 .counting from 1.: value 1e\\+300 in column 2 does not fit float32"),
        (70000.0, np.float16, "m row 151 .counting from 1.: value 70000.0 in column 2 does not fit float16"),
        (3.4e38, ml_dtypes.bfloat16, "m row 151 .counting from 1.: value 3.4e\\+38 in column 2 does not fit bfloat16"),
    ],
)
def test_bad_features_are_named_or_zeroed(value: float, dtype: type, message: str) -> None:
    values = MATRIX.astype(np.float64)
    values[150, 2] = values[700, 0] = value
    source = ArrayMatrix(values, name="m")
    with pytest.raises(ValueError, match=message):
        for _ in feature_blocks(source, dtype=np.dtype(dtype), rows_per_block=100):
            pass
    blocks: list[FeatureBlock] = list(
        feature_blocks(source, dtype=np.dtype(dtype), rows_per_block=100, skip_bad_rows=True)
    )
    values[[150, 700]] = 0
    assert sum(block.num_bad_rows for block in blocks) == 2
    np.testing.assert_array_equal(np.concatenate([block.rows for block in blocks]), values.astype(dtype))


def test_text_is_no_feature() -> None:
    with pytest.raises(ValueError, match="m holds <U3, and numbers are wanted; row 1 .counting from 1.: value abc"):
        next(feature_blocks(ArrayMatrix(np.array([["abc"]]), name="m"), dtype=FLOAT32))
    with pytest.raises(ValueError, match="features can be float32, float16, bfloat16"):
        next(feature_blocks(ArrayMatrix(MATRIX), dtype=np.dtype(np.int8)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([2, -1, 0], np.int8), [2, -1, 0]),
        (np.array([2, 0, 1], np.uint64), [2, 0, 1]),
        (np.array([2.0, np.nan, 0.0]), [2, -1, 0]),
        (np.array([[2.0], [-1.0], [0.0]], np.float32), [2, -1, 0]),
        (np.array([True, False]), [1, 0]),
    ],
)
def test_classes_are_int64(values: np.ndarray, expected: list[int]) -> None:
    source = ArrayMatrix(values)
    labels = np.concatenate([block.labels for block in label_blocks(source, rows_per_block=2)])
    assert label_dtype(source) == labels.dtype == np.int64
    assert labels.tolist() == expected


def test_tasks_are_float32_with_nan() -> None:
    values = np.array([[0, 1], [np.nan, 1]])
    (block,) = label_blocks(ArrayMatrix(values))
    assert block.labels.dtype == np.float32
    np.testing.assert_array_equal(block.labels, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0, 1, -2]), "m row 3 .counting from 1.: label -2 should be a class"),
        (np.array([0, 1, 0.5]), "m row 3 .counting from 1.: label 0.5 should be a class"),
        (np.array([0, 1, np.inf]), "m row 3 .counting from 1.: label inf should be a class"),
        (np.array([[0, 1], [0, 1], [0, np.inf]]), "m row 3 .counting from 1.: label inf in column 1"),
        (np.array([0, 1, 2**63], np.uint64), "m row 3 .counting from 1.: label 9223372036854775808"),
    ],
)
def test_bad_labels_are_named_or_dropped(values: np.ndarray, message: str) -> None:
    source = ArrayMatrix(values, name="m")
    with pytest.raises(ValueError, match=message):
        list(label_blocks(source, rows_per_block=2))
    blocks = list(label_blocks(source, rows_per_block=2, skip_bad_rows=True))
    assert [block.num_bad_rows for block in blocks] == [0, 1]
    last = blocks[1].labels[0]
    assert np.isnan(last).all() if values.ndim == 2 else last == -1


def test_string_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="m holds <U3, and numbers are wanted; row 1 .counting from 1.: value cat"):
        list(label_blocks(ArrayMatrix(np.array(["cat", "dog"]), name="m")))


def write_ids(path: Path, ids: np.ndarray) -> Path:
    text = "".join(f"{i}\n" for i in ids).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text))
    elif path.suffix in (".csv", ".txt"):
        path.write_bytes(text)
    elif path.suffix == ".npy":
        np.save(path, ids)
    elif path.suffix == ".npz":
        np.savez(path, ids=ids)
    else:
        pq.write_table(pa.table({"node": ids}), path)
    return path


ID_FILES = ("i.npy", "i.npz", "i.csv", "i.txt", "i.csv.gz", "i.txt.gz", "i.parquet")


@pytest.mark.parametrize("name", ID_FILES)
def test_ids_are_read_as_listed(name: str, tmp_path: Path) -> None:
    ids = np.array([5, 0, 9, 3])
    read = read_ids(write_ids(tmp_path / name, ids), num_nodes=10)
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, ids)


@pytest.mark.parametrize("name", ID_FILES)
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5, 10], "row 2 .counting from 1.: node 10, and there are 10 nodes"),
        ([5, -1], "row 2 .counting from 1.: node -1"),
        ([5, 4, 2, 4, 5], "row 4 .counting from 1.: node 4 is listed in row 2 already; 2 are repeated"),
    ],
)
def test_bad_ids_are_named(name: str, ids: list[int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} {message}"):
        read_ids(write_ids(tmp_path / name, np.array(ids)), num_nodes=10)


def test_ids_are_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "i.txt").write_text("1\n\ntwo\n")
    with pytest.raises(ValueError, match="i.txt row 2 .counting from 1.: 'two' is not a node's number"):
        read_ids(tmp_path / "i.txt", num_nodes=3)
    np.save(tmp_path / "i.npy", np.array([0.5]))
    with pytest.raises(ValueError, match="i.npy should be integers"):
        read_ids(tmp_path / "i.npy", num_nodes=3)
    pq.write_table(pa.table({"node": [1, None]}), tmp_path / "i.parquet")
    with pytest.raises(ValueError, match="i.parquet row 2 .counting from 1.: the id is missing"):
        read_ids(tmp_path / "i.parquet", num_nodes=3)


def test_ids_of_text_are_digits_after_a_mark_perhaps(tmp_path: Path) -> None:
    (tmp_path / "i.txt").write_bytes(b"\xef\xbb\xbf2\r\n\r\n0\r\n")
    assert read_ids(tmp_path / "i.txt", num_nodes=3).tolist() == [2, 0]
    (tmp_path / "i.txt").write_bytes(b"0_0\n")
    with pytest.raises(ValueError, match="row 1 .*: '0_0' is not a node's number"):
        read_ids(tmp_path / "i.txt", num_nodes=3)


def test_ids_of_parquet_are_the_column_id(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1, 1], "id": [2, 0]}), tmp_path / "i.parquet")
    assert read_ids(tmp_path / "i.parquet", num_nodes=3).tolist() == [2, 0]
    pq.write_table(pa.table({"id": ["2", "0"]}), tmp_path / "i.parquet")
    with pytest.raises(ValueError, match="i.parquet should be integers"):
        read_ids(tmp_path / "i.parquet", num_nodes=3)


def test_the_first_line_with_something_in_it_tells_the_width(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"\n\r\n1,2\n\n3,4\n")
    assert np.concatenate(list(open_matrix(tmp_path / "m.csv").blocks(9))).tolist() == [[1, 2], [3, 4]]
    (tmp_path / "m.csv").write_bytes(b"1,2\n  \n3,4\n")
    with pytest.raises(ValueError, match="row 2 .*: 1 values, and the first row has 2"):
        list(open_matrix(tmp_path / "m.csv").blocks(9))
