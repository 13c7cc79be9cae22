"""Inference over all nodes against the papers' formulas, whatever the memory; and what is left behind when it fails."""

import functools
import itertools
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ginex_jax.features import ArrayFeatures
from ginex_jax.graph import CSCGraph
from ginex_jax.inference.layerwise import NodeOutputs, infer
from ginex_jax.inference.output_files import accuracy, write_outputs
from ginex_jax.models.config import ModelConfig
from ginex_jax.models.construction import build_model
from ginex_jax.sampling.neighbors import sample_batch
from ginex_jax.store.direct_features import DirectFeatures
from ginex_jax.store.stored_graph import StoredGraph
from tests.ginex_jax import oracles_models as oracles
from tests.ginex_jax.stored_arrays import write_matrix, write_vector

ROOT = Path(__file__).parents[2]
NUM_NODES, WIDTH = 2500, 20
CONFIGS = {
    name: ModelConfig(hidden=32, num_layers=3 if name == "gcn" else 2, num_outputs=4, **options)
    for name, options in {
        "sage mean": {"kind": "sage"},
        "sage max": {"kind": "sage", "aggregator": "max"},
        "gcn": {"kind": "gcn"},
        "gat": {"kind": "gat", "num_heads": 2},
    }.items()
}
SMALL = 1_200_000  # bytes: two hidden layers, 640,000, take more than half of it


@functools.cache
def graph() -> CSCGraph:
    """Lists by falling length, as of nodes that are numbered by degree; a hub, loops and nodes without neighbours."""
    rng = np.random.default_rng(0)
    degrees = np.sort(np.minimum(rng.zipf(1.7, NUM_NODES), 40))[::-1].copy()
    degrees[0], degrees[-100:] = 600, 0
    indptr = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64)
    return CSCGraph(indptr, (rng.random(indptr[-1]) ** 2 * NUM_NODES).astype(np.int32))


@functools.cache
def features() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((NUM_NODES, WIDTH)).astype(np.float32)


@functools.cache
def parameters_of(name: str) -> dict[str, Any]:
    batch = sample_batch(graph(), np.arange(2), fanouts=(1,) * CONFIGS[name].num_layers, seed=0, epoch=0, index=0)
    x = features()[batch.node_ids]
    shapes = jax.eval_shape(build_model(CONFIGS[name]).init, jax.random.key(0), batch.blocks, x, x[:, 0])
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: (rng.standard_normal(leaf.shape) / 4).astype(leaf.dtype), shapes)


@functools.cache
def expected(name: str) -> np.ndarray:
    indptr, indices, _ = graph()
    lists = [indices[start:stop].tolist() for start, stop in itertools.pairwise(indptr)]
    return oracles.network(
        CONFIGS[name], parameters_of(name), [lists] * CONFIGS[name].num_layers, features(), np.diff(indptr)
    )


def inferred(name: str, store: Any = None, **options: Any) -> list[NodeOutputs]:
    store = ArrayFeatures(features()) if store is None else store
    return list(infer(build_model(CONFIGS[name]), parameters_of(name), graph(), store, **options))


def close(blocks: list[NodeOutputs], name: str, nodes: np.ndarray | None = None) -> None:
    nodes = np.arange(NUM_NODES) if nodes is None else nodes
    np.testing.assert_array_equal(np.concatenate([block.node_ids for block in blocks]), nodes)
    outputs = np.concatenate([block.outputs for block in blocks])
    scale = np.abs(expected(name)).max()
    np.testing.assert_allclose(outputs, expected(name)[nodes], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_whole_graph(name: str) -> None:
    close(inferred(name, memory_bytes=1 << 30), name)


@pytest.mark.parametrize("name", ["gcn"])
@pytest.mark.parametrize("memory_bytes", [SMALL, pytest.param(3_000_000, marks=pytest.mark.slow)])
def test_equals_the_whole_graph_in_any_memory(name: str, memory_bytes: int, tmp_path: Path) -> None:
    """Graph and features on disk; hidden features, too, where memory is small. Nothing is left on the disk."""
    write_vector(tmp_path / "indices", graph().indices)
    write_matrix(tmp_path / "features", features())
    stored = StoredGraph.open(graph().indptr, tmp_path / "indices", None)
    scratch, seen = tmp_path / "scratch", []
    with DirectFeatures(tmp_path / "features") as store:
        blocks = infer(
            build_model(CONFIGS[name]),
            parameters_of(name),
            stored,
            store,
            memory_bytes=memory_bytes,
            scratch=scratch,
            progress=lambda phase, done, total: seen.append(
                (phase, done, total, scratch.exists() and any(scratch.iterdir()))
            ),
        )
        close(list(blocks), name)
    stored.close()
    assert [phase for i, (phase, *_) in enumerate(seen) if seen[i][1] == NUM_NODES] == [
        f"layer {i} of 3" for i in (1, 2, 3)
    ]
    assert all(on_disk == (memory_bytes == SMALL) for *_, on_disk in seen)
    assert len(seen) > 3 or memory_bytes > SMALL
    assert not scratch.exists() or not list(scratch.iterdir())


def test_only_the_last_layer_of_some_nodes() -> None:
    """In their order, with repetitions."""
    nodes = np.array([7, 0, 2499, 7, 1200, 3])
    seen = []
    blocks = inferred("gcn", memory_bytes=1 << 30, nodes=nodes, progress=lambda *args: seen.append(args))
    close(blocks, "gcn", nodes)
    assert seen == [("layer 1 of 3", 2500, 2500), ("layer 2 of 3", 2500, 2500), ("layer 3 of 3", 6, 6)]
    assert inferred("gcn", memory_bytes=1 << 30, nodes=nodes[:0]) == []


def test_files_of_outputs_and_predictions(tmp_path: Path) -> None:
    blocks = inferred("gcn", memory_bytes=3_000_000)
    write_outputs(tmp_path / "new" / "logits.npy", iter(blocks), num_rows=NUM_NODES, num_outputs=4)
    write_outputs(tmp_path / "predictions.npy", iter(blocks), num_rows=NUM_NODES, num_outputs=4, predictions=True)
    logits = np.concatenate([block.outputs for block in blocks])
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "logits.npy"), logits)
    np.testing.assert_array_equal(np.load(tmp_path / "predictions.npy"), logits.argmax(1))
    labels = np.where(np.arange(NUM_NODES) % 3 == 0, -1, np.random.default_rng(3).integers(0, 4, NUM_NODES))
    right = [logits[v].argmax() == labels[v] for v in range(NUM_NODES) if labels[v] >= 0]
    assert accuracy(iter(blocks), labels) == pytest.approx(np.mean(right))
    assert np.isnan(accuracy(iter(blocks), np.full(NUM_NODES, -1)))
    with pytest.raises(ValueError, match=r"\[2501, 4\], got 2500 rows"):
        write_outputs(tmp_path / "bad.npy", iter(blocks), num_rows=2501, num_outputs=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "predictions.npy"]


def test_too_little_memory_says_how_much_would_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least .* for the longest list of neighbours, got 100,000") as caught:
        inferred("gcn", memory_bytes=100_000, scratch=tmp_path)
    enough = int(re.findall(r"[\d,]{5,}", str(caught.value))[0].replace(",", ""))
    close(inferred("gcn", memory_bytes=enough, scratch=tmp_path), "gcn")
    with pytest.raises(ValueError, match=r"at least 1,\d\d\d,\d\d\d to hold hidden features .* name a scratch folder"):
        inferred("gcn", memory_bytes=enough)


def test_a_full_disk_is_seen_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**5, 0, 10**5))  # pyright: ignore
    with pytest.raises(OSError, match="make room"):
        infer(
            build_model(CONFIGS["gcn"]),
            parameters_of("gcn"),
            graph(),
            ArrayFeatures(features()),
            memory_bytes=SMALL,
            scratch=tmp_path,
        )
    assert not list(tmp_path.iterdir())


class Failing(ArrayFeatures):
    """A store that reads so often and no more."""

    left = 2

    def read_rows(self, *args: Any, **options: Any) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return super().read_rows(*args, **options)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        inferred("gcn", Failing(features()), memory_bytes=SMALL, scratch=tmp_path)
    assert not list(tmp_path.iterdir())
    model, store = build_model(CONFIGS["gcn"]), ArrayFeatures(features())
    blocks: Any = infer(model, parameters_of("gcn"), graph(), store, memory_bytes=SMALL, scratch=tmp_path)
    next(blocks)
    assert list(tmp_path.iterdir())
    blocks.close()
    assert not list(tmp_path.iterdir())


def test_wrong_calls_say_why() -> None:
    with pytest.raises(ValueError, match="one row for each of 2500 nodes"):
        inferred("gcn", ArrayFeatures(features()[1:]), memory_bytes=SMALL)
    with pytest.raises(ValueError, match=r"nodes should be in \[0, 2500\), got 2500 at 1"):
        inferred("gcn", memory_bytes=SMALL, nodes=np.array([1, 2500]))
    with pytest.raises(ValueError, match="memory_bytes should be at least 1"):
        inferred("gcn", memory_bytes=0)


@pytest.mark.slow
def test_peak_memory(tmp_path: Path) -> None:
    """Features and hidden features of 51 MB each, 200,000 edges, in 24 MiB, and what compiling and 64 reading threads take."""
    program = textwrap.dedent(
        f"""
        import re
        from pathlib import Path
        import jax, numpy as np
        from ginex_jax.features import ArrayFeatures
        from ginex_jax.graph import CSCGraph
        from ginex_jax.inference.layerwise import infer
        from ginex_jax.models.config import ModelConfig
        from ginex_jax.models.construction import build_model
        from ginex_jax.sampling.neighbors import sample_batch
        from ginex_jax.store.direct_features import DirectFeatures
        from ginex_jax.store.writer import ArrayWriter

        def peak():
            return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
        rng, folder, n = np.random.default_rng(0), Path({str(tmp_path)!r}), 100_000
        degrees = rng.integers(0, 5, n)
        indptr = np.concatenate([[0], np.cumsum(degrees)])
        graph = CSCGraph(indptr, rng.integers(0, n, indptr[-1]).astype(np.int32))
        writer = ArrayWriter(folder, "features", (n, 128), np.dtype(np.float32))
        for _ in range(0, n, 1000):
            writer.append(rng.standard_normal((1000, 128)).astype(np.float32))
        writer.close()
        model = build_model(ModelConfig(kind="sage", hidden=128, num_layers=2, num_outputs=3))
        small = CSCGraph(np.array([0, 1, 2]), np.array([1, 0], np.int32))
        batch = sample_batch(small, np.arange(2), fanouts=(1, 1), seed=0, epoch=0, index=0)
        x = np.zeros((2, 128), np.float32)
        parameters = jax.jit(model.init)(jax.random.key(0), batch.blocks, x)
        list(infer(model, parameters, small, ArrayFeatures(x), memory_bytes=1 << 20))
        store = DirectFeatures(folder / "features")
        store.read_rows(np.arange(0, 30_000, 30))  # its threads
        before = peak()
        count = sum(len(b.outputs) for b in infer(model, parameters, graph, store, memory_bytes=24 << 20, scratch=folder))
        print(count, peak() - before)
        """
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    count, kilobytes = map(int, result.stdout.split())
    assert count == 100_000
    assert kilobytes < (24 + 40) << 10
