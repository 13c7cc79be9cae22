"""Belady's algorithm on a window of the trace that moves on while the plan is carried out. Importing this module imports numba."""

import itertools
import operator
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from ginex_jax.belady.next_use_queue import (
    NOTHING,
    make_room_to_move,
    move_slot,
    new_queue,
    rebuild,
    take_step,
    unused_bucket,
)
from ginex_jax.belady.planning import MAX_BATCHES, checked_sizes
from ginex_jax.belady.steps import CacheStep
from ginex_jax.compilation import PREFETCHED, compiled_bare, prefetch
from ginex_jax.features import require_within

_LEAST_RING = 1 << 12
_MAX_RING = 2**31 - 1
_MOST_USES = 65535


class _Seen(NamedTuple):
    """A batch that was looked at: its ids, and where the ring has the bucket of each one's next use."""

    ids: Integer[np.ndarray, " nodes"]
    start: int


class RollingPlanner:
    """Belady's algorithm with a view of `window` batches, which moves on by `commit` batches at a time; a `CachePolicy`.

    Every step is the one that `plan_cache` would give for the batches in view and the cache's contents. Rows that are not used again
    in view are kept in the order of how often they were used so far, counted up to 65,535 and compared to one part in 8.

    Time O(1) an access, however small `commit` is. Memory 10 bytes a node, 21 a slot and 4 an access in view, at most twice that.
    """

    def __init__(self, *, capacity: int, num_nodes: int, window: int, commit: int) -> None:
        """An empty cache.

        Raises:
          ValueError: a size is out of range; `commit` should be in [1, window].
        """
        self.capacity, num_nodes = checked_sizes(capacity, num_nodes)
        self._window, self._commit = operator.index(window), operator.index(commit)
        if not 1 <= self._commit <= self._window <= MAX_BATCHES:
            raise ValueError(
                f"window and commit should be 1 <= commit <= window <= {MAX_BATCHES}, got {window}, {commit}"
            )
        self._num_nodes = num_nodes
        slot_of, self._last_place = (np.full(num_nodes, NOTHING, np.int32) for _ in range(2))
        self._cache = new_queue(slot_of, min(self.capacity, num_nodes), self._window, movable=True)
        self._uses = np.zeros(num_nodes, np.uint16)
        self._ring = np.empty(_LEAST_RING, np.int32)
        self._seen: deque[_Seen] = deque()
        self._next_batch = 0  # the number of the next batch to be looked at

    @property
    def lookahead(self) -> int:
        return self._window

    @property
    def nbytes(self) -> int:
        arrays = self._cache, self._last_place, self._uses, self._ring
        return sum(array.nbytes for array in arrays)

    def steps(self, trace: Iterable[Integer[np.ndarray, " _"]]) -> Iterator[CacheStep]:
        """As `CachePolicy.steps`; ValueError for an id twice in a batch, too. Batches in view should not be changed."""
        batches = iter(trace)
        try:
            while True:
                for ids in itertools.islice(batches, self._window - len(self._seen)):
                    self._look_at(ids)
                if not self._seen:
                    return
                for _ in range(min(self._commit, len(self._seen))):
                    yield self._step()
        finally:
            self._forget_view()

    def _bucket(self, batch: int) -> int:
        return batch % (2 * self._window)

    def _look_at(self, ids: Integer[np.ndarray, " nodes"]) -> None:
        require_within(ids, self._num_nodes, "ids of a batch")
        start = self._room_for(len(ids))
        self._seen.append(_Seen(ids, start))
        bucket = self._bucket(self._next_batch)
        self._next_batch += 1
        duplicate = _look_at(self._cache, bucket, ids, start, self._ring, self._last_place, self._uses)
        if duplicate != NOTHING:
            raise ValueError(f"ids of a batch should be distinct, and {ids[duplicate]} is there twice")

    def _step(self) -> CacheStep:
        bucket = self._bucket(self._next_batch - len(self._seen))
        ids, start = self._seen.popleft()
        writes = self._ring[start : start + len(ids)].copy()
        _leave_view(ids, writes, self._last_place)
        hits = np.empty(len(ids), np.int32)
        take_step(self._cache, bucket, ids, writes, self._uses, True, hits)
        return CacheStep(hits, writes)

    def _room_for(self, count: int) -> int:
        """Where the next batch goes in the ring, which grows if need be."""
        first = self._seen[0].start if self._seen else 0
        end = self._seen[-1].start + len(self._seen[-1].ids) if self._seen else 0
        if end >= first:
            if end + count <= len(self._ring):
                return end
            if count < first:
                return 0
        elif end + count < first:
            return end
        return self._grow(count)

    def _grow(self, count: int) -> int:
        """Moves what is in view to the start of a larger ring; returns the place after it."""
        in_view = sum(len(seen.ids) for seen in self._seen)
        size = 2 * (in_view + count)
        if size > _MAX_RING:
            raise ValueError(f"{in_view + count} accesses in view are too many: make the window smaller")
        ring, end = np.empty(max(size, _LEAST_RING), np.int32), 0
        for i, (ids, start) in enumerate(self._seen):
            place = slice(end, end + len(ids))
            ring[place] = self._ring[start : start + len(ids)]
            _move(ids, ring[place], end, self._last_place)
            self._seen[i] = _Seen(ids, end)
            end = place.stop
        self._ring = ring
        return end

    def _forget_view(self) -> None:
        """Drops what was looked at and not yet carried out; the contents stay."""
        if not self._seen:
            return
        for ids, _ in self._seen:
            self._last_place[ids] = NOTHING
        self._next_batch -= len(self._seen)
        self._seen.clear()
        _call_all_unused(self._cache, self._uses)
        rebuild(self._cache)


@compiled_bare
def _look_at(cache, bucket, ids, start, ring, last_place, uses):
    """Makes a batch the next use of what was last used before it. Returns the place of an id that is there twice, or -1.

    `last_place` is where the ring has a node's last access in view, or -1; a node that is cached and has none is in a list of its grade.
    """
    duplicate = NOTHING
    make_room_to_move(cache, len(ids))
    for i in range(len(ids)):
        if i + PREFETCHED < len(ids):
            prefetch(last_place, np.intp(ids[i + PREFETCHED]))
            prefetch(cache.slot_of, np.intp(ids[i + PREFETCHED]))
            prefetch(uses, np.intp(ids[i + PREFETCHED]))
        node = ids[i]
        place = last_place[node]
        if place == NOTHING:
            slot = cache.slot_of[node]
            if slot != NOTHING:
                move_slot(cache, bucket, slot)
        elif start <= place < start + i:
            duplicate = i
        else:
            ring[place] = bucket
        ring[start + i] = NOTHING
        last_place[node] = start + i
        if uses[node] < _MOST_USES:
            uses[node] += 1
    return duplicate


@compiled_bare
def _leave_view(ids, next_uses, last_place):
    for i in range(len(ids)):
        if next_uses[i] == NOTHING:
            last_place[ids[i]] = NOTHING


@compiled_bare
def _move(ids, next_uses, start, last_place):
    for i in range(len(ids)):
        if next_uses[i] == NOTHING:
            last_place[ids[i]] = start + i


@compiled_bare
def _call_all_unused(cache, uses):
    for slot in range(len(cache.ids)):
        if cache.ids[slot] != NOTHING:
            cache.bucket_of[slot] = unused_bucket(cache, uses[cache.ids[slot]])
