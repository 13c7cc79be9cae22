"""Sorted runs to arrays, against NumPy and SciPy."""

import contextlib

import numpy as np
import pytest
import scipy.sparse

from ginex_jax.ingest import csc, edge_sorter
from ginex_jax.ingest.csc import disk_bytes, write_csc
from ginex_jax.ingest.edge_blocks import clean, in_memory_edges, self_loops, with_reverse, without_self_loops
from ginex_jax.ingest.edge_sorter import EdgeSorter, SortedEdges, without_duplicates


class ListWriter:
    def __init__(self, written, name, shape, dtype):
        self.written, self.name, self.shape, self.dtype, self.blocks = written, name, shape, dtype, []

    def append(self, block):
        assert block.dtype == self.dtype
        self.blocks.append(block.copy())

    def close(self):
        self.written[self.name] = np.concatenate([np.empty(0, self.dtype), *self.blocks])
        assert self.written[self.name].shape == self.shape


def write(tmp_path, targets, sources, weights, *, num_nodes, known, run=37):
    written = {}
    runs = (
        SortedEdges(targets[i : i + run], sources[i : i + run], None if weights is None else weights[i : i + run])
        for i in range(0, len(targets), run)
    )
    counts = write_csc(
        tmp_path,
        runs,
        num_nodes=num_nodes,
        num_edges=len(targets) if known else None,
        weighted=weights is not None,
        make_writer=lambda name, shape, dtype: ListWriter(written, name, shape, dtype),
    )
    assert counts == (num_nodes, len(targets))
    assert not list(tmp_path.iterdir())
    return written


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("nodes_at_once", [1, 7, 1 << 20])
def test_equals_scipy(tmp_path, monkeypatch, known, nodes_at_once):
    monkeypatch.setattr(csc, "_NODES_AT_ONCE", nodes_at_once)
    rng = np.random.default_rng(0)
    num_nodes = 200
    flat = np.sort(rng.choice(num_nodes * num_nodes // 2, 900, replace=False))  # the last hundred nodes have no list
    targets, sources = np.divmod(flat, num_nodes)
    weights = rng.random(900, np.float32)
    written = write(tmp_path, targets, sources, weights, num_nodes=num_nodes, known=known)
    oracle = scipy.sparse.coo_array((weights, (sources, targets)), shape=(num_nodes, num_nodes)).tocsc()
    oracle.sort_indices()
    np.testing.assert_array_equal(written["indptr"], oracle.indptr)
    np.testing.assert_array_equal(written["indices"], oracle.indices)
    np.testing.assert_array_equal(written["weights"], oracle.data)
    assert written["indices"].dtype == np.int32


def test_a_list_over_several_runs_and_repeated_edges(tmp_path):
    targets, sources = np.array([2] * 100 + [4] * 3), np.array([1] * 60 + [3] * 40 + [0, 0, 2])
    written = write(tmp_path, targets, sources, None, num_nodes=6, known=True, run=7)
    assert written["indptr"].tolist() == [0, 0, 0, 100, 100, 103, 103]
    assert written["indices"].tolist() == sources.tolist()
    assert "weights" not in written


def test_no_edges(tmp_path):
    written = write(tmp_path, np.empty(0, np.int64), np.empty(0, np.int64), None, num_nodes=3, known=False)
    assert written["indptr"].tolist() == [0, 0, 0, 0]
    assert written["indices"].size == 0


@pytest.mark.parametrize(("target", "source"), [(5, 0), (0, 5)])
def test_a_node_that_is_not_there(tmp_path, target, source):
    with pytest.raises(ValueError, match="node 5 has an edge, and there are 5 nodes"):
        write(tmp_path, np.array([target]), np.array([source]), None, num_nodes=5, known=True)


def test_observe_sees_every_run(tmp_path):
    seen, written = [], {}
    run = SortedEdges(np.array([0, 1]), np.array([1, 0]), None)
    write_csc(
        tmp_path,
        iter([run, run._replace(targets=np.array([1, 1]))]),
        num_nodes=2,
        num_edges=4,
        weighted=False,
        make_writer=lambda name, shape, dtype: ListWriter(written, name, shape, dtype),
        observe=seen.append,
    )
    assert [run.targets.tolist() for run in seen] == [[0, 1], [1, 1]]


@pytest.mark.parametrize("memory_bytes", [3000, 100_000, 1 << 24])
def test_from_rows_to_arrays(tmp_path, monkeypatch, memory_bytes):
    """Undirected, duplicates dropped, a self loop each: SciPy's symmetric pattern with a full diagonal, whatever the memory."""
    monkeypatch.setattr(edge_sorter, "_LEAST_BYTES", 1)
    monkeypatch.setattr(edge_sorter, "EDGES_AT_ONCE", 199)
    num_nodes = 150
    ends = np.random.default_rng(0).integers(0, num_nodes, (2, 3000))
    ends[:, 1000:2000] = ends[:, 2000:]
    sorter = EdgeSorter(tmp_path / "spill", memory_bytes=memory_bytes)
    for raw in in_memory_edges(*ends, edges_per_block=301):
        block = with_reverse(without_self_loops(clean(raw, num_nodes=num_nodes, skip_bad_rows=False)))
        sorter.append(block.targets, block.sources)
    for block in self_loops(num_nodes, False):
        sorter.append(block.targets, block.sources)
    written = {}
    counts = write_csc(
        tmp_path,
        without_duplicates(sorter.sorted_runs()),
        num_nodes=num_nodes,
        num_edges=None,
        weighted=False,
        make_writer=lambda name, shape, dtype: ListWriter(written, name, shape, dtype),
    )
    oracle = scipy.sparse.coo_array((np.ones(3000), tuple(ends)), shape=(num_nodes, num_nodes))
    oracle = (oracle + oracle.T + scipy.sparse.eye_array(num_nodes)).tocsc()
    oracle.sort_indices()
    np.testing.assert_array_equal(written["indptr"], oracle.indptr)
    np.testing.assert_array_equal(written["indices"], oracle.indices)
    assert counts == (num_nodes, oracle.nnz)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_disk_bytes_are_enough_and_not_far_off(tmp_path, known, weighted):
    """The files there are, looked at after every step."""
    num_nodes, num_edges = 1 << 16, 50_000
    sizes = []

    def look():
        total = 0
        for path in tmp_path.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # other threads remove what they have sorted
                total += path.stat().st_size if path.is_file() else 0
        sizes.append(total)

    class FileWriter:
        def __init__(self, name, shape, dtype):
            self.file = (tmp_path / name).open("wb", buffering=0)

        def append(self, block):
            self.file.write(block.tobytes())
            look()

        def close(self):
            self.file.close()
            look()

    sorter = EdgeSorter(tmp_path / "spill", memory_bytes=1 << 20, weighted=weighted)
    targets, sources = np.random.default_rng(0).integers(0, num_nodes, (2, num_edges))
    sorter.append(targets, sources, np.ones(num_edges, np.float32) if weighted else None)
    write_csc(
        tmp_path,
        sorter.sorted_runs(),
        num_nodes=num_nodes,
        num_edges=num_edges if known else None,
        weighted=weighted,
        make_writer=FileWriter,
        observe=lambda run: look(),
    )
    promised = disk_bytes(num_edges, num_nodes, weighted=weighted, num_edges_known=known)
    assert max(sizes) <= promised <= 3 * max(sizes)
