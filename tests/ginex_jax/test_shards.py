import json
import math
import struct

import numpy as np
import pytest

from ginex_jax.store.shards import UnknownLayoutError, open_sharded
from tests.ginex_jax.stored_arrays import rewrite, write_matrix, write_vector

VALUES = np.random.default_rng(0).random((1700, 100), np.float32)


def read_by_hand(array, rows):
    """Row by row with seek and read."""
    files, offsets = array.locate(rows)
    result = np.empty((len(rows), *array.shape[1:]), array.dtype)
    for i, (file, offset) in enumerate(zip(files, offsets, strict=True)):
        if offset < 0:
            result[i] = array.fill
            continue
        with array.paths[file].open("rb") as stream:
            stream.seek(offset)
            result[i] = np.frombuffer(stream.read(array.row_bytes), array.dtype).reshape(array.shape[1:])
    return result


def edited(path, edit):
    document = json.loads((path / "zarr.json").read_text())
    edit(document)
    (path / "zarr.json").write_text(json.dumps(document))


def test_a_matrix_lies_where_products_say(tmp_path):
    array = open_sharded(write_matrix(tmp_path / "x", VALUES))
    assert (array.shape, array.dtype, array.stride) == (VALUES.shape, VALUES.dtype, 512)
    assert (array.inner_rows, array.shard_rows, len(array.paths)) == (8, 512, 4)
    assert array.offsets is None
    files, offsets = array.locate(np.array([0, 511, 512, 1699]))
    assert (files.tolist(), offsets.tolist()) == ([0, 0, 1, 3], [0, 511 * 512, 0, 163 * 512])
    np.testing.assert_array_equal(read_by_hand(array, np.arange(0, 1700, 13)), VALUES[::13])


def test_a_vector_lies_where_products_say(tmp_path):
    values = np.arange(10_000, dtype=np.int64)
    array = open_sharded(write_vector(tmp_path / "x", values))
    assert array.offsets is None
    np.testing.assert_array_equal(read_by_hand(array, values[::97]), values[::97])


@pytest.mark.parametrize("fill", [0, 1.5, "NaN", "-Infinity"])
def test_chunks_that_were_left_out_are_fill_value(tmp_path, fill):
    values = VALUES.copy()
    values[600:1200] = number = float(fill) if isinstance(fill, str) else fill
    path = write_matrix(tmp_path / "x", values[:0])
    edited(path, lambda document: document.update(shape=[1700, 100], fill_value=fill))
    rewrite(path, 0, values)
    array = open_sharded(path)
    assert array.offsets is not None
    assert (array.offsets < 0).any()
    assert array.fill == number or math.isnan(array.fill)
    np.testing.assert_array_equal(read_by_hand(array, np.arange(1700)), values)


def test_chunks_that_were_moved_are_found(tmp_path):
    path = write_matrix(tmp_path / "x", VALUES, keep_fill=False)
    for start in (1600, 40, 700, 0):
        rewrite(path, start, VALUES[start : start + 50][::-1])
    expected = VALUES.copy()
    for start in (1600, 40, 700, 0):
        expected[start : start + 50] = VALUES[start : start + 50][::-1]
    array = open_sharded(path)
    np.testing.assert_array_equal(read_by_hand(array, np.arange(1700)), expected)


def test_no_rows_need_no_files(tmp_path):
    array = open_sharded(write_matrix(tmp_path / "x", VALUES[:0]))
    assert array.paths == ()
    assert len(array.locate(np.empty(0, np.int64))[0]) == 0


def test_names_the_shard_that_is_missing_or_cut(tmp_path):
    path = write_matrix(tmp_path / "x", VALUES)
    shard = path / "c" / "2" / "0"
    whole = shard.read_bytes()
    for contents in (whole[:-1], whole[:-512], whole[:100], b""):
        shard.write_bytes(contents)
        with pytest.raises(ValueError, match="c/2/0 is truncated"):
            open_sharded(path)
    shard.unlink()
    with pytest.raises(ValueError, match="c/2/0 is missing"):
        open_sharded(path)


def test_an_index_with_a_good_checksum_may_still_lie(tmp_path):
    path = write_matrix(tmp_path / "x", VALUES)
    shard = path / "c" / "1" / "0"
    whole = bytearray(shard.read_bytes())
    index = len(whole) - 64 * 16 - 4
    for entry in ((2**63, 4096), (len(whole) - 4096, 4096), (0, 4095), (2**64 - 1, 4096)):
        struct.pack_into("<QQ", whole, index + 3 * 16, *entry)
        struct.pack_into("<I", whole, len(whole) - 4, crc32c(bytes(whole[index:-4])))
        shard.write_bytes(whole)
        with pytest.raises(ValueError, match="c/1/0 is damaged: inner chunk 3"):
            open_sharded(path)


def crc32c(data: bytes) -> int:
    """Bit by bit, after RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def sharding(document):
    return document["codecs"][0]["configuration"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(shape=[10]),
        lambda d: d.update(shape=[10, 2, 3]),
        lambda d: d.update(shape=[-1, 100]),
        lambda d: d.update(shape=[True, 100]),
        lambda d: d.update(shape=[2**62, 100]),
        lambda d: d.update(shape=[1700, 129]),
        lambda d: d.update(shape="1700"),
        lambda d: d.update(data_type="complex64"),
        lambda d: d.update(data_type={"name": "float32"}),
        lambda d: d.update(fill_value=None),
        lambda d: d.update(fill_value=[1]),
        lambda d: d.update(codecs=[]),
        lambda d: d.update(codecs="bytes"),
        lambda d: d.update(codecs=d["codecs"] * 2),
        lambda d: d.update(codecs=[{"name": "bytes"}]),
        lambda d: d.update(chunk_grid={"name": "rectangular"}),
        lambda d: d.update(chunk_grid={"name": "regular", "configuration": []}),
        lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[513, 128]),
        lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[512, 256]),
        lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[512]),
        lambda d: d.update(chunk_key_encoding={"name": "v2"}),
        lambda d: d.update(chunk_key_encoding={"name": "default", "configuration": {"separator": "."}}),
        lambda d: d.update(storage_transformers=[{"name": "x"}]),
        lambda d: sharding(d).update(index_location="start"),
        lambda d: sharding(d).update(index_codecs=[{"name": "bytes"}]),
        lambda d: sharding(d).update(codecs=[{"name": "bytes"}, {"name": "zstd"}]),
        lambda d: sharding(d).update(codecs=[{"name": "bytes", "configuration": {"endian": "big"}}]),
        lambda d: sharding(d).update(chunk_shape=[0, 128]),
        lambda d: sharding(d).update(chunk_shape=[8.0, 128]),
    ],
)
def test_refuses_other_layouts_in_one_line(tmp_path, edit):
    path = write_matrix(tmp_path / "x", VALUES[:20])
    edited(path, edit)
    with pytest.raises(UnknownLayoutError, match="zarr.json") as caught:
        open_sharded(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("contents", ["", "[1]", "{}", "[" * 100_000, '{"zarr_format": 2}', "\ud800"])
def test_refuses_what_is_no_array(tmp_path, contents):
    (tmp_path / "zarr.json").write_bytes(contents.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="zarr.json"):
        open_sharded(tmp_path)


def test_refuses_a_folder_without_an_array(tmp_path):
    with pytest.raises(ValueError, match="no zarr array"):
        open_sharded(tmp_path)


def test_promises_of_billions_of_shards_fail_at_the_first(tmp_path):
    path = write_matrix(tmp_path / "x", VALUES)
    edited(path, lambda document: document.update(shape=[2**50, 100]))
    with pytest.raises(ValueError, match="c/4/0 is missing|c/3/0"):
        open_sharded(path)
