"""The mini-batches of an epoch by number."""

import operator
from collections.abc import Iterator, Sequence
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int64

from ginex_jax.batch import BatchShape, MiniBatch, padded
from ginex_jax.graph import Graph
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.samplers import NodeSampler


class BatchSource:
    """`len(source)` padded mini-batches, each made when asked for, in any order and by any number of threads or processes.

    A source for `grain.MapDataset.source` and `grain.DataLoader`. Every epoch has an order of its own; the last mini-batch holds what is
    left. Each is padded to the first of `shapes` that holds it.
    """

    def __init__(
        self,
        graph: Graph,
        nodes: Int64[np.ndarray, " nodes"],
        config: SamplerConfig,
        epoch: int,
        shapes: Sequence[BatchShape],
    ) -> None:
        """Takes seed nodes and the shapes of `pilot`; ValueError where there is nothing to sample."""
        if not 0 <= epoch < 2**63:
            raise ValueError(f"epoch should be in [0, 2**63), got {epoch}")
        self._sampler, self._epoch = NodeSampler(graph, nodes, config, shapes=shapes), epoch

    def __len__(self) -> int:
        return self._sampler.steps_per_epoch

    def __getitem__(self, index: SupportsIndex) -> MiniBatch:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        batch = self._sampler.sampled(self._epoch, index % len(self))
        return padded(batch, shape_for(batch.shape, self._sampler.shapes))

    def __iter__(self) -> Iterator[MiniBatch]:
        return (self[index] for index in range(len(self)))


def shape_for(needed: BatchShape, shapes: Sequence[BatchShape]) -> BatchShape:
    """The first of `shapes` that holds a batch of the shape `needed`; ValueError where none does."""
    for shape in shapes:
        if shape.holds(needed):
            return shape
    raise ValueError(f"a batch needs {needed}, and none of the shapes holds it: run pilot on this graph")
