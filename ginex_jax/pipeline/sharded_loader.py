"""The shards of a mini-batch that this process computes, side by side."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from ginex_jax.batch import BatchShape
from ginex_jax.pipeline.loading import BatchReport, BatchStream, LoadedBatch, Loader


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardedBatch:
    """What one step computes in this process.

    Attributes:
      step, epoch, index: as in `LoadedBatch`.
      shards: one for each device of this process, each padded on its own.
    """

    step: int
    epoch: int
    index: int
    shards: tuple[LoadedBatch, ...]

    @property
    def report(self) -> BatchReport:
        """Of all shards here together: a row that two of them read counts twice."""
        reports = [shard.report for shard in self.shards]
        return BatchReport(rows=sum(report.rows for report in reports), misses=sum(report.misses for report in reports))

    def release(self) -> None:
        """Releases all shards."""
        for shard in self.shards:
            shard.release()


class ShardedLoader:
    """Several loaders, one for each shard that this process computes: as a `Loader`, but for what a batch is.

    Every shard has a cache, a plan and threads of its own, if its loader has; memory is to be divided among them.
    """

    def __init__(self, loaders: Sequence[Loader]) -> None:
        """Takes loaders of shards of the same batches, in the order of their devices.

        Raises:
          ValueError: there are none, or they are of other batches.
        """
        if not loaders:
            raise ValueError("there should be at least one loader")
        first = loaders[0]
        if any(loader.sampler_state != first.sampler_state for loader in loaders):
            raise ValueError("loaders should sample shards of the same mini-batches, with the same shapes")
        self._loaders = tuple(loaders)

    @property
    def num_shards(self) -> int:
        """Those here."""
        return len(self._loaders)

    @property
    def steps_per_epoch(self) -> int:
        return self._loaders[0].steps_per_epoch

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        return self._loaders[0].shapes

    @property
    def sampler_state(self) -> dict[str, Any]:
        return self._loaders[0].sampler_state

    def stream(self, first_step: int, stop_step: int) -> "ShardedStream":
        """As `Loader.stream`."""
        with contextlib.ExitStack() as opened:
            streams = [opened.enter_context(loader.stream(first_step, stop_step)) for loader in self._loaders]
            return ShardedStream(streams, opened.pop_all())


class ShardedStream:
    """An iterator of `ShardedBatch`, and a context manager that ends what works for it."""

    def __init__(self, streams: Sequence[BatchStream], opened: contextlib.ExitStack) -> None:
        self._batches = zip(*streams, strict=True)
        self._opened = opened

    def __iter__(self) -> Iterator[ShardedBatch]:
        return self

    def __next__(self) -> ShardedBatch:
        shards = next(self._batches)
        return ShardedBatch(step=shards[0].step, epoch=shards[0].epoch, index=shards[0].index, shards=shards)

    def __enter__(self) -> "ShardedStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._batches = iter(())
        self._opened.close()
