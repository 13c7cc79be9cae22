"""The memory map of the benchmarks reads the rows that are there."""

import shutil

import numpy as np
import pytest

from benchmarks.mapped_features import MappedFeatures, evict
from ginex_jax.store.shards import open_sharded
from ginex_jax.store.writer import ArrayWriter

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("mapped"), np.arange(300_000 * 128, dtype=np.float32).reshape(-1, 128)
    writer = ArrayWriter(folder, "features", rows.shape, rows.dtype)
    writer.append(rows)
    writer.close()
    return folder, rows  # of two shards


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows(stored, threads):
    folder, rows = stored
    store = MappedFeatures(open_sharded(folder / "features"), folder / f"rows{threads}.so", num_threads=threads)
    rng = np.random.default_rng(threads)
    ids = rng.integers(0, len(rows), 1001)
    assert np.array_equal(store.read_rows(ids), rows[ids])
    out, slots = np.zeros((2000, 128), np.float32), rng.permutation(2000)[:1001]
    store.read_rows(ids, out=out, slots=slots)
    assert np.array_equal(out[slots], rows[ids])
    assert np.count_nonzero(out.any(axis=1)) == 1001 - np.count_nonzero(ids == 0) * (rows[0].any() == 0)
    assert store.stats.rows == 2002
    assert store.read_rows(ids[:0]).shape == (0, 128)


def test_pages_in_memory(stored):
    folder, rows = stored
    array = open_sharded(folder / "features")
    evict(array.paths)
    store = MappedFeatures(array, folder / "rows.so", num_threads=1)
    before = store.resident_bytes()
    store.read_rows(np.arange(0, len(rows), 8)[:1000])
    assert store.resident_bytes() - before <= 2000 * 4096  # nothing is read ahead
    store.read_rows(np.arange(len(rows)))
    assert store.resident_bytes() >= rows.nbytes
