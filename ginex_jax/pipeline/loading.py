"""What training asks of a loader: mini-batches with their feature rows, by step, from any step on."""

import dataclasses
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from ginex_jax.batch import BatchShape, MiniBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchReport:
    """Where the feature rows of one mini-batch came from."""

    rows: int  # distinct nodes: rows asked for
    misses: int  # rows read from the store; the others were in the cache


def _nothing() -> None:
    """Releases what nobody uses again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedBatch:
    """A mini-batch and its feature rows, ready for one training step.

    Attributes:
      step: counts the mini-batches of the run, `epoch * steps_per_epoch + index`.
      epoch: from 0.
      index: of the mini-batch within the epoch.
      batch: padded to one of the loader's shapes.
      features: the rows of `batch.node_ids` in the store's dtype, zeros in the padding. Valid until `release` is called.
      report: where the rows came from.
      release: to be called once the step that uses the features has finished, not merely been dispatched: JAX may read a host array
        without copying it. The loader may write over the features afterwards. Batches are released in their order.
    """

    step: int
    epoch: int
    index: int
    batch: MiniBatch
    features: Shaped[np.ndarray, "padded width"]
    report: BatchReport
    release: Callable[[], None] = _nothing


@runtime_checkable
class BatchStream(Protocol):
    """The loaded batches of consecutive steps. Closing it, or leaving its context, ends whatever works for it."""

    def __iter__(self) -> Iterator[LoadedBatch]: ...

    def __next__(self) -> LoadedBatch: ...

    def __enter__(self) -> "BatchStream": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Loader(Protocol):
    """Loads the mini-batches of a run. All implementations yield the same bits for the same graph, features and configuration."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        """Those that mini-batches are padded to, ascending."""
        ...

    @property
    def sampler_state(self) -> dict[str, Any]:
        """What decides the mini-batches, as `ginex_jax.sampling.shapes.to_state` writes it."""
        ...

    def stream(self, first_step: int, stop_step: int) -> BatchStream:
        """The batches of the steps from `first_step` up to, not including, `stop_step`, in their order.

        Raises:
          ValueError: it is not a range of steps of at least 0.
        """
        ...


def check_steps(first_step: int, stop_step: int) -> None:
    """Raises ValueError unless 0 <= first_step <= stop_step."""
    if not 0 <= first_step <= stop_step:
        raise ValueError(f"steps should run from at least 0 and not backwards, got {first_step} to {stop_step}")
