"""The pipeline yields what the synchronous twin yields, reads what was planned, and survives bad days."""

import threading
import time
import traceback

import jax
import numpy as np
import pytest

from ginex_jax.belady.policies import LruPolicy, NoCache, StaticPolicy
from ginex_jax.belady.rolling import RollingPlanner
from ginex_jax.belady.simulation import simulate
from ginex_jax.features import ArrayFeatures
from ginex_jax.graph import CSCGraph
from ginex_jax.pipeline.disk_loader import DiskLoader
from ginex_jax.pipeline.loading import LoadedBatch, Loader
from ginex_jax.pipeline.memory_loader import MemoryLoader
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.samplers import NodeSampler
from ginex_jax.sampling.shapes import pilot

NUM_NODES, NUM_EDGES, WIDTH = 2000, 16_000, 8
NODES = np.arange(0, NUM_NODES, 3)
CONFIG = SamplerConfig(fanouts=(4, 3), batch_size=32, seed=5)
CAPACITY = 300
POLICIES = {
    "belady": lambda: RollingPlanner(capacity=CAPACITY, num_nodes=NUM_NODES, window=6, commit=3),
    "lru": lambda: LruPolicy(capacity=CAPACITY, num_nodes=NUM_NODES),
    "static": lambda: StaticPolicy(np.arange(CAPACITY), num_nodes=NUM_NODES),
    "none": NoCache,
}


def skewed_graph() -> CSCGraph:
    rng = np.random.default_rng(0)
    degrees = np.bincount(rng.integers(0, NUM_NODES, NUM_EDGES), minlength=NUM_NODES)
    sources = (NUM_NODES * rng.random(NUM_EDGES) ** 3).astype(np.int32)
    return CSCGraph(np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64), sources)


GRAPH = skewed_graph()
FEATURES = np.random.default_rng(1).random((NUM_NODES, WIDTH), np.float32)
SHAPES = pilot(GRAPH, NODES, CONFIG)
RING_ROWS = 4 * SHAPES[-1].level_sizes[-1]


def disk_loader(policy: str = "belady", **changes: object) -> DiskLoader:
    arguments = {"make_policy": POLICIES[policy], "ring_rows": RING_ROWS, "features": ArrayFeatures(FEATURES)} | changes
    features = arguments.pop("features")
    sampler = NodeSampler(GRAPH, NODES, CONFIG, shapes=SHAPES)
    return DiskLoader(sampler, features, **arguments)  # pyright: ignore[reportArgumentType]


def memory_loader() -> MemoryLoader:
    return MemoryLoader(GRAPH, ArrayFeatures(FEATURES), NODES, CONFIG, SHAPES)


def assert_same(ours: LoadedBatch, theirs: LoadedBatch) -> None:
    assert (ours.step, ours.epoch, ours.index) == (theirs.step, theirs.epoch, theirs.index)
    assert jax.tree.structure(ours.batch) == jax.tree.structure(theirs.batch)
    for mine, other in zip(jax.tree.leaves(ours.batch), jax.tree.leaves(theirs.batch), strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_array_equal(ours.features, theirs.features)


@pytest.mark.parametrize("num_samplers", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_batches_as_the_twin_over_two_epochs(policy: str, num_samplers: int) -> None:
    loader, twin = disk_loader(policy, num_samplers=num_samplers), memory_loader()
    assert isinstance(loader, Loader)
    assert loader.sampler_state == twin.sampler_state
    stop = 2 * loader.steps_per_epoch
    count = 0
    with loader.stream(3, stop) as stream, twin.stream(3, stop) as expected:
        for ours, theirs in zip(stream, expected, strict=True):
            assert_same(ours, theirs)
            ours.release()
            count += 1
    assert count == stop - 3


@pytest.mark.parametrize("policy", POLICIES)
def test_reads_are_those_of_the_simulation(policy: str) -> None:
    features = ArrayFeatures(FEATURES)
    loader = disk_loader(policy, features=features)
    trace = [loader.sample(step).node_ids.astype(np.int64) for step in range(loader.steps_per_epoch)]
    with loader.stream(0, loader.steps_per_epoch) as stream:
        reports = [loaded.report for loaded in stream]
        report = stream.report
    executed = np.array([one.misses for one in reports])
    assert [one.rows for one in reports] == [len(ids) for ids in trace]
    assert features.stats.rows == executed.sum() == report.misses
    assert report.rows == sum(map(len, trace))
    if policy == "lru":
        expected = simulate(trace, capacity=CAPACITY, policy="lru", num_nodes=NUM_NODES)
        np.testing.assert_array_equal(executed, expected)
    elif policy == "none":
        np.testing.assert_array_equal(executed, [len(ids) for ids in trace])
    elif policy == "static":
        seen, expected = set(), []
        for ids in trace:
            expected.append(sum(node >= CAPACITY or node not in seen for node in ids.tolist()))
            seen.update(ids.tolist())
        np.testing.assert_array_equal(executed, expected)
    else:
        planner = POLICIES["belady"]()
        planned = [int((step.hit_slots < 0).sum()) for step in planner.steps(trace)]
        np.testing.assert_array_equal(executed, planned)
        assert executed.sum() < simulate(trace, capacity=CAPACITY, policy="lru", num_nodes=NUM_NODES).sum()


def test_contents_carry_over_between_streams_and_are_forgotten_after_a_broken_one() -> None:
    features = ArrayFeatures(FEATURES)
    loader, twin = disk_loader(features=features), memory_loader()
    steps = loader.steps_per_epoch

    def rows_of(first: int, stop: int) -> int:
        before = features.stats.rows
        with loader.stream(first, stop) as stream, twin.stream(first, stop) as expected:
            for ours, theirs in zip(stream, expected, strict=True):
                assert_same(ours, theirs)
        return features.stats.rows - before

    cold, warm = rows_of(0, steps), rows_of(0, steps)
    assert warm < cold
    with loader.stream(0, steps) as stream:
        next(stream)
    assert rows_of(0, steps) == cold


def test_batches_that_are_only_dropped_make_room_too() -> None:
    loader = disk_loader(ring_rows=3 * SHAPES[-1].level_sizes[-1])
    with loader.stream(0, 20) as stream:
        assert sum(1 for _ in stream) == 20


def test_batches_released_after_their_stream_make_room_in_the_next_one() -> None:
    loader = disk_loader(ring_rows=3 * SHAPES[-1].level_sizes[-1])
    with loader.stream(0, 2) as stream:
        before = list(stream)
    with loader.stream(2, 30) as stream:
        watchdog = threading.Timer(60, stream.close)  # else it would wait for ever
        watchdog.start()
        kept = []
        while not stream._reader.waits_for_room or stream._loaded.peek() is not None:
            if stream._loaded.peek() is not None:
                kept.append(next(stream))
        for loaded in before:
            loaded.release()
        kept.append(next(stream))
        assert [loaded.step for loaded in kept] == list(range(2, 2 + len(kept)))
        watchdog.cancel()


def test_a_second_stream_closes_the_first() -> None:
    loader, twin = disk_loader(), memory_loader()
    first = loader.stream(0, 1000)
    next(first).release()
    with loader.stream(3, 20) as stream, twin.stream(3, 20) as expected:
        with pytest.raises(ValueError, match="closed"):
            next(first)
        for ours, theirs in zip(stream, expected, strict=True):
            assert_same(ours, theirs)
            ours.release()


def test_keeping_every_batch_ends_with_a_word_and_not_with_silence() -> None:
    loader = disk_loader(ring_rows=SHAPES[-1].level_sizes[-1])
    with pytest.raises(ValueError, match="hold all memory: release them"), loader.stream(0, 40) as stream:
        kept = list(stream)  # noqa: F841
    assert_no_threads()


def test_a_failing_disk_ends_the_run_with_its_own_traceback() -> None:
    class Failing(ArrayFeatures):
        def read_rows(self, ids, *, out=None, slots=None):
            if self.stats.rows > 2000:
                raise OSError(5, "Input/output error", "features/c/0")
            return super().read_rows(ids, out=out, slots=slots)

    loader = disk_loader(features=Failing(FEATURES))
    with pytest.raises(OSError, match="Input/output error") as caught, loader.stream(0, 60) as stream:
        for loaded in stream:
            loaded.release()
    assert any(frame.name == "read_rows" for frame in traceback.extract_tb(caught.value.__traceback__))
    assert_no_threads()
    with pytest.raises(OSError, match="Input/output error"):
        next(stream)


def test_a_failing_sampler_ends_the_run() -> None:
    bad_nodes = np.array([NUM_NODES + 1])
    sampler = NodeSampler(GRAPH, bad_nodes, CONFIG, shapes=SHAPES)
    loader = DiskLoader(sampler, ArrayFeatures(FEATURES), make_policy=NoCache, ring_rows=RING_ROWS)
    with pytest.raises(ValueError, match="seed nodes"), loader.stream(0, 1) as stream:
        next(stream)
    assert_no_threads()


def test_leaving_in_the_middle_ends_all_threads() -> None:
    loader = disk_loader()
    stream = loader.stream(0, 1000)
    next(stream)
    stream.close()
    stream.close()
    assert_no_threads()
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_what_is_ready_when_a_stream_is_closed_is_not_handed_out() -> None:
    stream = disk_loader().stream(0, 1000)
    deadline = time.monotonic() + 60
    while not stream.report.stages["assemble"].items and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stream.report.stages["assemble"].items == 1
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_an_end_stays_an_end() -> None:
    stream = disk_loader().stream(0, 2)
    for loaded in stream:
        loaded.release()
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(stream)


def test_a_ring_that_is_too_small_says_so() -> None:
    with pytest.raises(ValueError, match="allow more"), disk_loader(ring_rows=10).stream(0, 5) as stream:
        next(stream)


def test_stage_times_are_reported_for_every_stage() -> None:
    with disk_loader().stream(0, 10) as stream:
        for loaded in stream:
            loaded.release()
        report = stream.report
    assert list(report.stages) == ["sample", "plan", "read", "assemble", "step"]
    for stage in report.stages.values():
        assert stage.items == 10
        assert stage.busy + stage.starved + stage.blocked <= report.seconds + 0.5
    assert report.to_json()["hit_rate"] == pytest.approx(1 - report.misses / report.rows)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="a row for each of 2000 nodes"):
        disk_loader(features=ArrayFeatures(FEATURES[:5]))
    with pytest.raises(ValueError, match="num_samplers"):
        disk_loader(num_samplers=0)
    with pytest.raises(ValueError, match="steps"):
        disk_loader().stream(5, 4)


def assert_no_threads() -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ginex-")]
