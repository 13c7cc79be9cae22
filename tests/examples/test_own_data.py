"""The examples for data of one's own: they run as their docstrings say, and what they print is so."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from examples import accelerator_sweep, own_edges
from ginex_jax import CSCGraph, open_dataset


def planted_edges(*, nodes: int, edges: int, groups: int, seed: int) -> np.ndarray:
    """Random pairs, most of them of nodes of one group; node i is in group i % groups."""
    rng = np.random.default_rng(seed)
    sources = rng.integers(0, nodes, edges)
    within = sources % groups + groups * rng.integers(0, nodes // groups, edges)
    return np.stack([sources, np.where(rng.random(edges) < 0.95, within, rng.integers(0, nodes, edges))], axis=1)


def test_own_edges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edges = planted_edges(nodes=800, edges=8_000, groups=4, seed=0)
    file = tmp_path / "edges.csv"
    file.write_text("src,dst\n" + "".join(f"{a},{b}\n" for a, b in edges), encoding="utf-8")
    own_edges.main([str(file), "--out", str(tmp_path / "out"), "--epochs", "8"])
    first, _, last = capsys.readouterr().out.splitlines()
    both = {(a, b) for a, b in edges.tolist()} | {(b, a) for a, b in edges.tolist()}
    assert first == f"800 nodes, {len(both):,} edges in both directions"
    right, largest = map(float, re.findall(r"[01]\.\d+", last))
    assert right > 1.3 * largest
    dataset = open_dataset(tmp_path / "out" / "dataset")
    assert dataset.num_edges == len(both)


def test_labels_spread_to_those_who_see_most_of_them() -> None:
    """Two cliques: in the end each has one label."""
    pairs = [(a, b) for group in (range(5), range(5, 12)) for a in group for b in group if a != b]
    targets = np.array([b for _, b in pairs])
    order = np.argsort(targets, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(targets, minlength=12))])
    graph = CSCGraph(indptr=indptr, indices=np.array([a for a, _ in pairs])[order])
    labels = own_edges.clusters(graph, number=3, rounds=10, seed=1)
    assert len(set(labels[:5])) == len(set(labels[5:])) == 1
    features = own_edges.neighbourhood_features(graph, number=4, seed=0)
    np.testing.assert_allclose(features[:5], np.broadcast_to(features[0], (5, 4)), rtol=1e-5)  # all see the same
    assert np.mean(features**2) == pytest.approx(1, rel=1e-5)


def test_accelerator_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query, key, value = accelerator_sweep.random_arrays(queries=6, n=40, dim=8, seed=0)
    np.savez(tmp_path / "arrays.npz", query=query, key=key, value=value)
    accelerator_sweep.main(["--arrays", str(tmp_path / "arrays.npz"), "--keep", "0.5"])
    _, *rows, exact, best = capsys.readouterr().out.splitlines()
    numbers = np.array([[float(number) for number in row.split()] for row in rows])
    assert numbers[:, 0].tolist() == [5, 10, 20, 40, 80]
    assert (np.diff(numbers[:, 1]) >= 0).all()  # candidates
    assert exact.startswith("exact: 49 cycles")  # n + 9
    M = int(re.findall(r"\d+", best)[0])
    assert numbers[numbers[:, 0] == M, 3] >= 0.5
    assert (numbers[numbers[:, 0] < M, 3] < 0.5).all()


def test_what_is_kept_is_softmax_weight() -> None:
    """With every product looked at and a query of one key's direction, nearly all of the weight is that key's."""
    key = 8.0 * jnp.eye(6, 8)
    setting = accelerator_sweep.measure(3.0 * key[2:3], key, key, M=48)
    assert (setting.C, setting.K) == (1, 1)
    weights = np.exp(np.asarray(3.0 * key[2] @ key.T) / np.sqrt(8))
    assert setting.mass == pytest.approx(weights[2] / weights.sum(), rel=1e-5)
