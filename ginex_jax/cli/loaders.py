"""Which loader feeds the training."""

from collections.abc import Callable, Sequence

import numpy as np

from ginex_jax.batch import BatchShape
from ginex_jax.checkpoint.record import RunRecord
from ginex_jax.cli.run_options import RunOptions
from ginex_jax.features import FeatureStore
from ginex_jax.graph import Graph
from ginex_jax.pipeline.opening import OpenedLoader, open_loader
from ginex_jax.sampling.edge_set import EdgeSet
from ginex_jax.sampling.links import LinkConfig
from ginex_jax.sampling.samplers import BatchSampler, LinkSampler, NodeSampler
from ginex_jax.sampling.shapes import from_state
from ginex_jax.store.dataset import Dataset

_EVALUATION_SHARE = 0.125  # of the memory that nothing needs


def open_training_loader(
    dataset: Dataset, options: RunOptions, record: RunRecord | None, reserved_bytes: Callable[[BatchSampler], int]
) -> OpenedLoader:
    """The loader of the training nodes, within the memory of the options.

    Args:
      record: of the run that goes on, whose shapes are used again.
      reserved_bytes: memory for others, once the sampler is known.
    """
    config, nodes = options.sampler(), training_nodes(dataset)
    shapes = None
    if record is not None:
        recorded, old_shapes = from_state(dict(record.identity.sampler))
        shapes = old_shapes if recorded == config else None  # else the run will be refused, and say why

    def sampler_of(graph: Graph, shapes: Sequence[BatchShape] | None) -> NodeSampler:
        return NodeSampler(graph, nodes, config, shapes=shapes)

    steps_per_epoch = -(-len(nodes) // config.batch_size)
    return open_loader(
        dataset,
        sampler_of,
        memory_bytes=options.memory_bytes,
        reserved_bytes=lambda sampler: nodes.nbytes + reserved_bytes(sampler),
        spare_share=_EVALUATION_SHARE,
        policy=options.policy,  # pyright: ignore[reportArgumentType]  # checked by the options
        steps=options.epochs * steps_per_epoch,
        shapes=shapes,
    )


def open_link_loader(
    dataset: Dataset,
    options: RunOptions,
    record: RunRecord | None,
    reserved_bytes: Callable[[BatchSampler], int],
    *,
    edges: np.ndarray,
    held_out: EdgeSet,
    config: LinkConfig,
) -> OpenedLoader:
    """The loader of these target edges; as `open_training_loader`."""
    shapes = None
    if record is not None:
        recorded, old_shapes = from_state(dict(record.identity.sampler))
        shapes = old_shapes if recorded == config.of_seeds else None  # else the run will be refused, and say why

    def sampler_of(graph: Graph, shapes: Sequence[BatchShape] | None) -> LinkSampler:
        return LinkSampler(graph, edges, config, held_out=held_out, shapes=shapes)

    return open_loader(
        dataset,
        sampler_of,
        memory_bytes=options.memory_bytes,
        reserved_bytes=reserved_bytes,
        spare_share=_EVALUATION_SHARE,
        policy=options.policy,  # pyright: ignore[reportArgumentType]  # checked by the options
        steps=options.epochs * -(-len(edges) // config.sampling.batch_size),
        shapes=shapes,
    )


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
