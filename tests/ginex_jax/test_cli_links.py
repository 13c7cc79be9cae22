"""`ginex train --task links`."""

import json
from pathlib import Path

import numpy as np
import pytest

from ginex_jax.cli import main
from tests.ginex_jax.small_datasets import write_dataset
from tests.ginex_jax.small_links import NUM_NODES, communities, features


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, graph = tmp_path_factory.mktemp("links") / "graph", communities()
    rows = features().read_rows(np.arange(NUM_NODES))
    write_dataset(path, {"indptr": graph.indptr, "indices": graph.indices, "features": rows})
    return path


def test_links_are_learnt_and_a_run_goes_on(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--fanouts", "8,8", "--batch-size", "128", "--hidden", "16", "--lr", "0.01", "--memory", "256MiB"]
    start = ["train", str(dataset), "--out", str(tmp_path / "run"), "--json"]
    first = [*start, "--task", "links", *options, "--epochs", "4", "--eval-every", "4", "--dropout", "0"]
    assert main(first) == 0
    capsys.readouterr()
    assert main([*start, "--resume", "--epochs", "6"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == "links" and report["metric"] == "MRR"
    assert report["valid_auc"] > 0.85 and report["test_auc"] > 0.85
    assert 0.2 < report["test"] < 1
    assert main(["infer", str(tmp_path / "run"), str(dataset), "--out", str(tmp_path / "embeddings.npy")]) == 0
    assert np.load(tmp_path / "embeddings.npy").shape == (NUM_NODES, 16)


def test_refusals(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["train", str(dataset), "--out", str(tmp_path / "run"), "--fanouts", "2"]
    assert main([*start, "--task", "links", "--held-out", "0.5"]) == 2
    assert "below 1 together" in capsys.readouterr().err
    assert main([*start, "--task", "directed-links", "--hidden", "15"]) == 2
    assert "even number of outputs" in capsys.readouterr().err
