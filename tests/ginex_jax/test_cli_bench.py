"""`ginex bench`: misses are those of the simulation, its numbers fit together, and what is wrong is one line."""

import json

import numpy as np
import pytest

from ginex_jax.belady.simulation import simulate
from ginex_jax.cli import main
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.samplers import sampled
from ginex_jax.store.dataset import open_dataset
from ginex_jax.store.uses import most_used
from tests.ginex_jax.small_datasets import small_arrays, write_dataset

SMALL = ("--fanouts", "3,all", "--batch-size", 16, "--batches", 10, "--window", 4, "--cache", "20KiB")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "dataset"
    write_dataset(path, small_arrays())
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("ginex_jax.store.disk_rate.measure_disk_rate", lambda array, row_bytes: (1000.0, None))


def ginex(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("memory", ["1GiB", "4KB"])  # lists in memory; on disk
def test_numbers(dataset, capsys, memory):
    assert ginex("bench", dataset, *SMALL, "--memory", memory, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    opened = open_dataset(dataset)
    graph, nodes, config = opened.load_graph(), opened.train, SamplerConfig(fanouts=(3, None), batch_size=16)
    trace = [sampled(graph, nodes, config, *divmod(step, 7)).node_ids for step in range(10)]
    assert (report["warm_up"], report["cache_rows"], report["row_bytes"]) == (3, 40, 512)
    assert [result["policy"] for result in report["results"]] == ["belady", "lru", "static", "none"]
    hot_ids = most_used(np.bincount(graph.indices, minlength=500), 40)
    for result in report["results"]:
        assert result["rows"] == sum(map(len, trace[3:]))
        assert result["misses"] == result["planned_misses"]
        assert result["predicted_seconds"] >= result["misses"] / 7 / 1000
        if result["policy"] != "belady":  # whose window sees behind the last batch
            misses = simulate(
                trace,
                capacity=40,
                policy=result["policy"],
                num_nodes=500,
                hot_ids=hot_ids if result["policy"] == "static" else None,
            )
            assert result["misses"] == misses[3:].sum()
    by_policy = {result["policy"]: result["misses"] for result in report["results"]}
    assert by_policy["belady"] < by_policy["lru"] < by_policy["none"]


def test_tables(dataset, capsys):
    assert ginex("bench", dataset, *SMALL, "--policy", "lru") == 0
    out = capsys.readouterr().out
    assert "disk: 1,000 random rows/s" in out
    assert "assemble" in out
    assert "belady" not in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--batches", 1), "--batches should be at least 2"),
        (("--window", 0), "--window should be at least 1"),
        (("--policy", "best"), "a policy is one of belady, lru, static, none"),
        (("--cache", "10B"), "holds no row"),
        (("--fanouts", "many"), "numbers or all"),
    ],
)
def test_what_is_wrong_is_one_line(dataset, capsys, arguments, complaint):
    assert ginex("bench", dataset, *arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("lacking", ["features", "train"])
def test_what_the_dataset_lacks(tmp_path, capsys, lacking):
    arrays = small_arrays(weighted=False)
    del arrays[lacking]
    write_dataset(tmp_path / "dataset", arrays)
    assert ginex("bench", tmp_path / "dataset") == 2
    assert "ingest it again with" in capsys.readouterr().err
