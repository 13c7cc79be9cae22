"""What the writer writes, read by zarr and by TensorStore, which know nothing of it."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr

from ginex_jax.store import layout as layouts
from ginex_jax.store.layout import ArrayLayout
from ginex_jax.store.writer import ArrayWriter

ROOT = Path(__file__).parents[2]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def small_shards(monkeypatch):
    """Several shards without millions of rows."""
    monkeypatch.setattr(layouts, "_SHARD_ROWS", 1024)
    monkeypatch.setattr(layouts, "_VECTOR_SHARD_BYTES", 1 << 17)


def written(folder, array, pieces):
    writer = ArrayWriter(folder, "array", array.shape, array.dtype)
    for start in range(0, len(array), pieces):
        writer.append(array[start : start + pieces])
    return writer.close()


def array_of(shape, dtype):
    return np.random.default_rng(sum(shape)).integers(-100, 100, shape).astype(dtype)


class TestReadersAgree:
    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [
            ((2500, 1), np.float32),
            ((2500, 3), np.float16),
            ((2500, 100), np.float32),
            ((2500, 128), np.float32),
            ((1024, 129), np.float32),
            ((1025, 1025), np.float32),
            ((3, 2048), np.float32),
            ((2048, 5), BFLOAT16),
            ((0, 7), np.float32),
            ((0,), np.int64),
            ((1,), np.int32),
            ((50_000,), np.int64),
            ((32_768,), np.float32),
        ],
    )
    @pytest.mark.parametrize("pieces", [1, 700, 1_000_000])
    def test_same_shape_and_values(self, tmp_path, small_shards, shape, dtype, pieces):
        if pieces == 1 and shape[0] > 3:
            pieces = 333
        array = array_of(shape, dtype)
        entry = written(tmp_path, array, pieces)
        stored = array.view(np.uint16) if array.dtype == BFLOAT16 else array
        by_zarr = zarr.open_array(tmp_path / "array", mode="r")
        assert by_zarr.shape == shape
        np.testing.assert_array_equal(by_zarr[...], stored)
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "array")}}
        by_tensorstore = tensorstore.open(spec, read=True).result()
        assert by_tensorstore.shape == shape
        np.testing.assert_array_equal(by_tensorstore.read().result(), stored)
        assert entry.shape == shape
        assert by_zarr.attrs.get("dtype") == ("bfloat16" if array.dtype == BFLOAT16 else None)

    def test_a_row_of_zeros_is_stored(self, tmp_path, small_shards):
        """A reader that leaves out chunks of the fill value would move all that follow."""
        array = np.ones((2048, 128), np.float32)
        array[100:300] = 0
        written(tmp_path, array, 2048)
        np.testing.assert_array_equal(zarr.open_array(tmp_path / "array", mode="r")[...], array)
        first = np.fromfile(tmp_path / "array/c/0/0", np.float32, 1024 * 128).reshape(1024, 128)
        np.testing.assert_array_equal(first, array[:1024])

    def test_checksums_are_of_the_files(self, tmp_path, small_shards):
        entry = written(tmp_path, array_of((2500, 100), np.float32), 999)
        files = [tmp_path / "array/c" / str(shard) / "0" for shard in range(3)]
        assert [shard.nbytes for shard in entry.shards] == [file.stat().st_size for file in files]
        assert [shard.crc32c for shard in entry.shards] == [google_crc32c.value(file.read_bytes()) for file in files]

    def test_pieces_do_not_matter(self, tmp_path, small_shards):
        array = array_of((2500, 100), np.float32)
        entries = []
        for pieces in (1, 777, 2500):
            (tmp_path / str(pieces)).mkdir()
            entries.append(written(tmp_path / str(pieces), array, pieces))
        assert entries[0] == entries[1] == entries[2]


class TestLayout:
    @pytest.mark.parametrize(
        ("width", "dtype", "stride"),
        [
            (1, "float32", 4),
            (3, "float16", 8),
            (100, "float32", 512),
            (128, "float32", 512),
            (129, "float32", 1024),
            (768, "float32", 3072),
            (1025, "float32", 4608),
            (65, "bfloat16", 256),
        ],
    )
    def test_stride(self, width, dtype, stride):
        layout = ArrayLayout(shape=(10, width), dtype=layouts.DTYPES[dtype])
        assert layout.stride == stride
        assert layout.shard_rows == 1 << 18
        assert layout.inner_bytes <= max(4096, stride)

    def test_edge_arrays_have_chunks_of_64_kib(self):
        layout = ArrayLayout(shape=(10,), dtype=np.dtype(np.int32))
        assert layout.inner_bytes == 64 << 10

    @pytest.mark.parametrize("shape", [(), (1, 2, 3), (3, 0), (-1,)])
    def test_refuses_other_shapes(self, shape):
        with pytest.raises(ValueError, match="shape should be"):
            ArrayLayout(shape=shape, dtype=np.dtype(np.int32))

    def test_refuses_other_dtypes(self):
        with pytest.raises(ValueError, match="dtype should be one of"):
            ArrayLayout(shape=(3,), dtype=np.dtype(np.complex64))


class TestRefusals:
    def test_rows_of_another_kind(self, tmp_path):
        writer = ArrayWriter(tmp_path, "array", (10, 3), np.dtype(np.float32))
        with pytest.raises(ValueError, match=r"rows of float32 \(3,\), got float64 \(3,\)"):
            writer.append(np.zeros((1, 3)))
        with pytest.raises(ValueError, match=r"got float32 \(4,\)"):
            writer.append(np.zeros((1, 4), np.float32))

    def test_too_many_and_too_few(self, tmp_path):
        writer = ArrayWriter(tmp_path, "array", (10,), np.dtype(np.int64))
        with pytest.raises(ValueError, match="has 10 rows, got 11"):
            writer.append(np.zeros(11, np.int64))
        writer.append(np.zeros(9, np.int64))
        with pytest.raises(ValueError, match="has 10 rows, and only 9 came"):
            writer.close()
        writer.abandon()


def test_wide_rows_take_little_memory(tmp_path):
    """A shard of rows of 8 KiB has 2 GiB; writing 160 MB of it must not take them."""
    program = textwrap.dedent(
        f"""
        import re
        from pathlib import Path
        peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])  # a parent's is not in it
        import numpy as np
        from ginex_jax.store.writer import ArrayWriter
        writer = ArrayWriter(Path({str(tmp_path)!r}), "array", (20_000, 2000), np.dtype(np.float32))
        block = np.ones((500, 2000), np.float32)
        before = peak()
        for _ in range(40):
            writer.append(block)
        writer.close()
        print(peak() - before)
        """
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 32 << 10  # kilobytes
    assert json.loads((tmp_path / "array/zarr.json").read_text())["shape"] == [20_000, 2000]
