"""From host to device in a thread of its own, while the step before is computed."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from ginex_jax.pipeline.line import Channel, Line, StageTimes, StoppedError
from ginex_jax.pipeline.loading import BatchReport
from ginex_jax.pipeline.report import StageReport, StreamReport

Inputs = TypeVar("Inputs")


@runtime_checkable
class _Source(Protocol):
    """A `BatchStream`, or a stream of other things that have a step, an epoch, a report and a `release`."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Transferred(Generic[Inputs]):
    """What is left of a `LoadedBatch` when its memory has been given back."""

    step: int
    epoch: int
    report: BatchReport
    inputs: Inputs


class TransferringStream(Generic[Inputs]):
    """What `transfer` makes of the batches of a stream, one batch ahead; each batch is released as soon as it is transferred.

    An iterator, and a context manager that closes the stream too.
    """

    def __init__(self, stream: _Source, transfer: Callable[..., Inputs], *, ahead: bool = True) -> None:
        """Starts the thread.

        Args:
          stream: closed with this one.
          transfer: makes something of a batch, and keeps nothing of the batch's memory.
          ahead: whether to do so in a thread; else it is done when asked for. Processes that talk to each other in `transfer` must not.
        """
        self._stream, self._transfer, self._ahead = stream, transfer, ahead
        self._line = Line()
        self._times = self._line.times.setdefault("transfer", StageTimes())
        self._steps = StageTimes()
        self._started = time.perf_counter()
        self._output: Channel[Transferred[Inputs]] = self._line.channel(1)
        if ahead:
            self._line.stage("transfer", self._work, self._output)

    @property
    def report(self) -> StreamReport | None:
        """The stream's own, with a stage for transfers if they are ahead; None of a stream that has none."""
        report = getattr(self._stream, "report", None)
        if not isinstance(report, StreamReport) or not self._ahead:
            return report if isinstance(report, StreamReport) else None
        seconds, waiting = time.perf_counter() - self._started, report.stages["step"].starved
        blocked, starved, items = self._times.blocked, self._steps.starved, self._times.items
        transfer = StageReport(items, max(0.0, seconds - waiting - blocked), waiting, blocked)
        step = StageReport(self._steps.items, max(0.0, seconds - starved), starved, 0.0)
        before = {name: stage for name, stage in report.stages.items() if name != "step"}
        return report._replace(seconds=seconds, stages={**before, "transfer": transfer, "step": step})

    def __enter__(self) -> "TransferringStream[Inputs]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Transferred[Inputs]]:
        return self

    def __next__(self) -> Transferred[Inputs]:
        """The next one; raises what the stream or the transfer failed with."""
        if not self._ahead:
            return self._transferred(next(self._stream))
        try:
            batch = self._output.take(self._steps)
        except EOFError:
            raise StopIteration from None
        except StoppedError:
            raise ValueError("the stream is closed") from None
        self._steps.items += 1
        return batch

    def close(self) -> None:
        """Closes the stream, and ends the thread."""
        self._line.stop()
        self._stream.close()
        self._line.close()

    def _work(self, times: StageTimes) -> None:
        for loaded in self._stream:
            self._output.put(self._transferred(loaded), times)

    def _transferred(self, loaded: Any) -> Transferred[Inputs]:
        result = Transferred(loaded.step, loaded.epoch, loaded.report, self._transfer(loaded))
        loaded.release()
        return result
