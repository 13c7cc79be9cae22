"""What a cache does in every batch: plans, and the contract of those that make them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64, Integer


class CacheStep(NamedTuple):
    """One batch, aligned with its node ids. Hits are gathered before anything is written.

    Attributes:
      hit_slots: the slot that holds the row; -1 is a miss, to be read from the store.
      write_slots: the slot that the row, just read, is kept in; -1 where it is not kept. No slot twice, and none for a hit.
    """

    hit_slots: Int32[np.ndarray, " nodes"]
    write_slots: Int32[np.ndarray, " nodes"]

    @property
    def num_misses(self) -> int:
        return int(np.count_nonzero(self.hit_slots < 0))


class CachePlan(NamedTuple):
    """What a cache does in a whole trace.

    Attributes:
      initial_ids: `initial_ids[j]` occupies slot j before the first batch; the other slots are empty.
      misses: rows to be read in each batch.
      steps: one a batch.
    """

    initial_ids: Int64[np.ndarray, " initial"]
    misses: Int64[np.ndarray, " batches"]
    steps: tuple[CacheStep, ...]


@runtime_checkable
class CachePolicy(Protocol):
    """What decides which rows a cache keeps. It starts empty, and its contents carry over from one call of `steps` to the next."""

    @property
    def capacity(self) -> int:
        """Slots."""
        ...

    @property
    def lookahead(self) -> int:
        """How many batches `steps` takes from the trace before it yields their steps, at most."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory of its tables."""
        ...

    def steps(self, trace: Iterable[Integer[np.ndarray, " nodes"]]) -> Iterator[CacheStep]:
        """One step a batch, lazily. A step that was yielded has happened; of what was only looked at, nothing has.

        Only one iterator may be in use at a time; closing it drops what it has taken from the trace and not yet yielded.

        Args:
          trace: the distinct node ids of every batch, in [0, nodes).

        Raises:
          ValueError: an id is out of range.
        """
        ...
