"""Policies that do not look ahead: what Belady's is compared with. Importing this module imports numba."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Integer

from ginex_jax.belady.planning import checked_sizes
from ginex_jax.belady.steps import CacheStep
from ginex_jax.compilation import compiled_bare
from ginex_jax.features import require_within

_NEWEST, _OLDEST, _SIZE = range(3)  # entries of `_ends`


class LruPolicy:
    """The row that was used longest ago goes; ids are used one after another in the order of the batch, and every one read is kept.

    A `CachePolicy`. Where a row goes in the same batch in which it was read, it is not written. Ids twice in a batch are not noticed.
    4 bytes a node and 16 a slot.
    """

    lookahead = 0

    def __init__(self, *, capacity: int, num_nodes: int) -> None:
        """An empty cache; ValueError for sizes that are out of range."""
        self.capacity, num_nodes = checked_sizes(capacity, num_nodes)
        num_slots = min(self.capacity, num_nodes)
        self._slot_of = np.full(num_nodes, -1, np.int32)
        # Of every slot: its node, the next older one, the next newer one, and its place in the current batch if it was written there.
        self._slots = np.full((4, num_slots), -1, np.int32)
        self._ends = np.array([-1, -1, 0], np.int64)

    @property
    def nbytes(self) -> int:
        return self._slot_of.nbytes + self._slots.nbytes

    def steps(self, trace: Iterable[Integer[np.ndarray, " _"]]) -> Iterator[CacheStep]:
        """As `CachePolicy.steps`."""
        for ids in trace:
            step = _new_step(ids, len(self._slot_of))
            if self._slots.size:
                _use_recent(ids, self._slot_of, *self._slots, self._ends, *step)
            yield step


class StaticPolicy:
    """A fixed set of rows is kept, each from the first time on that it is read.

    A `CachePolicy`. 4 bytes a node and one a slot.
    """

    lookahead = 0

    def __init__(self, hot_ids: Integer[np.ndarray, " hot"], *, num_nodes: int) -> None:
        """Takes the distinct ids of the set; ValueError if they are not, or out of range."""
        self.capacity, num_nodes = checked_sizes(len(hot_ids), num_nodes)
        require_within(hot_ids, num_nodes, "hot_ids")
        self._slot_of = np.full(num_nodes, -1, np.int32)
        self._slot_of[hot_ids] = np.arange(self.capacity, dtype=np.int32)
        if np.count_nonzero(self._slot_of >= 0) != self.capacity:
            raise ValueError("hot_ids should be distinct")
        self._filled = np.zeros(self.capacity, np.bool_)

    @property
    def nbytes(self) -> int:
        return self._slot_of.nbytes + self._filled.nbytes

    def steps(self, trace: Iterable[Integer[np.ndarray, " _"]]) -> Iterator[CacheStep]:
        """As `CachePolicy.steps`."""
        for ids in trace:
            hits, writes = _new_step(ids, len(self._slot_of))
            slots = self._slot_of[ids]
            known = slots >= 0
            filled = known.copy()
            filled[known] = self._filled[slots[known]]
            hits[filled] = slots[filled]
            writes[known & ~filled] = slots[known & ~filled]
            self._filled[slots[known]] = True
            yield CacheStep(hits, writes)


class NoCache:
    """Every row is read every time. A `CachePolicy`."""

    lookahead = 0
    capacity = 0
    nbytes = 0

    def steps(self, trace: Iterable[Integer[np.ndarray, " _"]]) -> Iterator[CacheStep]:
        """As `CachePolicy.steps`; ids are not looked at."""
        for ids in trace:
            yield CacheStep(*(np.full(len(ids), -1, np.int32) for _ in range(2)))


def _new_step(ids: Integer[np.ndarray, " nodes"], num_nodes: int) -> CacheStep:
    require_within(ids, num_nodes, "ids of a batch")
    return CacheStep(*(np.full(len(ids), -1, np.int32) for _ in range(2)))


@compiled_bare
def _use_recent(ids, slot_of, nodes, older, newer, written, ends, hits, writes):
    """Slots as a list from the newest to the oldest."""
    for i in range(len(ids)):
        slot = slot_of[ids[i]]
        if slot >= 0:
            hits[i] = slot
            if slot == ends[_NEWEST]:
                continue
            before, after = newer[slot], older[slot]
            older[before] = after
            if after >= 0:
                newer[after] = before
            else:
                ends[_OLDEST] = before
        else:
            if ends[_SIZE] < len(nodes):
                slot = ends[_SIZE]
                ends[_SIZE] += 1
            else:
                slot = ends[_OLDEST]
                ends[_OLDEST] = newer[slot]
                if ends[_OLDEST] >= 0:
                    older[ends[_OLDEST]] = -1
                else:
                    ends[_NEWEST] = -1
                slot_of[nodes[slot]] = -1
                if written[slot] >= 0:
                    writes[written[slot]] = -1
            nodes[slot], slot_of[ids[i]] = ids[i], slot
            written[slot], writes[i] = i, slot
        older[slot], newer[slot] = ends[_NEWEST], -1
        if ends[_NEWEST] >= 0:
            newer[ends[_NEWEST]] = slot
        else:
            ends[_OLDEST] = slot
        ends[_NEWEST] = slot
    for i in range(len(ids)):
        if writes[i] >= 0:
            written[writes[i]] = -1
