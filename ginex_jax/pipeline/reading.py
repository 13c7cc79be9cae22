"""The stages between a plan and a batch in memory: reads several batches ahead, then puts together what was read and what was kept."""

import collections
import concurrent.futures
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from ginex_jax.belady.steps import CacheStep
from ginex_jax.features import FeatureStore
from ginex_jax.gather.feature_cache import FeatureCache
from ginex_jax.gather.row_ring import Region, RowRing
from ginex_jax.pipeline.line import Channel, Line, StageTimes
from ginex_jax.pipeline.packed_batch import PackedBatch

_GROUP_ROWS = 1 << 18  # rows read in one go: enough to sort, few enough to wait for
READS_AT_ONCE = 2  # groups: while one ends, with ever fewer requests waiting, the next begins


class Planned(NamedTuple):
    """A batch and what the plan says about its rows."""

    number: int  # of the step, over all epochs
    batch: PackedBatch
    padded_rows: int
    step: CacheStep
    planned_misses: int


class Reading(NamedTuple):
    """A batch whose missing rows are being read into its region."""

    planned: Planned
    region: Region
    done: "concurrent.futures.Future[None]"


class FeatureReader:
    """Reads what the plan calls misses into regions of the ring, sorted over several batches. Work of one stage."""

    def __init__(self, features: FeatureStore, ring: RowRing, line: Line) -> None:
        self._features, self._ring, self._line = features, ring, line
        self.waits_for_room = False

    def run(self, planned: "Channel[Planned]", reading: "Channel[Reading]", times: StageTimes) -> None:
        under_way: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="ginex-read-group") as pool:
            for first in planned.items(times):
                group = [(first, self._region(first, times))]
                rows = first.planned_misses
                while rows < _GROUP_ROWS and (another := self._ready(planned)) is not None:
                    group.append(another)
                    rows += another[0].planned_misses
                if len(under_way) == READS_AT_ONCE:
                    concurrent.futures.wait([under_way.popleft()])
                future = pool.submit(self._read, group)
                under_way.append(future)
                for one, region in group:
                    reading.put(Reading(one, region, future), times)

    def _read(self, group: list[tuple[Planned, Region]]) -> None:
        ids, places = [], []
        for planned, region in group:
            missing = np.flatnonzero(planned.step.hit_slots < 0)
            if len(missing) != planned.planned_misses:
                raise AssertionError(
                    f"step {planned.number} planned {planned.planned_misses} reads, and makes {len(missing)}"
                )
            ids.append(planned.batch.node_ids[missing].astype(np.int64))
            places.append(missing + region.start)
        self._features.read_rows(np.concatenate(ids), out=self._ring.rows, slots=np.concatenate(places))

    def _region(self, planned: Planned, times: StageTimes) -> Region:
        found: list[Region] = []

        def take() -> bool:
            if (region := self._ring.take(planned.padded_rows)) is not None:
                found.append(region)
            self.waits_for_room = not found
            return bool(found)

        times.blocked += self._line.wait(take)
        return found[0]

    def _ready(self, planned: "Channel[Planned]") -> tuple[Planned, Region] | None:
        """The next batch, if it is planned and there is room for it now."""
        with self._line.notify():
            following = planned.peek()
            region = None if following is None else self._ring.take(following.padded_rows)
        if following is None or region is None:
            return None
        taken = planned.take_ready()  # this thread is the only one that takes
        assert taken is following
        return following, region


def assemble(one: Reading, cache: FeatureCache, rows: Shaped[np.ndarray, "padded_rows width"]) -> None:
    """Waits for the reads; then the hits are fetched, and what is to be kept is kept. In the order of the plan.

    Args:
      rows: of the batch's region.
    """
    one.done.result()
    num_nodes = len(one.planned.batch.node_ids)
    cache.apply(one.planned.step, rows[:num_nodes])
    rows[num_nodes:] = 0  # finite, since even a masked row's gradient multiplies it
