"""Opening a dataset: everything is there, other readers see the same, and every kind of damage is one clear line."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import zarr

from ginex_jax.graph import validate
from ginex_jax.store.dataset import open_dataset, verify_checksums
from ginex_jax.store.description import describe
from tests.ginex_jax.small_datasets import small_arrays, write_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    arrays = small_arrays()
    path = tmp_path_factory.mktemp("dataset") / "small"
    write_dataset(path, arrays)
    return path, arrays


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "copy")


class TestContents:
    def test_arrays(self, written):
        path, arrays = written
        dataset = open_dataset(path)
        assert (dataset.num_nodes, dataset.num_edges) == (500, 4000)
        for name in ("labels", "train", "valid", "test"):
            np.testing.assert_array_equal(getattr(dataset, name), arrays[name])
        ids = np.array([499, 0, 3, 3])
        np.testing.assert_array_equal(dataset.features.read_rows(ids), arrays["features"][ids])
        assert dataset.original_ids is None
        assert "500 nodes" in repr(dataset)

    def test_graph(self, written):
        path, arrays = written
        dataset = open_dataset(path)
        positions = np.arange(0, 4000, 7)
        np.testing.assert_array_equal(dataset.graph.neighbors_at(positions), arrays["indices"][positions])
        np.testing.assert_array_equal(dataset.graph.weights_at(positions), arrays["weights"][positions])
        graph = dataset.load_graph()
        validate(graph)
        for name in ("indptr", "indices", "weights"):
            np.testing.assert_array_equal(getattr(graph, name), arrays[name])

    def test_what_is_not_there_is_none(self, tmp_path):
        arrays = small_arrays(weighted=False)
        write_dataset(tmp_path / "bare", {name: arrays[name] for name in ("indptr", "indices")})
        dataset = open_dataset(tmp_path / "bare")
        assert dataset.features is dataset.labels is dataset.train is None
        assert not dataset.graph.is_weighted
        assert dataset.load_graph().weights is None

    @pytest.mark.parametrize("implementation", ["direct", "tensorstore", "memory"])
    def test_every_store(self, written, implementation):
        path, arrays = written
        store = open_dataset(path, features=implementation).features
        assert store.shape == (500, 100)
        np.testing.assert_array_equal(store.read_rows(np.arange(500)), arrays["features"])

    def test_zarr_reads_the_group(self, written):
        path, arrays = written
        group = zarr.open_group(path, mode="r")
        for name, array in arrays.items():
            assert group[name].shape == array.shape
            np.testing.assert_array_equal(group[name][...], array)

    def test_description(self, written):
        report = describe(open_dataset(written[0]))
        assert report["arrays"]["features"]["shape"] == [500, 100]
        assert report["bytes"] == sum(file.stat().st_size for file in written[0].rglob("c/**/*") if file.is_file())
        assert json.loads(json.dumps(report)) == report


class TestDamage:
    def test_sound(self, copied):
        verify_checksums(open_dataset(copied))

    def test_a_truncated_shard(self, copied):
        shard = copied / "features/c/0/0"
        with shard.open("r+b") as stream:
            stream.truncate(shard.stat().st_size - 1)
        with pytest.raises(ValueError, match=r"features/c/0/0 has [\d,]+ bytes and should have"):
            open_dataset(copied)

    def test_a_shard_that_is_too_long(self, copied):
        with (copied / "indices/c/0").open("ab") as stream:
            stream.write(b"more")
        with pytest.raises(ValueError, match=r"indices/c/0 has [\d,]+ bytes and should have"):
            open_dataset(copied)

    def test_a_missing_shard(self, copied):
        (copied / "indices/c/0").unlink()
        with pytest.raises(ValueError, match="indices/c/0 is missing"):
            open_dataset(copied)

    def test_a_missing_array(self, copied):
        shutil.rmtree(copied / "labels")
        with pytest.raises(ValueError, match=r"labels/zarr\.json"):
            open_dataset(copied)

    def test_an_array_that_says_something_else(self, copied):
        file = copied / "features/zarr.json"
        document = json.loads(file.read_text())
        document["shape"] = [1_000_000_000, 100]
        file.write_text(json.dumps(document))
        with pytest.raises(ValueError, match="does not describe the array in the manifest"):
            open_dataset(copied)

    def test_a_flipped_bit_is_found_by_verification(self, copied):
        with (copied / "features/c/0/0").open("r+b") as stream:
            stream.seek(1000)
            byte = stream.read(1)[0]
            stream.seek(1000)
            stream.write(bytes([byte ^ 4]))
        with pytest.raises(ValueError, match="features/c/0/0 does not match its checksum"):
            verify_checksums(open_dataset(copied))

    @pytest.mark.parametrize("node", [-1, 500, 2**31 - 1])
    def test_a_neighbour_that_is_no_node(self, tmp_path, node):
        """Sizes and checksums are right, as those of a dataset that somebody made up."""
        arrays = small_arrays()
        arrays["indices"][1234] = node
        write_dataset(tmp_path / "wrong", arrays)
        dataset = open_dataset(tmp_path / "wrong")
        verify_checksums(dataset)
        np.testing.assert_array_equal(dataset.graph.neighbors_at(np.arange(1234)), arrays["indices"][:1234])
        message = rf"wrong/indices is damaged: it has a node {node}, and there are 500 nodes"
        for read in (
            dataset.load_graph,
            dataset.graph.count_uses,
            lambda: dataset.graph.pin(10**6),
            lambda: dataset.graph.neighbors_at(np.array([7, 1234])),
        ):
            with pytest.raises(ValueError, match=message) as error:
                read()
            assert "\n" not in str(error.value)
        assert dataset.graph.pinned_bytes == 0

    def test_lists_that_overlap(self, tmp_path):
        arrays = small_arrays()
        arrays["indptr"][100] = 4000
        write_dataset(tmp_path / "wrong", arrays)
        dataset = open_dataset(tmp_path / "wrong")
        for read in (dataset.load_graph, lambda: dataset.graph):
            with pytest.raises(ValueError, match="the indptr of .*wrong/indices falls after node 100: 4000 to"):
                read()

    def test_not_a_dataset(self, tmp_path):
        with pytest.raises(ValueError, match="is not a dataset"):
            open_dataset(tmp_path)
        with pytest.raises(ValueError, match="is not a dataset"):
            open_dataset(tmp_path / "nothing")


def test_opening_a_billion_edges_is_quick_and_small(tmp_path):
    """Of sparse files: 2^25 nodes, 2^30 edges, 128 floats a node. Only the manifest and the sizes of files are read."""
    program = textwrap.dedent(
        f"""
        import re, time
        from pathlib import Path
        peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])  # a parent's is not in it
        import numpy as np
        from ginex_jax.store.dataset import open_dataset
        from ginex_jax.store.layout import ArrayLayout
        from ginex_jax.store.manifest import ArrayEntry, Manifest, ShardEntry, write_manifest
        import json
        folder, entries = Path({str(tmp_path)!r}), {{}}
        shapes = {{"indptr": ((2**25 + 1,), "int64"), "indices": ((2**30,), "int32"), "labels": ((2**25,), "int64"),
                   "features": ((2**25, 128), "float32")}}
        for name, (shape, dtype) in shapes.items():
            layout = ArrayLayout(shape=shape, dtype=np.dtype(dtype))
            shards = []
            for shard in range(layout.num_shards):
                file = folder / name / layout.shard_name(shard)
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as stream:
                    stream.truncate(layout.shard_bytes(shard))
                shards.append(ShardEntry(nbytes=layout.shard_bytes(shard), crc32c=0))
            (folder / name / "zarr.json").write_text(json.dumps(layout.metadata()))
            entries[name] = ArrayEntry(shape=shape, dtype=dtype, shards=tuple(shards))
        write_manifest(folder, Manifest(num_nodes=2**25, num_edges=2**30, arrays=entries))
        before = peak()
        start = time.perf_counter()
        dataset = open_dataset(folder)
        print(time.perf_counter() - start, peak() - before, repr(dataset))
        """
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, result.stdout.split()[:2])
    assert "1,073,741,824 edges" in result.stdout
    assert kilobytes < 20_000
    assert seconds < 10  # a tenth of a second here; a scan of the files would take minutes


def test_pinning_what_is_used_most(written):
    path, arrays = written
    graph = open_dataset(path).graph
    uses = graph.count_uses()
    np.testing.assert_array_equal(uses, np.bincount(arrays["indices"], minlength=500))
    assert 0 < graph.pin(10_000, uses=uses) <= 10_000
    positions = np.random.default_rng(0).integers(0, 4000, 3000)
    np.testing.assert_array_equal(graph.neighbors_at(positions), arrays["indices"][positions])
