"""The pipeline: sample | plan | read | assemble, each in threads of its own, several batches ahead of the training step."""

import collections
import concurrent.futures
import gc
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Integer

from ginex_jax.batch import BatchShape, padded
from ginex_jax.belady.steps import CachePolicy
from ginex_jax.features import FeatureStore
from ginex_jax.gather.feature_cache import FeatureCache
from ginex_jax.gather.row_ring import Region, RowRing
from ginex_jax.pipeline.line import Channel, Line, StageTimes, StoppedError
from ginex_jax.pipeline.loading import BatchReport, LoadedBatch, check_steps
from ginex_jax.pipeline.packed_batch import PackedBatch, pack, unpack
from ginex_jax.pipeline.reading import FeatureReader, Planned, Reading, assemble
from ginex_jax.pipeline.report import StageReport, StreamReport, difference
from ginex_jax.sampling.samplers import BatchSampler
from ginex_jax.sampling.source import shape_for

_PLANNED_AHEAD = 8  # batches between planner and reader
_LOADED_AHEAD = 1


class DiskLoader:
    """Mini-batches with their features, read from disk as the plan says. A `Loader`; one stream at a time.

    The same bits as those of `MemoryLoader`, whatever the policy, the memory and the number of threads. The cache keeps its contents from
    stream to stream, unless one is left before its end.
    """

    def __init__(
        self,
        sampler: BatchSampler,
        features: FeatureStore,
        *,
        make_policy: Callable[[], CachePolicy],
        ring_rows: int,
        num_samplers: int = 2,
    ) -> None:
        """Takes open stores; allocates the cache and the ring.

        Args:
          sampler: of the mini-batches; used by several threads at once.
          features: a row for each node of the graph.
          make_policy: the cache policy, empty at first.
          ring_rows: rows in memory for batches on their way; at least those of the largest batch.
          num_samplers: threads that sample.

        Raises:
          ValueError: the arguments do not fit together.
        """
        if features.shape[0] != sampler.num_nodes:
            raise ValueError(f"features should have a row for each of {sampler.num_nodes} nodes, got {features.shape}")
        if num_samplers < 1:
            raise ValueError(f"num_samplers should be at least 1, got {num_samplers}")
        self._sampler, self._make_policy = sampler, make_policy
        self.features, self.num_samplers, self.policy = features, num_samplers, make_policy()
        self.cache = FeatureCache(self.policy.capacity, features.shape[1], features.dtype)
        self.ring = RowRing(ring_rows, features.shape[1], features.dtype)
        self.line = Line()  # of the stream that is open, or was the last
        self._open: DiskStream | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self._sampler.steps_per_epoch

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        return self._sampler.shapes

    @property
    def sampler_state(self) -> dict[str, Any]:
        return self._sampler.state

    @property
    def nbytes(self) -> int:
        """Of the feature cache, the ring and the policy's tables."""
        return self.cache.nbytes + self.ring.nbytes + self.policy.nbytes

    def stream(self, first_step: int, stop_step: int) -> "DiskStream":
        """The batches of steps [first_step, stop_step), in order. Step s is batch s % steps_per_epoch of epoch s // steps_per_epoch.

        A stream that is still open is closed: two would write over each other's rows.

        Raises:
          ValueError: there are no such steps.
        """
        check_steps(first_step, stop_step)
        if self._open is not None:
            self._open.close()
        self._open = DiskStream(self, range(first_step, stop_step))
        return self._open

    def sample(self, step: int) -> PackedBatch:
        """The batch of a step, without features."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return pack(self._sampler.sampled(epoch, index))

    def start_over(self) -> None:
        """Empties cache and ring, but for batches handed out: what was planned and not carried out is forgotten."""
        self.policy = self._make_policy()
        self.ring.take_back()


class DiskStream:
    """What `DiskLoader.stream` returns: an iterator of `LoadedBatch`, and a context manager that ends its threads."""

    def __init__(self, loader: DiskLoader, steps: range) -> None:
        self._loader, self._steps = loader, steps
        self._line = loader.line = Line()
        self._reader = FeatureReader(loader.features, loader.ring, self._line)
        self._read_before = loader.features.stats
        self._rows = self._misses = 0
        self._finished = False
        self._started = time.perf_counter()
        self._loaded = self._start()
        self._times = self._line.times.setdefault("step", StageTimes())

    def __enter__(self) -> "DiskStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> "DiskStream":
        return self

    def __next__(self) -> LoadedBatch:
        """The next batch.

        Raises:
          StopIteration: that was the last.
          ValueError: the stream is closed, or batches that were handed out hold all memory.
          Exception: what a thread of the pipeline failed with, with its own traceback.
        """
        if self._is_held():
            gc.collect()  # JAX lets go of what it has looked at
        try:
            loaded, region = self._loaded.take(self._times, self._refuse_to_wait)
        except EOFError:
            self._finish()
            raise StopIteration from None
        except StoppedError:
            raise ValueError("the stream is closed") from None
        region.delivered = True
        self._rows += loaded.report.rows
        self._misses += loaded.report.misses
        self._times.items += 1
        return loaded

    def close(self) -> None:
        """Ends the threads; what is being read is read to its end. Closing twice does no harm."""
        self._line.close()
        if not self._finished:
            self._finished = True
            self._loader.start_over()

    @property
    def report(self) -> StreamReport:
        """What the stream has done so far, and how long each stage was busy, starved for input or blocked by what follows."""
        self._times.life = time.perf_counter() - self._started
        read = difference(self._loader.features.stats, self._read_before)
        stages = {
            name: StageReport(times.items, times.busy, times.starved, times.blocked)
            for name, times in self._line.times.items()
        }
        return StreamReport(self._rows, self._misses, read.bytes, read.requests, self._times.life, stages)

    def _finish(self) -> None:
        self._finished = True
        self._line.close()

    def _is_held(self) -> bool:
        return self._reader.waits_for_room and self._loader.ring.is_held

    def _refuse_to_wait(self) -> None:
        if self._is_held():
            raise ValueError("the batches handed out hold all memory: release them, or drop them and their features")

    def _start(self) -> "Channel[tuple[LoadedBatch, Region]]":
        line, num_samplers = self._line, self._loader.num_samplers
        sampled_batches: Channel[tuple[int, PackedBatch]] = line.channel(num_samplers)
        planned: Channel[Planned] = line.channel(_PLANNED_AHEAD)
        reading: Channel[Reading] = line.channel(_PLANNED_AHEAD)
        loaded: Channel[tuple[LoadedBatch, Region]] = line.channel(_LOADED_AHEAD)
        line.stage("sample", lambda times: self._sample(sampled_batches, times), sampled_batches)
        line.stage("plan", lambda times: self._plan(sampled_batches, planned, times), planned)
        line.stage("read", lambda times: self._reader.run(planned, reading, times), reading)
        line.stage("assemble", lambda times: self._assemble(reading, loaded, times), loaded)
        return loaded

    def _sample(self, output: "Channel[tuple[int, PackedBatch]]", times: StageTimes) -> None:
        pending: collections.deque[tuple[int, concurrent.futures.Future[PackedBatch]]] = collections.deque()
        num_threads = self._loader.num_samplers

        def pass_on() -> None:
            step, future = pending.popleft()
            output.put((step, future.result()), times)

        with concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="ginex-sample") as pool:
            for step in self._steps:
                pending.append((step, pool.submit(self._loader.sample, step)))
                if len(pending) > num_threads:
                    pass_on()
            while pending:
                pass_on()

    def _plan(self, batches: "Channel[tuple[int, PackedBatch]]", output: "Channel[Planned]", times: StageTimes) -> None:
        waiting: collections.deque[tuple[int, PackedBatch]] = collections.deque()

        def trace() -> Iterator[Integer[np.ndarray, " nodes"]]:
            for step, batch in batches.items(times):
                waiting.append((step, batch))
                yield batch.node_ids

        for slots in self._loader.policy.steps(trace()):
            step, batch = waiting.popleft()
            padded_rows = shape_for(batch.shape, self._loader.shapes).level_sizes[-1]
            output.put(Planned(step, batch, padded_rows, slots, slots.num_misses), times)

    def _assemble(
        self, reading: "Channel[Reading]", output: "Channel[tuple[LoadedBatch, Region]]", times: StageTimes
    ) -> None:
        for one in reading.items(times):
            start = time.perf_counter()
            concurrent.futures.wait([one.done])
            times.starved += time.perf_counter() - start
            output.put((self._assembled(one), one.region), times)

    def _assembled(self, one: Reading) -> LoadedBatch:
        loader, packed, region = self._loader, one.planned.batch, one.region
        rows = loader.ring.view(region, self._wake)
        assemble(one, loader.cache, rows)
        epoch, index = divmod(one.planned.number, loader.steps_per_epoch)

        def release() -> None:
            region.released = True
            self._wake()

        return LoadedBatch(
            step=one.planned.number,
            epoch=epoch,
            index=index,
            batch=padded(unpack(packed), shape_for(packed.shape, loader.shapes)),
            features=rows,
            report=BatchReport(rows=len(packed.node_ids), misses=one.planned.planned_misses),
            release=release,
        )

    def _wake(self) -> None:
        with self._loader.line.notify():  # batches may outlive their stream, and the next one waits for their room
            pass
