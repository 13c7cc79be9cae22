"""How fast a loader delivers once it runs evenly: part of a stream, timed."""

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

from ginex_jax.pipeline.disk_loader import DiskLoader
from ginex_jax.pipeline.loading import LoadedBatch
from ginex_jax.pipeline.report import StageReport, StreamReport

_ON_THEIR_WAY = 24  # batches between the stages, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What some consecutive batches took, after others that were not counted.

    Attributes:
      batches: those that were counted.
      seconds: from the last batch before them to the last of them.
      rows: feature rows that they asked for.
      misses: those that were read.
      read_bytes: asked of the disk in that time, padding included; reads run ahead of the batches.
      requests: the same.
      stages: busy, starved and blocked seconds in that time.
      seconds_of: each batch.
      misses_of: each batch.
    """

    batches: int
    seconds: float
    rows: int
    misses: int
    read_bytes: int
    requests: int
    stages: dict[str, StageReport]
    seconds_of: list[float]
    misses_of: list[int]

    @property
    def hit_rate(self) -> float:
        return 1 - self.misses / self.rows if self.rows else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "hit_rate": self.hit_rate,
            "rows_per_second": self.rows / self.seconds,
            "misses_per_second": self.misses / self.seconds,
            "stages": {name: stage._asdict() for name, stage in self.stages.items()},
        }


def run_trial(
    loader: DiskLoader,
    *,
    warm_up: int,
    batches: int,
    step: Callable[[LoadedBatch], object] = lambda loaded: loaded.release(),
    max_seconds: float = float("inf"),
    progress: Callable[[int], None] = lambda done: None,
) -> Trial:
    """Takes `warm_up` batches from the first on, then counts the next ones.

    The stream goes on behind them for as far as the policy looks ahead and the stages run ahead, so that sampling and planning cost what
    they cost in the midst of a run. It is left before its end then, which empties the cache.

    Args:
      loader: whose first batches these are.
      warm_up: batches before the clock starts.
      batches: at least 1.
      step: what to do with a batch; releases it. Nothing else by default.
      max_seconds: stop counting after the batch in which so much time is over.
      progress: told of every batch.

    Raises:
      ValueError: no batches.
      Exception: what the pipeline or the step failed with.
    """
    if warm_up < 0 or batches < 1:
        raise ValueError(f"a trial is of at least 1 batch, after at least 0 others, got {batches} and {warm_up}")
    seconds_of, misses_of, rows = [], [], 0
    with loader.stream(0, warm_up + batches + loader.policy.lookahead + _ON_THEIR_WAY) as stream:
        for done, loaded in enumerate(itertools.islice(stream, warm_up), start=1):
            step(loaded)
            progress(done)
        before, start = stream.report, time.perf_counter()
        last = start
        for loaded in itertools.islice(stream, batches):
            rows += loaded.report.rows
            misses_of.append(loaded.report.misses)
            step(loaded)
            now = time.perf_counter()
            seconds_of.append(now - last)
            last = now
            progress(warm_up + len(seconds_of))
            if now - start > max_seconds:
                break
        after, seconds = stream.report, time.perf_counter() - start
    return Trial(
        batches=len(seconds_of),
        seconds=seconds,
        rows=rows,
        misses=sum(misses_of),
        read_bytes=after.read_bytes - before.read_bytes,
        requests=after.requests - before.requests,
        stages=_stages(before, after, seconds),
        seconds_of=seconds_of,
        misses_of=misses_of,
    )


def _stages(before: StreamReport, after: StreamReport, seconds: float) -> dict[str, StageReport]:
    """Of the time in between. No stage has ended yet: what it did not wait, it worked. A wait counts when it ends, and at most whole."""
    stages = {}
    for name, stage in after.stages.items():
        earlier = before.stages.get(name, StageReport(0, 0.0, 0.0, 0.0))
        starved, blocked = stage.starved - earlier.starved, stage.blocked - earlier.blocked
        part = min(1.0, seconds / max(starved + blocked, 1e-9))  # of waits that began before
        starved, blocked = part * starved, part * blocked
        stages[name] = StageReport(stage.items - earlier.items, max(0.0, seconds - starved - blocked), starved, blocked)
    return stages
