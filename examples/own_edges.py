"""`python -m examples.own_edges edges.csv --out folder`: from an edge list of your own to a trained network, out of core.

The file has columns `src` and `dst` (CSV with a header, Parquet or .npy). Where there are no features, as here, a node gets random ones
that are averaged over its neighbours, twice, so that neighbourhoods differ. The edges become a dataset on disk; GraphSAGE learns from
there, within `--memory`, which of some clusters a node belongs to, found by label propagation: a task that every graph has. A fifth of the
nodes is held out.
"""

import argparse
from pathlib import Path

import numpy as np

from ginex_jax import (
    CSCGraph,
    IngestOptions,
    ModelConfig,
    NodeArrays,
    NodeSampler,
    SamplerConfig,
    TrainConfig,
    accuracy,
    array_source,
    build_dataset,
    build_model,
    fit,
    infer,
    open_dataset,
    open_loader,
    open_source,
)

FANOUTS, FEATURES, CLUSTERS = (10, 10), 32, 8


def clusters(graph: CSCGraph, *, number: int, rounds: int, seed: int) -> np.ndarray:
    """A label for every node: random ones at first, then that of most in-neighbours, the lowest of equals, some rounds long."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, number, graph.num_nodes)
    targets = np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr))
    for _ in range(rounds):
        votes = np.bincount(targets * number + labels[graph.indices], minlength=graph.num_nodes * number)
        votes = votes.reshape(-1, number)
        labels = np.where(votes.any(axis=1), votes.argmax(axis=1), labels)
    return labels


def neighbourhood_features(graph: CSCGraph, *, number: int, seed: int) -> np.ndarray:
    """Random numbers, averaged twice over a node and its in-neighbours, float32 [nodes, number] of mean square 1."""
    features = np.random.default_rng(seed).standard_normal((graph.num_nodes, number))
    targets, degrees = np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr)), np.diff(graph.indptr)
    for _ in range(2):
        sums = [np.bincount(targets, column[graph.indices], minlength=graph.num_nodes) for column in features.T]
        features = (features + np.stack(sums, axis=1)) / (1 + degrees[:, None])
    return (features / np.sqrt(np.mean(features**2))).astype(np.float32)


def main(arguments: list[str] | None = None) -> None:
    """Prints what was read from disk and how many of the held-out nodes are told right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edges", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the two datasets")
    parser.add_argument("--memory", type=int, default=128, help="MiB of the loader")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    undirected = IngestOptions(undirected=True, drop_duplicates=True)
    build_dataset(options.out / "edges", open_source(edges=[options.edges]), undirected)
    graph = open_dataset(options.out / "edges").load_graph()
    print(f"{graph.num_nodes:,} nodes, {graph.num_edges:,} edges in both directions")

    rng = np.random.default_rng(options.seed)
    order = rng.permutation(graph.num_nodes)
    held_out = len(order) // 5
    targets = np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr))
    source = array_source(
        graph.indices,
        targets,
        features=neighbourhood_features(graph, number=FEATURES, seed=options.seed),
        labels=clusters(graph, number=CLUSTERS, rounds=10, seed=options.seed),
        splits={"train": np.sort(order[held_out:]), "test": np.sort(order[:held_out])},
    )
    build_dataset(options.out / "dataset", source)

    dataset = open_dataset(options.out / "dataset")
    assert dataset.train is not None and dataset.test is not None and dataset.labels is not None
    train, features = dataset.train, dataset.features
    assert features is not None
    sampler = SamplerConfig(fanouts=FANOUTS, batch_size=256, seed=options.seed)
    opened = open_loader(
        dataset,
        lambda graph, shapes: NodeSampler(graph, train, sampler, shapes=shapes),
        memory_bytes=options.memory << 20,
    )
    model = build_model(ModelConfig(hidden=64, num_layers=len(FANOUTS), num_outputs=CLUSTERS))
    config = TrainConfig(epochs=options.epochs, seed=options.seed)
    result = fit(model, opened.loader, NodeArrays(dataset.labels), config, num_features=FEATURES)
    read = opened.loader.features.stats
    print(f"{result.step} steps, {read.rows:,} rows ({read.bytes / 1e6:.1f} MB) read from disk")
    outputs = infer(model, result.params, opened.graph, features, memory_bytes=options.memory << 20, nodes=dataset.test)
    most = np.bincount(np.asarray(dataset.labels)[dataset.test]).max() / len(dataset.test)
    print(f"held-out nodes: {accuracy(outputs, dataset.labels):.3f} right; the largest cluster has {most:.3f} of them")


if __name__ == "__main__":
    main()
