"""`ginex plan`: its numbers are those of the simulation of the epoch's own mini-batches, and no feature is read."""

import json

import numpy as np
import pytest

from ginex_jax.belady.simulation import hottest, simulate
from ginex_jax.cli import main
from ginex_jax.cli.plan import parse_fanouts
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.source import sampled
from ginex_jax.store.dataset import open_dataset
from ginex_jax.store.disk_rate import measure_disk_rate
from ginex_jax.store.shards import open_sharded
from tests.ginex_jax.small_datasets import small_arrays, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "dataset"
    write_dataset(path, small_arrays())
    return path


def ginex(*arguments):
    return main([str(argument) for argument in arguments])


def planned(capsys, *arguments):
    assert ginex("plan", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


SMALL = ("--fanouts", "3,all", "--batch-size", 16, "--disk-rate", 1000)


@pytest.mark.parametrize("memory", ["1GiB", "4KB"])  # lists in memory; on disk
def test_numbers(dataset, capsys, monkeypatch, memory):
    monkeypatch.setattr("ginex_jax.store.direct_features.DirectFeatures.read_rows", None)
    report = planned(capsys, dataset, "--cache", "20KiB", "--cache", "64KiB", *SMALL, "--seed", 5, "--memory", memory)
    opened = open_dataset(dataset)
    graph, nodes = opened.load_graph(), opened.train
    config = SamplerConfig(fanouts=(3, None), batch_size=16, seed=5)
    trace = [sampled(graph, nodes, config, 0, index).node_ids for index in range(7)]
    assert report["batches"] == report["batches_per_epoch"] == 7
    assert report["rows"] == sum(map(len, trace))
    assert report["row_bytes"] == 512
    counts = np.bincount(graph.indices, minlength=500)
    assert len(report["results"]) == 6
    for result in report["results"]:
        capacity = result["cache_bytes"] // 512
        fixed = hottest(counts, capacity) if result["policy"] == "static" else None
        misses = simulate(trace, capacity=capacity, policy=result["policy"], num_nodes=500, hot_ids=fixed).sum()
        assert result["cache_rows"] == capacity
        assert result["misses"] == misses
        assert result["bytes"] == 512 * misses
        assert result["seconds_per_epoch"] == misses / 1000


def test_part_of_an_epoch_and_a_window(dataset, capsys):
    whole = planned(capsys, dataset, "--cache", "20KiB", *SMALL, "--batches", 3, "--policy", "belady")
    part = planned(capsys, dataset, "--cache", "20KiB", *SMALL, "--batches", 3, "--policy", "belady", "--window", 2)
    (first,), (second,) = whole["results"], part["results"]
    assert part["batches"] == 3
    assert second["misses"] >= first["misses"]
    assert second["seconds_per_epoch"] == pytest.approx(second["misses"] * 7 / 3 / 1000)


def test_table_and_plot(dataset, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ("plan", dataset, "--cache", "20KiB", "--cache", "64KiB", "--plot", tmp_path / "misses.png")
    assert ginex(*arguments, *SMALL, "--window", 4) == 0
    out = capsys.readouterr().out
    assert "belady, window 4" in out
    assert "1,000 rows/s (given)" in out
    assert (tmp_path / "misses.png").read_bytes().startswith(b"\x89PNG")


def test_the_rate_is_measured_where_no_feature_lies(dataset):
    rate, _ = measure_disk_rate(open_sharded(dataset / "indices"), row_bytes=512, seconds=0.01)
    assert rate > 0
    with pytest.raises(ValueError, match="too small to measure"):
        measure_disk_rate(open_sharded(dataset / "indices"), row_bytes=1 << 30, seconds=0.01)


def test_fanouts():
    assert parse_fanouts("10, all,5") == (10, None, 5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--cache", "lots"), "a size is a number"),
        (("--cache", "100B"), "holds no row"),
        (("--cache", "1MB", "--policy", "fifo"), "belady, lru, static, got 'fifo'"),
        (("--cache", "1MB", "--fanouts", "10,some"), "numbers or all"),
        (("--cache", "1MB", "--fanouts", "0"), "fanout"),
        (("--cache", "1MB", "--batch-size", "0"), "batch_size"),
        (("--cache", "1MB", "--batches", "0"), "--batches should be more than 0"),
        (("--cache", "1MB", "--window", "-1"), "--window should be more than 0"),
        (("--cache", "1MB", "--disk-rate", "inf"), "--disk-rate should be more than 0 and finite"),
        (("--cache", "1MB", "--epoch", "-1"), "--epoch"),
        (("--cache", "1MB", "--plot", "misses.txt"), "a plot is a .png"),
        (("--cache", "1MB", "--plot", "nowhere/misses.png"), "nowhere"),
        ((), "cache"),
    ],
)
def test_mistakes(dataset, capsys, arguments, complaint):
    assert ginex("plan", dataset, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


@pytest.mark.parametrize(("missing", "complaint"), [("train", "no training nodes"), ("features", "no features")])
def test_a_dataset_that_lacks_something(tmp_path, capsys, missing, complaint):
    arrays = small_arrays()
    del arrays[missing]
    write_dataset(tmp_path / "dataset", arrays)
    assert ginex("plan", tmp_path / "dataset", "--cache", "1MB") == 2
    assert complaint in capsys.readouterr().err
