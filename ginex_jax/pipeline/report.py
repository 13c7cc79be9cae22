"""What a stream of batches did, and which stage held it up."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ginex_jax.features import ReadStats


class StageReport(NamedTuple):
    """Seconds of one stage: at work, waiting for input, waiting for room behind it."""

    items: int
    busy: float
    starved: float
    blocked: float


class StreamReport(NamedTuple):
    """Counts since the stream began.

    Attributes:
      rows: feature rows that batches asked for.
      misses: those that were not in the cache and were read.
      read_bytes: asked of the disk for feature rows, padding included, by all who use the loader's store.
      requests: the reads that took.
      seconds: since the stream began.
      stages: by name, in the order of the pipeline; "step" is whoever takes the batches.
    """

    rows: int
    misses: int
    read_bytes: int
    requests: int
    seconds: float
    stages: Mapping[str, StageReport]

    @property
    def hit_rate(self) -> float:
        return 1 - self.misses / self.rows if self.rows else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            **self._asdict(),
            "hit_rate": self.hit_rate,
            "stages": {name: stage._asdict() for name, stage in self.stages.items()},
        }


def difference(after: ReadStats, before: ReadStats) -> ReadStats:
    """What happened in between."""
    return ReadStats(
        after.rows - before.rows,
        after.bytes - before.bytes,
        after.requests - before.requests,
        after.seconds - before.seconds,
    )
