"""A planted partition, small enough to train on in a second, and what training needs of it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from ginex_jax.checkpoint.record import RunIdentity
from ginex_jax.checkpoint.run_folder import RunFolder
from ginex_jax.features import ArrayFeatures
from ginex_jax.graph import CSCGraph
from ginex_jax.models.config import ModelConfig
from ginex_jax.pipeline.memory_loader import MemoryLoader
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.shapes import pilot
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.inputs import NodeArrays

NUM_NODES, NUM_CLASSES, WIDTH = 400, 4, 8
TRAIN, VALID, TEST = np.arange(0, 200), np.arange(200, 300), np.arange(300, 400)
MODEL = ModelConfig(kind="sage", hidden=16, num_layers=2, num_outputs=NUM_CLASSES, dropout=0.3)
# For the environment of a process: it compiles in less time.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
TRAINING = TrainConfig(learning_rate=0.01, epochs=4, checkpoint_every=3, log_every=2, seed=5)


@functools.cache
def planted() -> dict[str, np.ndarray]:
    """Nodes have 8 in-neighbours, 7 of 8 of their own class, and features that hardly tell the class."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(NUM_NODES) % NUM_CLASSES)
    own = np.stack([rng.choice(np.flatnonzero(labels == labels[node]), 7, replace=False) for node in range(NUM_NODES)])
    lists = np.sort(np.concatenate([own, rng.integers(0, NUM_NODES, (NUM_NODES, 1))], axis=1), axis=1)
    centers = rng.standard_normal((NUM_CLASSES, WIDTH))
    features = 0.5 * centers[labels] + rng.standard_normal((NUM_NODES, WIDTH))
    return {
        "indptr": np.arange(0, 8 * NUM_NODES + 1, 8),
        "indices": lists.reshape(-1).astype(np.int32),
        "features": features.astype(np.float32),
        "labels": labels,
        "train": TRAIN,
        "valid": VALID,
        "test": TEST,
    }


def planted_graph() -> CSCGraph:
    return CSCGraph(planted()["indptr"], planted()["indices"])


def planted_nodes(labels: np.ndarray | None = None) -> NodeArrays:
    return NodeArrays(planted()["labels"] if labels is None else labels, np.diff(planted()["indptr"]))


def planted_loader(
    nodes: np.ndarray = TRAIN, *, fanouts: tuple[int | None, ...] = (5, 5), batch_size: int = 32
) -> MemoryLoader:
    config = SamplerConfig(fanouts=fanouts, batch_size=batch_size, seed=1)
    graph = planted_graph()
    return MemoryLoader(graph, ArrayFeatures(planted()["features"]), nodes, config, pilot(graph, nodes, config))


def training(**changes: Any) -> TrainConfig:
    return dataclasses.replace(TRAINING, **changes)


def planted_run(path: Path, loader: MemoryLoader, config: TrainConfig, **changes: Any) -> RunFolder:
    identity = {
        "dataset": "planted",
        "model": MODEL,
        "num_features": WIDTH,
        "sampler": loader.sampler_state,
        "training": config.decisive,
    }
    return RunFolder(path, RunIdentity(**{**identity, **changes}))
