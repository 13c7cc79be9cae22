"""`python -m examples.cora FOLDER`: trains on Cora with the public split, from a dataset on disk, and prints the test accuracies.

FOLDER has Planetoid's `ind.cora.*` files. Settings are those of Kipf and Welling (ICLR 2017): rows of features sum up to 1, 16 hidden
features, dropout one half before every layer, Adam with a learning rate of 0.01 and L2 regularization of 5e-4, 200 epochs of one
step; all neighbours, 2 hops. The parameters that are best on the validation nodes are those that are tested.
"""

import argparse
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ginex_jax import (
    BatchShape,
    Dataset,
    Graph,
    IngestOptions,
    MemoryLoader,
    NodeSampler,
    SamplerConfig,
    array_source,
    build_dataset,
    open_dataset,
    open_loader,
)
from ginex_jax.ingest.planetoid import open_planetoid
from ginex_jax.models.config import ModelConfig
from ginex_jax.models.construction import build_model
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.evaluation import batch_evaluator
from ginex_jax.train.inputs import NodeArrays
from ginex_jax.train.loop import fit

MODELS = {
    "gcn": ModelConfig(kind="gcn", hidden=16, num_layers=2, num_outputs=7, dropout=0.5, input_dropout=0.5),
    "sage": ModelConfig(kind="sage", hidden=64, num_layers=2, num_outputs=7, dropout=0.5, input_dropout=0.5),
}
TRAINING = TrainConfig(learning_rate=0.01, weight_decay=5e-4, epochs=200, eval_every=4, log_every=1000)
NUM_SEEDS = 5
MEMORY_BYTES = 256 << 20  # of the loader


def main(arguments: list[str] | None = None) -> int:
    """Prints a line for each seed and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=sorted(MODELS), action="append", help="repeat for several; default: both")
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        try:
            dataset = cora_dataset(options.folder, Path(folder) / "cora")
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        for kind in options.model or sorted(MODELS):
            accuracies = [accuracy(dataset, MODELS[kind], seed) for seed in range(options.seeds)]
            print(f"{kind}: test accuracy {np.mean(accuracies):.1%} (mean of", end=" ")
            print(", ".join(f"{value:.1%}" for value in accuracies) + ")")
    return 0


def cora_dataset(planetoid: Path, out: Path) -> Dataset:
    """Cora with both directions of every edge, no self loops, and rows of features that sum up to 1."""
    source = open_planetoid(planetoid, name="cora")
    assert source.features is not None and source.labels is not None
    sources, targets = (np.concatenate(ends) for ends in zip(*source.edges(1 << 20), strict=True))
    features = np.concatenate(list(source.features.blocks(1 << 20))).astype(np.float32)
    features /= np.maximum(features.sum(axis=1, keepdims=True), 1)
    splits = {"train": source.train, "valid": source.valid, "test": source.test}
    arrays = array_source(
        sources,
        targets,
        num_nodes=source.num_nodes,
        features=features,
        labels=np.concatenate(list(source.labels.blocks(1 << 20)))[:, 0].astype(np.int64),
        splits={name: nodes for name, nodes in splits.items() if nodes is not None},
    )
    options = IngestOptions(undirected=True, drop_duplicates=True, self_loops="drop")
    build_dataset(out, arrays, options, progress=lambda phase, done, total: None)
    return open_dataset(out)


def accuracy(dataset: Dataset, config: ModelConfig, seed: int) -> float:
    """On the test nodes, of a model trained with this seed. Graph and features are read from the disk, batch by batch."""
    features = dataset.features
    assert features is not None and dataset.labels is not None
    model, nodes = build_model(config), NodeArrays(dataset.labels, np.diff(dataset.graph.indptr))

    def sampler_of(split: np.ndarray | None, graph: Graph, shapes: Sequence[BatchShape] | None = None) -> NodeSampler:
        assert split is not None
        config = SamplerConfig(fanouts=(None, None), batch_size=len(split), seed=seed)
        return NodeSampler(graph, split, config, shapes=shapes)

    def evaluator(split: np.ndarray | None) -> Callable[[Any], float]:
        loader = MemoryLoader.of(sampler_of(split, dataset.graph), features)
        return batch_evaluator(model, loader, nodes, TRAINING.task)

    make_sampler = functools.partial(sampler_of, dataset.train)
    loader = open_loader(dataset, make_sampler, memory_bytes=MEMORY_BYTES, steps=TRAINING.epochs).loader
    training, width = dataclasses.replace(TRAINING, seed=seed), features.shape[1]
    result = fit(model, loader, nodes, training, num_features=width, evaluate=evaluator(dataset.valid))
    return evaluator(dataset.test)(result.params)


if __name__ == "__main__":
    sys.exit(main())
