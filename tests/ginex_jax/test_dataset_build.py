"""Whole datasets from arrays and files, against NumPy and SciPy; the same bytes whatever the memory."""

import hashlib
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from ginex_jax.graph import validate
from ginex_jax.ingest.dataset_build import IngestOptions, build_dataset
from ginex_jax.ingest.sources import NodeFiles, array_source, open_source
from ginex_jax.store.dataset import open_dataset, verify_checksums

NUM_NODES, NUM_EDGES = 300, 2000


def quiet(phase, done, total):
    pass


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(5)
    ids = rng.permutation(NUM_NODES)
    return {
        "sources": rng.integers(0, NUM_NODES, NUM_EDGES),
        "targets": rng.integers(0, NUM_NODES - 20, NUM_EDGES),
        "weights": rng.random(NUM_EDGES, np.float32),
        "features": rng.standard_normal((NUM_NODES, 7)).astype(np.float32),
        "labels": rng.integers(-1, 4, NUM_NODES),
        "splits": {"train": ids[:40], "valid": ids[40:60], "test": ids[60:100]},
    }


def build(out, arrays, *, weighted=False, **options):
    given = {name: value for name, value in arrays.items() if name != "weights" or weighted}
    report = build_dataset(out, array_source(**given), IngestOptions(**options), progress=quiet)
    dataset = open_dataset(out)
    verify_checksums(dataset)
    validate(dataset.load_graph())
    assert (report.num_nodes, report.num_edges) == (dataset.num_nodes, dataset.num_edges)
    return dataset


def edge_list(graph):
    """(source, target) of every edge, as the graph lists them."""
    return np.stack([graph.indices, np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr))]).T


def sorted_pairs(sources, targets):
    order = np.lexsort((sources, targets))
    return np.stack([sources[order], targets[order]]).T


class TestGraph:
    def test_every_edge_sorted(self, tmp_path, arrays):
        graph = build(tmp_path / "out", arrays, weighted=True).load_graph()
        order = np.lexsort((arrays["sources"], arrays["targets"]))
        np.testing.assert_array_equal(edge_list(graph), sorted_pairs(arrays["sources"], arrays["targets"]))
        np.testing.assert_array_equal(graph.weights, arrays["weights"][order])

    def test_without_duplicates_it_is_scipys(self, tmp_path, arrays):
        graph = build(tmp_path / "out", arrays, drop_duplicates=True).load_graph()
        ones = np.ones(NUM_EDGES, np.int8)
        shape = (NUM_NODES, NUM_NODES)
        oracle = scipy.sparse.coo_array((ones, (arrays["sources"], arrays["targets"])), shape=shape).tocsc()
        oracle.sum_duplicates()
        np.testing.assert_array_equal(graph.indptr, oracle.indptr)
        np.testing.assert_array_equal(graph.indices, oracle.indices)

    def test_undirected(self, tmp_path, arrays):
        graph = build(tmp_path / "out", arrays, undirected=True).load_graph()
        sources, targets = arrays["sources"], arrays["targets"]
        proper = sources != targets
        both = np.concatenate([sources, targets[proper]]), np.concatenate([targets, sources[proper]])
        np.testing.assert_array_equal(edge_list(graph), sorted_pairs(*both))

    @pytest.mark.parametrize("self_loops", ["add", "drop"])
    def test_self_loops(self, tmp_path, arrays, self_loops):
        graph = build(tmp_path / "out", arrays, self_loops=self_loops).load_graph()
        proper = arrays["sources"] != arrays["targets"]
        assert not proper.all()
        loops = np.arange(NUM_NODES if self_loops == "add" else 0)
        expected = (np.concatenate([arrays[name][proper], loops]) for name in ("sources", "targets"))
        np.testing.assert_array_equal(edge_list(graph), sorted_pairs(*expected))

    def test_the_largest_id_tells_how_many_nodes(self, tmp_path):
        source = array_source(np.array([4, 2]), np.array([0, 2]))
        assert build_dataset(tmp_path / "out", source, IngestOptions(), progress=quiet) == (5, 2, 0)

    def test_no_edges(self, tmp_path):
        none = np.empty(0, np.int64)
        source = array_source(none, none, num_nodes=3)
        assert build_dataset(tmp_path / "out", source, IngestOptions(), progress=quiet) == (3, 0, 0)


class TestNodeData:
    def test_features_labels_splits(self, tmp_path, arrays):
        dataset = build(tmp_path / "out", arrays)
        np.testing.assert_array_equal(dataset.features.read_rows(np.arange(NUM_NODES)), arrays["features"])
        np.testing.assert_array_equal(dataset.labels, arrays["labels"])
        for name, ids in arrays["splits"].items():
            np.testing.assert_array_equal(getattr(dataset, name), ids)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_dtypes(self, tmp_path, arrays, dtype):
        dataset = build(tmp_path / "out", arrays, feature_dtype=dtype)
        expected = arrays["features"].astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
        found = dataset.features.read_rows(np.arange(NUM_NODES))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))

    def test_tasks(self, tmp_path, arrays):
        tasks = np.random.default_rng(0).random((NUM_NODES, 3))
        tasks[7, 1] = np.nan
        dataset = build(tmp_path / "out", {**arrays, "labels": tasks})
        np.testing.assert_array_equal(dataset.labels, tasks.astype(np.float32))

    @pytest.mark.parametrize("what", ["features", "labels"])
    def test_another_number_of_rows(self, tmp_path, arrays, what):
        with pytest.raises(ValueError, match=f"{what}.* has 299 rows, and there are 300 nodes"):
            build(tmp_path / "out", {**arrays, what: arrays[what][:-1], "num_nodes": NUM_NODES})
        assert not list(tmp_path.iterdir())

    def test_not_finite(self, tmp_path, arrays):
        features = arrays["features"].copy()
        features[123, 2] = np.inf
        with pytest.raises(ValueError, match="row 124 .counting from 1.: .*inf"):
            build(tmp_path / "out", {**arrays, "features": features})
        assert not list(tmp_path.iterdir())
        dataset = build(tmp_path / "out", {**arrays, "features": features}, skip_bad_rows=True)
        assert dataset.manifest.provenance["skipped_rows"] == {"features": 1}
        assert not dataset.features.read_rows(np.array([123])).any()

    def test_an_error_in_the_middle_leaves_no_open_file(self, tmp_path, arrays):
        features = np.ones((NUM_NODES, 20_000), np.float32)  # several blocks
        features[-1, 0] = np.nan
        with pytest.raises(ValueError, match="row 300 .counting from 1."):
            build(tmp_path / "out", {**arrays, "features": features})
        opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        assert not [path for path in opened if str(tmp_path) in path]

    def test_a_split_out_of_range(self, tmp_path, arrays):
        with pytest.raises(ValueError, match="node 300, and there are 300 nodes"):
            build(tmp_path / "out", {**arrays, "splits": {"train": np.array([3, 300])}})


class TestReorder:
    @pytest.mark.parametrize("reorder", ["degree", "bfs"])
    def test_the_same_graph_under_other_names(self, tmp_path, arrays, reorder):
        dataset = build(tmp_path / "out", arrays, weighted=True, reorder=reorder)
        order = dataset.original_ids
        assert dataset.manifest.node_order == reorder
        assert sorted(order.tolist()) == list(range(NUM_NODES))
        graph = dataset.load_graph()
        named = edge_list(graph)
        found = sorted(zip(order[named[:, 0]], order[named[:, 1]], graph.weights, strict=True))
        assert found == sorted(zip(arrays["sources"], arrays["targets"], arrays["weights"], strict=True))
        np.testing.assert_array_equal(dataset.features.read_rows(np.arange(NUM_NODES)), arrays["features"][order])
        np.testing.assert_array_equal(dataset.labels, arrays["labels"][order])
        for name, ids in arrays["splits"].items():
            np.testing.assert_array_equal(order[getattr(dataset, name)], ids)

    def test_degree_puts_the_most_used_first(self, tmp_path, arrays):
        graph = build(tmp_path / "out", arrays, reorder="degree").load_graph()
        uses = np.bincount(graph.indices, minlength=NUM_NODES)
        assert (np.diff(uses) <= 0).all()


class TestMappedIds:
    def names(self, kind):
        """Ids that are no numbers of nodes, not in ascending order."""
        numbers = np.random.default_rng(9).permutation(NUM_NODES) * 1_000_003 + 17
        return numbers if kind == "int" else np.array([f"n{number}" for number in numbers], object)

    @pytest.mark.parametrize("kind", ["int", "text"])
    @pytest.mark.parametrize("reorder", [None, "degree"])
    def test_everything_follows_its_id(self, tmp_path, arrays, kind, reorder):
        names = self.names(kind)
        pq.write_table(
            pa.table({"src": names[arrays["sources"]], "dst": names[arrays["targets"]]}), tmp_path / "edges.parquet"
        )
        shuffled = np.random.default_rng(1).permutation(NUM_NODES)
        columns = {f"f{i}": arrays["features"][shuffled, i] for i in range(7)}
        pq.write_table(pa.table({"id": names[shuffled], **columns}), tmp_path / "features.parquet")
        pq.write_table(
            pa.table({"id": names[shuffled], "label": arrays["labels"][shuffled]}), tmp_path / "labels.parquet"
        )
        train = arrays["splits"]["train"]
        (tmp_path / "train.txt").write_text("".join(f"{name}\n" for name in names[train]))
        source = open_source(
            edges=[tmp_path / "edges.parquet"],
            files=NodeFiles(
                features=tmp_path / "features.parquet", labels=tmp_path / "labels.parquet", train=tmp_path / "train.txt"
            ),
        )
        build_dataset(tmp_path / "out", source, IngestOptions(map_ids=True, reorder=reorder), progress=quiet)
        dataset = open_dataset(tmp_path / "out")
        verify_checksums(dataset)
        if kind == "int":
            stored = dataset.original_ids
        else:
            assert dataset.manifest.has_string_ids
            stored = np.array(pq.read_table(tmp_path / "out/original_ids.parquet")["id"].to_pylist(), object)
        if reorder is None:
            assert stored.tolist() == sorted(names.tolist())
        number_of = {name: number for number, name in enumerate(names.tolist())}
        original = np.array([number_of[name] for name in stored.tolist()])
        named = original[edge_list(dataset.load_graph())]
        assert sorted(map(tuple, named)) == sorted(zip(arrays["sources"], arrays["targets"], strict=True))
        np.testing.assert_array_equal(dataset.features.read_rows(np.arange(NUM_NODES)), arrays["features"][original])
        np.testing.assert_array_equal(dataset.labels, arrays["labels"][original])
        np.testing.assert_array_equal(original[dataset.train], train)


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_bytes_whatever_the_memory(tmp_path):
    rng = np.random.default_rng(3)
    edges = rng.integers(0, 50_000, (2, 3_000_000))
    options = {"drop_duplicates": True, "undirected": True, "reorder": "degree"}
    for memory_bytes in (32 << 20, 1 << 30):
        build_dataset(
            tmp_path / str(memory_bytes),
            array_source(*edges),
            IngestOptions(memory_bytes=memory_bytes, **options),
            progress=quiet,
        )
    found = [hashes(folder) for folder in sorted(tmp_path.iterdir())]
    assert found[0] == found[1]
    assert "manifest.json" in found[0]
    assert not [name for name in found[0] if name.startswith("spill")]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_nodes": 0}, "1 to 2"),
        ({"num_nodes": 5, "map_ids": True}, "leave it out"),
        ({"feature_dtype": "int8"}, "float32, float16 or bfloat16"),
        ({"memory_bytes": 1 << 20}, "at least 32 MiB"),
        ({"self_loops": "all"}, "keep, drop or add, got 'all'"),
        ({"reorder": "rabbit"}, "degree or bfs, got 'rabbit'"),
    ],
)
def test_options(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        IngestOptions(**options)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sources": np.array([0])}, r"targets should be \[edges\], 1 as sources are, got \[2000\]"),
        ({"weights": np.ones(1, np.float32)}, "weights should be"),
        ({"num_nodes": -3}, "at least one node"),
        ({"splits": {"train": np.array([0.5])}}, "train should be integers"),
        ({"splits": {"train": np.array([True, False])}}, "train should be integers"),
        ({"splits": {"training": np.array([1])}}, "got 'training'"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        build(tmp_path / "out", {**arrays, **changes}, weighted=True)


def test_one_large_id_does_not_fill_the_disk(tmp_path, monkeypatch):
    free = 10_000
    monkeypatch.setattr("ginex_jax.store.publishing.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free))
    with pytest.raises(OSError, match=r"needs about \d+\.\d MB, and \d+\.\d MB are free"):
        build_dataset(tmp_path / "out", array_source(*np.array([[0], [2_000_000]])), IngestOptions(), progress=quiet)
    assert not list(tmp_path.iterdir())
    build_dataset(tmp_path / "out", array_source(*np.array([[0], [200]])), IngestOptions(), progress=quiet)


class TestRowsWithIds:
    def source(self, folder, *, features, edges=((0, 1), (1, 2)), **files):
        np.save(folder / "edges.npy", np.array(edges))
        pq.write_table(pa.table(features), folder / "features.parquet")
        return open_source(edges=[folder / "edges.npy"], files=NodeFiles(features=folder / "features.parquet", **files))

    def test_ids_of_nodes_are_followed(self, tmp_path):
        source = self.source(tmp_path, features={"id": [2, 0, 1], "x": [1.0, 2.0, 3.0]})
        build_dataset(tmp_path / "out", source, IngestOptions(), progress=quiet)
        assert open_dataset(tmp_path / "out").features.read_rows(np.arange(3)).tolist() == [[2], [3], [1]]

    @pytest.mark.parametrize(
        ("ids", "map_ids", "complaint"),
        [
            ([2, 0, 0], False, r"row 3 \(counting from 1\): node 0 is listed in row 2 already"),
            ([2, 0, 0], True, r"row 3 \(counting from 1\): node 0 is listed in row 2 already"),
            ([2, 0, 3], False, "row 3 .*: node 3, and there are 3 nodes"),
            (["2", "0", "1"], False, "features.parquet should be integers"),
            ([2, None, 1], False, "features.parquet row 2 .*: column 'id' has no value"),
        ],
    )
    def test_each_node_has_one(self, tmp_path, ids, map_ids, complaint):
        source = self.source(tmp_path, features={"id": ids, "x": [1.0, 2.0, 3.0]})
        with pytest.raises(ValueError, match=complaint):
            build_dataset(tmp_path / "out", source, IngestOptions(map_ids=map_ids), progress=quiet)

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("70\n5\n70\n", r"train.txt row 3 .*: node 2 is listed in row 1 already"),
            ("70\n71\n", r"train.txt row 2 .*: id 71 has no edge"),
            ("07\n", r"train.txt row 1 .*: id '07' has no edge"),
        ],
    )
    def test_splits_of_mapped_ids(self, tmp_path, text, complaint):
        (tmp_path / "train.txt").write_text(text)
        features = {"id": [7, 70, 5], "x": [1.0, 2.0, 3.0]}
        source = self.source(tmp_path, features=features, edges=((5, 7), (7, 70)), train=tmp_path / "train.txt")
        with pytest.raises(ValueError, match=complaint):
            build_dataset(tmp_path / "out", source, IngestOptions(map_ids=True), progress=quiet)

    def test_no_rows_at_all(self, tmp_path):
        source = self.source(tmp_path, features={"x": pa.array([], pa.float32())})
        with pytest.raises(ValueError, match=r"features .*features.parquet has no rows"):
            build_dataset(tmp_path / "out", source, IngestOptions(), progress=quiet)


def test_a_bad_id_is_shown_as_it_was(tmp_path):
    pq.write_table(pa.table({"src": [1.0, 1.5], "dst": [2.0, 3.0]}), tmp_path / "edges.parquet")
    source = open_source(edges=[tmp_path / "edges.parquet"])
    with pytest.raises(ValueError, match=r"row 2 \(counting from 1\): value 1.5 of source: .*a whole number, or text"):
        build_dataset(tmp_path / "out", source, IngestOptions(map_ids=True), progress=quiet)
    pq.write_table(pa.table({"src": pa.array([1, 2**64 - 1], pa.uint64()), "dst": [2, 3]}), tmp_path / "edges.parquet")
    with pytest.raises(ValueError, match=r"edges.parquet row 2 .*: id 18446744073709551615 is above 2\^63"):
        build_dataset(tmp_path / "out", source, IngestOptions(map_ids=True), progress=quiet)
