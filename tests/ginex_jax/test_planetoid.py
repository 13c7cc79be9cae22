"""A small folder in Planetoid's form, and Cora itself where the data are: in $GINEX_DATA, or in planetoid/ there."""

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from ginex_jax.ingest.graph_source import GraphSource, MatrixSource
from ginex_jax.ingest.planetoid import open_planetoid

NUM_TRAIN, NUM_KNOWN, WIDTH, NUM_CLASSES = 6, 520, 9, 4
TEST_IDS = np.array([523, 520, 524, 521])  # 522 is in no file, as in CiteSeer
NUM_NODES = 525


def write_folder(folder: Path, *, name: str = "small") -> dict[str, np.ndarray]:
    """Writes the eight files; returns the features, labels and edges that they mean."""
    rng = np.random.default_rng(0)
    features = (rng.random((NUM_NODES, WIDTH)) < 0.3).astype(np.float32)
    labels = rng.integers(0, NUM_CLASSES, NUM_NODES)
    features[522], labels[522] = 0, -1
    one_hot = (labels[:, None] == np.arange(NUM_CLASSES)).astype(np.int32)
    one_hot[3], labels[3] = 0, -1
    sources, targets = rng.integers(0, NUM_NODES, (2, 1000))
    graph = collections.defaultdict(list, {node: [] for node in range(NUM_NODES)})
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        graph[target].append(source)
    parts = {"x": slice(NUM_TRAIN), "allx": slice(NUM_KNOWN), "tx": TEST_IDS}
    for suffix, rows in parts.items():
        dump(folder / f"ind.{name}.{suffix}", scipy.sparse.csr_matrix(features[rows]))
        dump(folder / f"ind.{name}.{suffix.replace('x', 'y')}", one_hot[rows])
    dump(folder / f"ind.{name}.graph", graph)
    (folder / f"ind.{name}.test.index").write_text("".join(f"{node}\n" for node in TEST_IDS))
    return {"features": features, "labels": labels, "edges": np.unique(np.stack([sources, targets]), axis=1)}


def dump(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value, 4))


def edges_of(source: GraphSource, edges_per_block: int) -> np.ndarray:
    blocks = list(source.edges(edges_per_block))
    assert all(len(sources) <= edges_per_block for sources, _ in blocks)
    return np.stack([np.concatenate(side) for side in zip(*blocks, strict=True)])


@pytest.mark.parametrize("rows_per_block", [1, 100, 5000])
def test_a_folder_is_what_was_written(rows_per_block: int, tmp_path: Path) -> None:
    written = write_folder(tmp_path)
    source = open_planetoid(tmp_path)
    assert source.num_nodes == NUM_NODES
    assert isinstance(source.features, MatrixSource) and source.labels is not None
    features = np.concatenate(list(source.features.blocks(rows_per_block)))
    np.testing.assert_array_equal(features, written["features"])
    labels = np.concatenate(list(source.labels.blocks(rows_per_block)))[:, 0]
    np.testing.assert_array_equal(labels, written["labels"])
    edges = edges_of(source, rows_per_block)
    assert edges.shape == (2, 1000)
    np.testing.assert_array_equal(np.unique(edges, axis=1), written["edges"])
    assert source.train is not None and source.valid is not None and source.test is not None
    assert source.train.tolist() == list(range(NUM_TRAIN))
    assert source.valid.tolist() == list(range(NUM_TRAIN, NUM_TRAIN + 500))
    assert source.test.tolist() == [520, 521, 523, 524]


@pytest.mark.parametrize(
    ("suffix", "value", "message"),
    [
        ("tx", scipy.sparse.csr_matrix((3, WIDTH)), "should have 4 rows of 9"),
        ("tx", scipy.sparse.csr_matrix((4, WIDTH + 1)), "should have 4 rows of 9"),
        ("ally", np.zeros((NUM_KNOWN - 1, NUM_CLASSES)), "should be \\[520, classes\\]"),
        ("ty", np.full((4, NUM_CLASSES), 1), "at most one 1"),
        ("ty", np.full((4, NUM_CLASSES), 0.5), "at most one 1"),
        ("y", np.zeros((7, NUM_CLASSES)), "has 7 labels"),
        ("y", np.zeros(()), "y should be \\[rows, classes\\]"),
        ("graph", {node: [NUM_NODES] for node in range(NUM_NODES)}, "node 0 lists 525"),
        ("graph", {node: [] for node in range(522)}, "node 523, and there are 522 nodes"),
        ("graph", {0: [print]}, "names builtins.print, which is not allowed"),
        ("x", print, "names builtins.print, which is not allowed"),
    ],
)
def test_files_that_do_not_fit_are_named(suffix: str, value: object, message: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    dump(tmp_path / f"ind.small.{suffix}", value)
    with pytest.raises(ValueError, match=message):
        open_planetoid(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("520\n521\n523\n3\n", "node 3 is one of the 520"),
        ("520\n521\n523\n523\n", "row 4 .counting from 1.: node 523 is listed in row 3"),
        ("520\n521\n523\nx\n", "row 4 .counting from 1.: 'x'"),
    ],
)
def test_test_ids_are_checked(text: str, message: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "ind.small.test.index").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_planetoid(tmp_path)


def test_a_folder_with_two_data_sets_needs_a_name(tmp_path: Path) -> None:
    write_folder(tmp_path)
    write_folder(tmp_path, name="other")
    with pytest.raises(ValueError, match="one ind.NAME.graph, it has other, small"):
        open_planetoid(tmp_path)
    assert open_planetoid(tmp_path, name="other").num_nodes == NUM_NODES
    (tmp_path / "ind.other.ty").unlink()
    with pytest.raises(FileNotFoundError, match="ind.other.ty is missing"):
        open_planetoid(tmp_path, name="other")
    with pytest.raises(FileNotFoundError, match="not a folder"):
        open_planetoid(tmp_path / "nowhere")


def test_cora_is_the_cora_of_the_literature() -> None:
    data = Path(os.environ.get("GINEX_DATA", "nowhere"))
    folder = next((folder for folder in (data, data / "planetoid") if (folder / "ind.cora.graph").is_file()), None)
    if folder is None:
        pytest.skip("$GINEX_DATA names no folder with ind.cora.* or planetoid/ind.cora.*")
    source = open_planetoid(folder, name="cora")
    assert source.num_nodes == 2708
    sources, targets = edges_of(source, 1000)
    distinct = np.unique(np.stack([sources, targets])[:, sources != targets], axis=1)
    assert distinct.shape[1] == 10_556
    assert np.unique(np.sort(distinct, axis=0), axis=1).shape[1] == 5278
    assert source.features is not None and source.labels is not None
    features = np.concatenate(list(source.features.blocks(500)))
    assert features.shape == (2708, 1433) and features.sum() == 49_216 and set(np.unique(features)) == {0, 1}
    labels = np.concatenate(list(source.labels.blocks(500)))[:, 0]
    assert np.bincount(labels).tolist() == [351, 217, 418, 818, 426, 298, 180]
    assert source.train is not None and source.valid is not None and source.test is not None
    assert (len(source.train), len(source.valid), len(source.test)) == (140, 500, 1000)
    assert np.bincount(labels[source.train]).tolist() == [20] * 7
