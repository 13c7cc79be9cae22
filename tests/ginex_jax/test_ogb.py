"""OGB folders, written here as OGB writes them and read back in blocks."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from ginex_jax.ingest.graph_source import GraphSource
from ginex_jax.ingest.labels import label_blocks
from ginex_jax.ingest.ogb import open_ogb

NUM_NODES, NUM_EDGES, WIDTH = 300, 1500, 5
RNG = np.random.default_rng(0)
EDGES = RNG.integers(0, NUM_NODES, (2, NUM_EDGES))
FEATURES = RNG.standard_normal((NUM_NODES, WIDTH)).astype(np.float32)
LABELS = RNG.integers(0, 40, NUM_NODES)
SPLITS = dict(zip(("train", "valid", "test"), np.split(RNG.permutation(NUM_NODES), [200, 250]), strict=True))


def write_text(path: Path, rows: np.ndarray, form: str = "%d") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as stream:
        np.savetxt(stream, rows, form, delimiter=",")


def write_splits(folder: Path) -> None:
    for name, ids in SPLITS.items():
        write_text(folder / "split" / "time" / f"{name}.csv.gz", ids)


def write_text_folder(folder: Path) -> Path:
    raw = folder / "raw"
    write_text(raw / "edge.csv.gz", EDGES.T)
    write_text(raw / "num-node-list.csv.gz", np.array([NUM_NODES]))
    write_text(raw / "num-edge-list.csv.gz", np.array([NUM_EDGES]))
    write_text(raw / "node-feat.csv.gz", FEATURES, "%.9g")
    write_text(raw / "node-label.csv.gz", LABELS)
    write_splits(folder)
    return folder


def write_array_folder(folder: Path) -> Path:
    raw = folder / "raw"
    raw.mkdir()
    np.savez_compressed(
        raw / "data.npz",
        edge_index=EDGES,
        node_feat=FEATURES.astype(np.float16),
        num_nodes_list=np.array([NUM_NODES]),
        num_edges_list=np.array([NUM_EDGES]),
    )
    labels = LABELS.astype(np.float32)[:, None]
    labels[7] = np.nan
    np.savez_compressed(raw / "node-label.npz", node_label=labels)
    write_splits(folder)
    return folder


def edges_of(source: GraphSource, edges_per_block: int) -> np.ndarray:
    blocks = list(source.edges(edges_per_block))
    assert all(len(sources) == len(targets) <= edges_per_block for sources, targets in blocks)
    return np.stack([np.concatenate(side) for side in zip(*blocks, strict=True)])


@pytest.mark.parametrize("edges_per_block", [7, 500, 10_000])
@pytest.mark.parametrize("writer", [write_text_folder, write_array_folder])
def test_a_folder_is_what_was_written(writer, edges_per_block: int, tmp_path: Path) -> None:
    source = open_ogb(writer(tmp_path))
    is_text = writer is write_text_folder
    assert source.num_nodes == NUM_NODES
    assert source.features is not None and source.labels is not None
    for _ in range(2):
        np.testing.assert_array_equal(edges_of(source, edges_per_block), EDGES)
    features = np.concatenate(list(source.features.blocks(64)))
    expected = FEATURES if is_text else FEATURES.astype(np.float16)
    np.testing.assert_array_equal(features.astype(expected.dtype), expected)
    labels = np.concatenate([block.labels for block in label_blocks(source.labels, rows_per_block=64)])
    np.testing.assert_array_equal(labels, LABELS if is_text else np.where(np.arange(NUM_NODES) == 7, -1, LABELS))
    for name, ids in SPLITS.items():
        np.testing.assert_array_equal(getattr(source, name), ids)


def test_several_tasks_and_no_features(tmp_path: Path) -> None:
    write_text_folder(tmp_path)
    (tmp_path / "raw" / "node-feat.csv.gz").unlink()
    write_text(tmp_path / "raw" / "node-label.csv.gz", np.stack([LABELS % 2, LABELS % 3], 1))
    source = open_ogb(tmp_path)
    assert source.features is None and source.labels is not None
    assert source.labels.width == 2 and source.labels.num_rows == NUM_NODES


@pytest.mark.parametrize(
    ("file", "rows", "message"),
    [
        ("num-edge-list", [NUM_EDGES + 1], "edge.csv.gz should have 1501 rows, and has 1500"),
        ("num-edge-list", [NUM_EDGES - 1], "edge.csv.gz should have 1499 rows, and has more"),
        ("num-edge-list", [3, 4], "num-edge-list.csv.gz lists 2 graphs"),
        ("num-node-list", [NUM_NODES + 1], "node-feat.csv.gz should have 301 rows, and has 300"),
        ("num-node-list", [-5], "lists -5"),
        ("edge", np.zeros((NUM_EDGES, 3)), "edge.csv.gz should have a source and a target"),
        ("node-label", LABELS[1:], "node-label.csv.gz should have 300 rows, and has 299"),
    ],
)
def test_counts_that_differ_are_reported(file: str, rows: object, message: str, tmp_path: Path) -> None:
    write_text_folder(tmp_path)
    write_text(tmp_path / "raw" / f"{file}.csv.gz", np.array(rows))
    with pytest.raises(ValueError, match=message):
        source = open_ogb(tmp_path)
        assert source.features is not None and source.labels is not None
        for blocks in (source.edges(100), source.features.blocks(100), source.labels.blocks(100)):
            for _ in blocks:
                pass


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"edge_index": EDGES[:, 1:]}, "should be integers \\[2, 1500\\]"),
        ({"edge_index": EDGES.astype(np.float64)}, "got float64"),
        ({"node_feat": FEATURES[1:]}, "features of 299 nodes, and there are 300"),
        ({"num_nodes_list": np.array([1, 2])}, "should be one integer"),
        ({"edge_index": None}, "no array 'edge_index'"),
    ],
)
def test_arrays_that_do_not_fit_are_reported(
    arrays: dict[str, np.ndarray | None], message: str, tmp_path: Path
) -> None:
    path = write_array_folder(tmp_path) / "raw" / "data.npz"
    with np.load(path) as written:
        kept = dict(written) | arrays
    np.savez_compressed(path, **{name: array for name, array in kept.items() if array is not None})
    with pytest.raises(ValueError, match=message):
        open_ogb(tmp_path)


def test_a_bad_edge_is_named(tmp_path: Path) -> None:
    write_text_folder(tmp_path)
    lines = gzip.decompress((tmp_path / "raw" / "edge.csv.gz").read_bytes()).splitlines()
    for bad, message in (
        (b"3,x", "row 701 .counting from 1.: 'x' in column 1"),
        (b"3", "row 701 .counting from 1.: 1 values, and the first row has 2"),
    ):
        lines[700] = bad
        (tmp_path / "raw" / "edge.csv.gz").write_bytes(gzip.compress(b"\n".join(lines)))
        with pytest.raises(ValueError, match=message):
            edges_of(open_ogb(tmp_path), 100)


def test_what_is_no_ogb_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        open_ogb(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no extracted OGB folder"):
        open_ogb(tmp_path)
    write_text_folder(tmp_path)
    (tmp_path / "split" / "random").mkdir()
    with pytest.raises(ValueError, match="random, time: say which"):
        open_ogb(tmp_path)
    assert open_ogb(tmp_path, split="time").train is not None
    (tmp_path / "raw" / "relations").mkdir()
    with pytest.raises(ValueError, match="several kinds of nodes"):
        open_ogb(tmp_path)
