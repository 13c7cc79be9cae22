"""Which loader feeds the training."""

import numpy as np

from ginex_jax.checkpoint.record import RunRecord
from ginex_jax.cli.run_options import RunOptions
from ginex_jax.features import FeatureStore
from ginex_jax.graph import Graph
from ginex_jax.pipeline.loading import Loader
from ginex_jax.pipeline.memory_loader import MemoryLoader
from ginex_jax.sampling.shapes import from_state, pilot
from ginex_jax.store.dataset import Dataset


def open_loader(dataset: Dataset, options: RunOptions, record: RunRecord | None) -> Loader:
    """The loader of the training nodes.

    Args:
      record: of the run that goes on, whose shapes are used again.
    """
    config, graph = options.sampler(), dataset.load_graph()
    nodes, features = training_nodes(dataset), features_of(dataset)
    shapes = None
    if record is not None:
        recorded, old_shapes = from_state(dict(record.identity.sampler))
        shapes = old_shapes if recorded == config else None  # else the run will be refused, and say why
    return MemoryLoader(graph, features, nodes, config, shapes or pilot(graph, nodes, config))


def graph_of(dataset: Dataset) -> Graph:
    """What inference over all nodes reads."""
    return dataset.graph


def features_of(dataset: Dataset) -> FeatureStore:
    """Raises ValueError where there are none."""
    if dataset.features is None:
        raise ValueError(f"{dataset.path} has no features: ingest it again with --features")
    return dataset.features


def training_nodes(dataset: Dataset) -> np.ndarray:
    """Raises ValueError where there are none."""
    if dataset.train is None or len(dataset.train) == 0:
        raise ValueError(f"{dataset.path} has no training nodes: ingest it again with --train")
    return dataset.train
