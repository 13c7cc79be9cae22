"""Sorting on disk against NumPy's lexsort, with so little memory that everything is split again and again."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ginex_jax.ingest import edge_sorter
from ginex_jax.ingest.edge_sorter import EdgeSorter, SortedEdges, without_duplicates

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny_memory(monkeypatch):
    monkeypatch.setattr(edge_sorter, "_LEAST_BYTES", 1)
    monkeypatch.setattr(edge_sorter, "EDGES_AT_ONCE", 97)


def sort(folder, targets, sources, weights=None, *, memory_bytes, block=1000):
    sorter = EdgeSorter(folder, memory_bytes=memory_bytes, weighted=weights is not None)
    for start in range(0, len(targets), block):
        piece = slice(start, start + block)
        sorter.append(targets[piece], sources[piece], None if weights is None else weights[piece])
    assert sorter.num_edges == len(targets)
    assert sorter.max_id == max(targets.max(initial=-1), sources.max(initial=-1))
    runs = list(sorter.sorted_runs())
    assert all(len(run.targets) for run in runs)
    assert not [path for path in folder.rglob("*") if path.is_file()]
    columns = [np.concatenate([run[i] for run in runs] or [np.empty(0)]) for i in range(2 + (weights is not None))]
    return [column.tolist() for column in columns]


def expected(targets, sources, weights=None):
    order = np.lexsort((sources, targets))  # stable
    return [column[order].tolist() for column in (targets, sources, weights) if column is not None]


def edges(kind, rng):
    if kind == "uniform":
        return rng.integers(0, 5000, (2, 600))
    if kind == "huge ids":
        return rng.integers(0, 1 << 32, (2, 600))
    if kind == "hub":
        return np.stack([np.full(600, 2**31 + 5), rng.integers(0, 300, 600)])
    if kind == "one edge":
        return np.stack([np.full(600, 7), np.full(600, 2**32 - 1)])
    if kind == "few of many":
        return np.stack([rng.integers(0, 3, 600) << 30, rng.integers(0, 3, 600) << 20])
    return np.empty((2, 0), np.int64)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("memory_bytes", [1, 4000, 1 << 22])
@pytest.mark.parametrize("kind", ["uniform", "huge ids", "hub", "one edge", "few of many", "none"])
def test_equals_lexsort(tmp_path, tiny_memory, kind, memory_bytes, weighted):
    if memory_bytes == 1 and kind != "none":
        memory_bytes = 800
    rng = np.random.default_rng(len(kind))
    targets, sources = edges(kind, rng)
    weights = rng.random(len(targets), np.float32) if weighted else None
    found = sort(tmp_path / "spill", targets, sources, weights, memory_bytes=memory_bytes)
    if len(targets):
        assert found == expected(targets, sources, weights)


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (0, 1 << 32)])
def test_ids_out_of_range(tmp_path, low, high):
    sorter = EdgeSorter(tmp_path / "spill", memory_bytes=1 << 20)
    with pytest.raises(ValueError, match=r"in \[0, 2\^32\), got"):
        sorter.append(np.array([1, low]), np.array([high, 1]))


def test_weights_all_or_none(tmp_path):
    sorter = EdgeSorter(tmp_path / "spill", memory_bytes=1 << 20, weighted=True)
    with pytest.raises(ValueError, match="weights are wanted"):
        sorter.append(np.array([1]), np.array([1]))


def test_duplicates_across_runs():
    columns = np.array([[0, 0, 0, 1, 1, 1, 2], [5, 5, 6, 6, 6, 6, 6], [1, 2, 3, 4, 5, 6, 7]])
    for cut in range(1, 7):
        runs = [SortedEdges(*part.astype(np.int64)[:2], part[2].astype(np.float32)) for part in
                (columns[:, :cut], columns[:, cut:])]  # fmt: skip
        kept = [run for run in without_duplicates(iter(runs)) if len(run.targets)]
        assert np.concatenate([run.targets for run in kept]).tolist() == [0, 0, 1, 2]
        assert np.concatenate([run.sources for run in kept]).tolist() == [5, 6, 6, 6]
        assert np.concatenate([run.weights for run in kept]).tolist() == [1, 3, 4, 7]


@pytest.mark.parametrize("num_nodes", [1 << 24, 100])
def test_peak_memory(tmp_path, num_nodes):
    """160 MB of edges in a budget of 64 MB: spread over all nodes, and over a hundred of them."""
    program = textwrap.dedent(
        f"""
        import re
        from pathlib import Path
        import numpy as np
        from ginex_jax.ingest.edge_sorter import EdgeSorter
        rng = np.random.default_rng(0)
        warm = EdgeSorter(Path({str(tmp_path / "warm")!r}), memory_bytes=64 << 20)
        warm.append(np.arange(10), np.arange(10))
        assert sum(len(run.targets) for run in warm.sorted_runs()) == 10
        sorter = EdgeSorter(Path({str(tmp_path / "spill")!r}), memory_bytes=64 << 20)
        def peak():  # `getrusage` would count what the parent had
            return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
        before = peak()
        for _ in range(20):
            sorter.append(*rng.integers(0, {num_nodes}, (2, 1_000_000)))
        total = sum(len(run.targets) for run in sorter.sorted_runs())
        print(total, peak() - before)
        """
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    total, kilobytes = map(int, result.stdout.split())
    assert total == 20_000_000
    assert kilobytes < (64 + 64) << 10
