"""The demo's parts on a small planted graph: plans against counting by hand, training beside the linear bar, the blocks of the report."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from examples.demo import cache_plan, ginex
from examples.demo.disk_training import Recipe, open_for, train, training_table
from examples.demo.report import FigureBlock, Section, TableBlock, write_report
from ginex_jax import (
    Dataset,
    DiskLoader,
    ModelConfig,
    NodeSampler,
    OpenedLoader,
    SamplerConfig,
    TrainConfig,
    open_dataset,
)
from ginex_jax.belady.simulation import simulate
from ginex_jax.pipeline.opening import policy_maker
from tests.ginex_jax.small_datasets import write_dataset
from tests.ginex_jax.small_runs import NUM_CLASSES, NUM_NODES, TEST, TRAIN, VALID, planted

RECIPE = Recipe(
    sampler=SamplerConfig(fanouts=(3, 3), batch_size=50),
    model=ModelConfig(kind="sage", hidden=16, num_layers=2, num_outputs=NUM_CLASSES),
    training=TrainConfig(learning_rate=0.03, epochs=6, eval_every=3),
    memory_bytes=128 << 20,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("demo") / "dataset"
    write_dataset(folder, planted() | {"train": TRAIN, "valid": VALID, "test": TEST})
    return open_dataset(folder)


def misses_of_a_fixed_set(trace: cache_plan.Trace, kept: set[int]) -> int:
    """Counted one by one: a kept row is read when it is first needed, any other every time."""
    seen: set[int] = set()
    misses = 0
    for ids in trace:
        for node in ids.tolist():
            misses += node not in kept or node not in seen
            seen.add(node)
    return misses


def test_a_plan_counts_what_a_cache_would_read() -> None:
    rng = np.random.default_rng(0)
    trace = [np.sort(rng.choice(60, 20, replace=False)).astype(np.int32) for _ in range(12)]
    uses = rng.permutation(60)
    results = cache_plan.expected_misses(trace, uses, shares=(0.1, 0.5, 1.0))
    assert [result.capacity for result in results] == [6] * 3 + [30] * 3 + [60] * 3
    by_case = {(result.policy, result.capacity): result for result in results}
    for capacity in (6, 30, 60):
        best = by_case["belady", capacity].misses
        assert best <= min(by_case[policy, capacity].misses for policy in cache_plan.POLICIES)
        kept = set(np.argsort(-uses)[:capacity].tolist())
        static = by_case["static", capacity]
        assert static.misses == misses_of_a_fixed_set(
            trace, kept - {int(np.argmin(uses))}
        )  # who is never used is not kept
        assert static.hit_rate == pytest.approx(1 - static.misses / 240)
    assert by_case["belady", 60].misses == by_case["lru", 60].misses == len(np.unique(np.concatenate(trace)))
    table = cache_plan.plan_table(results, 60)
    assert [row[:2] for row in table.rows] == [["10%", "6"], ["50%", "30"], ["100%", "60"]]
    assert f"{by_case['lru', 30].misses:,} (" in table.rows[1][4]


def test_a_figure_has_a_line_for_each_policy(tmp_path: Path) -> None:
    results = [cache_plan.Expected(policy, rows, 10, 0.5) for policy in cache_plan.POLICIES for rows in (1, 2)]
    figure = cache_plan.plan_figure(results, 10)
    assert figure.svg.count("#0072b2") and figure.svg.count("#009e73") and figure.svg.count("#d55e00")
    write_report(tmp_path / "report.html", [Section(title="a", introduction="b", blocks=[figure])])


def test_training_reads_what_was_planned(dataset: Dataset) -> None:
    opened = open_for(dataset, RECIPE)
    assert dataset.train is not None
    sampler = NodeSampler(opened.graph, dataset.train, RECIPE.sampler, shapes=opened.loader.shapes)
    trace = cache_plan.trace_of(sampler, RECIPE.training.epochs)
    trained = train(dataset, opened, RECIPE, trace)
    assert trained.steps == len(trace) == 24
    assert trained.cache_rows == NUM_NODES  # so every row is read once
    assert trained.reads == trained.planned_reads == len(np.unique(np.concatenate(trace)))
    assert trained.read_bytes >= trained.reads * 32
    assert trained.test_accuracy > 0.6
    table = training_table(trained, RECIPE, dataset, baseline=0.5)
    assert dict(table.rows)["test accuracy"] == f"{trained.test_accuracy:.3f}"  # pyright: ignore[reportArgumentType]


def test_training_reads_what_was_planned_where_not_all_is_kept(dataset: Dataset) -> None:
    """Then it matters how far the loader looks ahead, and by how much its view moves on."""
    recipe = dataclasses.replace(RECIPE, sampler=SamplerConfig(fanouts=(3, 3), batch_size=10))
    opened, capacity, window = open_for(dataset, recipe), 150, 5
    features = dataset.open_features()
    assert dataset.train is not None and features is not None
    sampler = NodeSampler(opened.graph, dataset.train, recipe.sampler, shapes=opened.loader.shapes)
    loader = DiskLoader(
        sampler,
        features,
        make_policy=policy_maker("belady", capacity=capacity, num_nodes=NUM_NODES, window=window, uses=None),
        ring_rows=opened.split.ring_rows,
        num_samplers=2,
    )
    split = dataclasses.replace(opened.split, capacity=capacity, window=window)
    trace = cache_plan.trace_of(sampler, recipe.training.epochs)
    trained = train(dataset, OpenedLoader(loader, split, opened.graph), recipe, trace)
    assert trained.reads == trained.planned_reads < trained.rows
    sizes = {"capacity": capacity, "num_nodes": NUM_NODES, "window": window}
    assert trained.reads < simulate(trace, policy="belady", commit=3, **sizes).sum()  # other plans would be told apart


def test_reads_that_were_not_planned_are_an_error(dataset: Dataset) -> None:
    opened = open_for(dataset, RECIPE)
    trace = [np.arange(10, dtype=np.int32)] * 24
    with pytest.raises(ValueError, match="10 reads were planned"):
        train(dataset, opened, RECIPE, trace)


def test_the_report_has_table_figure_and_accuracy(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    blocks, numbers = ginex._training(dataset, RECIPE, baseline=0.5)
    assert [type(block) for block in blocks] == [TableBlock, FigureBlock, TableBlock]
    numbers = json.loads(json.dumps(numbers))
    assert len(numbers["plan"]) == 12 and numbers["training"]["reads"] == numbers["training"]["planned_reads"]
    assert "test accuracy" in capsys.readouterr().out


def test_the_archive_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make demo"):
        ginex.run(tmp_path, tmp_path)
