"""The shares of a mini-batch that this process computes, side by side."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from ginex_jax.batch import BatchShape
from ginex_jax.pipeline.loading import BatchReport, BatchStream, LoadedBatch, Loader


@dataclasses.dataclass(frozen=True, kw_only=True)
class DividedBatch:
    """What one step computes in this process.

    Attributes:
      step, epoch, index: as in `LoadedBatch`.
      shares: one for each device of this process, each padded on its own.
    """

    step: int
    epoch: int
    index: int
    shares: tuple[LoadedBatch, ...]

    @property
    def report(self) -> BatchReport:
        """Of all shares here together: a row that two of them read counts twice."""
        reports = [share.report for share in self.shares]
        return BatchReport(rows=sum(report.rows for report in reports), misses=sum(report.misses for report in reports))

    def release(self) -> None:
        """Releases all shares."""
        for share in self.shares:
            share.release()


class DividedLoader:
    """Several loaders, one for each share that this process computes: as a `Loader`, but for what a batch is.

    Every share has a cache, a plan and threads of its own, if its loader has; memory is to be divided among them.
    """

    def __init__(self, loaders: Sequence[Loader]) -> None:
        """Takes loaders of shares of the same batches, in the order of their devices.

        Raises:
          ValueError: there are none, or they are of other batches.
        """
        if not loaders:
            raise ValueError("there should be at least one loader")
        first = loaders[0]
        if any(loader.sampler_state != first.sampler_state for loader in loaders):
            raise ValueError("loaders should sample shares of the same mini-batches, with the same shapes")
        self._loaders = tuple(loaders)

    @property
    def num_shares(self) -> int:
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

    def stream(self, first_step: int, stop_step: int) -> "DividedStream":
        """As `Loader.stream`."""
        with contextlib.ExitStack() as opened:
            streams = [opened.enter_context(loader.stream(first_step, stop_step)) for loader in self._loaders]
            return DividedStream(streams, opened.pop_all())


class DividedStream:
    """An iterator of `DividedBatch`, and a context manager that ends what works for it."""

    def __init__(self, streams: Sequence[BatchStream], opened: contextlib.ExitStack) -> None:
        self._batches = zip(*streams, strict=True)
        self._opened = opened

    def __iter__(self) -> Iterator[DividedBatch]:
        return self

    def __next__(self) -> DividedBatch:
        shares = next(self._batches)
        return DividedBatch(step=shares[0].step, epoch=shares[0].epoch, index=shares[0].index, shares=shares)

    def __enter__(self) -> "DividedStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._batches = iter(())
        self._opened.close()
