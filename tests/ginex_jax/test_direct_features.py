import concurrent.futures
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ginex_jax.features import ArrayFeatures, FeatureStore
from ginex_jax.store import direct_reads
from ginex_jax.store.direct_features import DirectFeatures
from tests.ginex_jax.stored_arrays import rewrite, write_matrix, write_vector

NUM_ROWS = 1003
WIDTHS = (1, 3, 100, 128, 768, 1024, 1025, 2048)
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
IDS = np.concatenate([np.random.default_rng(1).integers(0, NUM_ROWS, 300), [NUM_ROWS - 1, 0, 0, NUM_ROWS - 1]])


def matrix(width, dtype=np.float32, rows=NUM_ROWS):
    return np.random.default_rng(0).standard_normal((rows, width)).astype(dtype)


def same(a, b):
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_numpy_reads(tmp_path, width, dtype):
    values = matrix(width, dtype)
    with DirectFeatures(write_matrix(tmp_path / "x", values)) as store:
        assert isinstance(store, FeatureStore)
        assert (store.shape, store.dtype) == (values.shape, values.dtype)
        slots = np.random.default_rng(2).permutation(500)[: len(IDS)]
        for out in (store.empty(500), np.empty((500, width), dtype), np.empty((500, width), dtype, order="F")):
            out[:] = 7
            expected = ArrayFeatures(values).read_rows(IDS, out=np.full((500, width), 7, dtype), slots=slots)
            assert store.read_rows(IDS, out=out, slots=slots) is out
            same(out, expected)
        same(store.read_rows(IDS), values[IDS])
        same(store.read_rows(np.arange(NUM_ROWS)), values)


@pytest.mark.parametrize("unit", [1, 512, 4096])
@pytest.mark.parametrize("width", [1, 100, 768, 1025])
def test_every_unit_of_direct_reads(tmp_path, monkeypatch, unit, width):
    monkeypatch.setattr(direct_reads, "_UNITS", () if unit == 1 else (unit,))
    values = matrix(width)
    store = DirectFeatures(write_matrix(tmp_path / "x", values))
    assert store._reader.unit in (1, unit)
    same(store.read_rows(IDS), values[IDS])
    same(store.read_rows(IDS, out=store.empty(400))[: len(IDS)], values[IDS])


@pytest.mark.parametrize("keep_fill", [True, False])
def test_chunks_that_were_left_out_or_moved(tmp_path, keep_fill):
    values = matrix(100)
    values[100:600] = 0
    values[900] = 0
    path = write_matrix(tmp_path / "x", values, keep_fill=keep_fill)
    for start in (950, 120, 3):
        values[start : start + 20] = start
        rewrite(path, start, values[start : start + 20])
    store = DirectFeatures(path)
    same(store.read_rows(np.arange(NUM_ROWS)), values)
    out = np.full((NUM_ROWS, 100), 7, np.float32)
    same(store.read_rows(IDS, out=out, slots=np.arange(len(IDS)) + 3)[3 : len(IDS) + 3], values[IDS])
    assert (out[:3] == 7).all()


def test_what_lies_between_the_rows_of_the_caller_is_left_alone(tmp_path):
    values = matrix(100)
    store = DirectFeatures(write_matrix(tmp_path / "x", values))
    memory = direct_reads.aligned_bytes(400 * 512)
    memory[:] = 0xAA
    out = memory.reshape(400, 512)[:, :400].view(np.float32)  # the layout of `empty`, but not its memory
    store.read_rows(IDS, out=out)
    same(out[: len(IDS)], values[IDS])
    assert (memory.reshape(400, 512)[:, 400:] == 0xAA).all()
    for step in (-1, 3):
        out = np.full((1200, 128), 7, np.float32)
        part = out[::step, :100]
        same(store.read_rows(IDS, out=part)[: len(IDS)], values[IDS])
        assert (out[:, 100:] == 7).all()


def test_empty_is_filled_without_a_copy_and_may_be_sliced(tmp_path):
    values = matrix(200)
    store = DirectFeatures(write_matrix(tmp_path / "x", values))
    out = store.empty(500)
    assert out.shape == (500, 200)
    part = out[100:][::-1]
    same(store.read_rows(IDS, out=part)[: len(IDS)], values[IDS])
    assert store.empty(0).shape == (0, 200)
    for width in (1, 3, 100):
        values = matrix(width)
        store = DirectFeatures(write_matrix(tmp_path / f"{width}", values))
        out = store.empty(2000)
        out[:] = 7
        same(store.read_rows(IDS[:30], out=out[::50])[:30], values[IDS[:30]])
        assert (np.delete(out, np.arange(30) * 50, axis=0) == 7).all()


def test_nothing_to_read(tmp_path):
    nothing = np.empty(0, np.int64)
    for rows in (NUM_ROWS, 0):
        store = DirectFeatures(write_matrix(tmp_path / f"{rows}", matrix(3, rows=rows)))
        assert store.read_rows(nothing).shape == (0, 3)
        out = np.full((4, 3), 7, np.float32)
        assert (store.read_rows(nothing, out=out, slots=nothing) == 7).all()
        assert store.stats.requests == 0


def test_counts_sectors_and_requests(tmp_path):
    store = DirectFeatures(write_matrix(tmp_path / "x", matrix(128)))
    if store.note:
        pytest.skip(store.note)
    store.read_rows(np.array([5, 5, 100, 101, 300]))
    stats = store.stats
    assert (stats.rows, stats.bytes, stats.requests) == (5, 4 * 512, 3)
    assert stats.seconds > 0
    narrow = DirectFeatures(write_matrix(tmp_path / "narrow", matrix(3)))
    narrow.read_rows(np.arange(32))
    assert (narrow.stats.bytes, narrow.stats.requests) == (512, 1)


def test_on_a_file_system_in_memory():
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm")
    values = matrix(100)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        store = DirectFeatures(write_matrix(Path(folder) / "x", values))
        same(store.read_rows(IDS), values[IDS])
        assert (store.note is not None) == (store._reader.unit == 1)
        store.close()


def test_threads_share_a_store(tmp_path):
    values = matrix(128)
    store = DirectFeatures(write_matrix(tmp_path / "x", values), num_threads=8)
    requests = [np.random.default_rng(seed).integers(0, NUM_ROWS, 200) for seed in range(16)]
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        for ids, rows in zip(requests, executor.map(store.read_rows, requests), strict=True):
            same(rows, values[ids])
    assert store.stats.rows == 3200


def test_the_doors(tmp_path):
    store = DirectFeatures(write_matrix(tmp_path / "x", matrix(100)))
    one = np.array([1])
    with pytest.raises(ValueError, match=r"node ids should be in \[0, 1003\), got 1003 at 1"):
        store.read_rows(np.array([1, 1003]))
    with pytest.raises(ValueError, match="got -1"):
        store.read_rows(np.array([-1]))
    with pytest.raises(ValueError, match=r"slots should be in \[0, 4\)"):
        store.read_rows(one, out=np.empty((4, 100), np.float32), slots=np.array([4]))
    with pytest.raises(ValueError, match="out should be float32"):
        store.read_rows(one, out=np.empty((4, 100), np.float64))
    with pytest.raises(ValueError, match="out has 0 rows"):
        store.read_rows(one, out=np.empty((0, 100), np.float32))
    read_only = np.empty((4, 100), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        store.read_rows(one, out=read_only)
    with pytest.raises(ValueError, match=r"features should be \[nodes, width\]"):
        DirectFeatures(write_vector(tmp_path / "v", np.arange(5)))
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.read_rows(one)
