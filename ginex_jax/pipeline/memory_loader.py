"""The loader without threads, cache or reuse of memory: the twin that the pipeline is compared with."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Int64

from ginex_jax.batch import BatchShape, padded
from ginex_jax.features import FeatureStore
from ginex_jax.graph import Graph
from ginex_jax.pipeline.loading import BatchReport, LoadedBatch, check_steps
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.samplers import BatchSampler, NodeSampler
from ginex_jax.sampling.source import shape_for


class MemoryLoader:
    """Samples and reads one mini-batch when it is asked for. Reads every row of every batch: right, and slow from a disk."""

    def __init__(
        self,
        graph: Graph,
        features: FeatureStore,
        nodes: Int64[np.ndarray, " nodes"],
        config: SamplerConfig,
        shapes: Sequence[BatchShape],
    ) -> None:
        """Takes what `NodeSampler` takes, and the features.

        Raises:
          ValueError: as `NodeSampler`; or the features are not one row for each node.
        """
        self._read_by(NodeSampler(graph, nodes, config, shapes=shapes), features)

    @classmethod
    def of(cls, sampler: BatchSampler, features: FeatureStore) -> "MemoryLoader":
        """The mini-batches of any sampler.

        Raises:
          ValueError: the features are not one row for each node.
        """
        loader = cls.__new__(cls)
        loader._read_by(sampler, features)
        return loader

    def _read_by(self, sampler: BatchSampler, features: FeatureStore) -> None:
        if features.shape[0] != sampler.num_nodes:
            raise ValueError(f"features should be one row for each of {sampler.num_nodes} nodes, got {features.shape}")
        self._sampler, self._features = sampler, features

    @property
    def steps_per_epoch(self) -> int:
        return self._sampler.steps_per_epoch

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        return self._sampler.shapes

    @property
    def sampler_state(self) -> dict[str, Any]:
        return self._sampler.state

    def stream(self, first_step: int, stop_step: int) -> "MemoryStream":
        check_steps(first_step, stop_step)
        return MemoryStream(self, first_step, stop_step)

    def load(self, step: int) -> LoadedBatch:
        """The batch of one step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        batch = self._sampler.sampled(epoch, index)
        batch = padded(batch, shape_for(batch.shape, self.shapes))
        features = np.empty((batch.shape.level_sizes[-1], self._features.shape[1]), self._features.dtype)
        self._features.read_rows(batch.node_ids, out=features)
        num_rows = len(batch.node_ids)
        features[num_rows:] = 0
        report = BatchReport(rows=num_rows, misses=num_rows)
        return LoadedBatch(step=step, epoch=epoch, index=index, batch=batch, features=features, report=report)


class MemoryStream:
    """Implements `BatchStream`."""

    def __init__(self, loader: MemoryLoader, first_step: int, stop_step: int) -> None:
        self._loader = loader
        self._steps = iter(range(first_step, stop_step))

    def __iter__(self) -> Iterator[LoadedBatch]:
        return self

    def __next__(self) -> LoadedBatch:
        return self._loader.load(next(self._steps))

    def __enter__(self) -> "MemoryStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._steps = iter(())
