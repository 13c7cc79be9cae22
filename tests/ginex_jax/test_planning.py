"""Plans for a known trace: exhaustive search, replay, the paper's figures, and another library's Belady."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ginex_jax.belady.next_use_queue import new_queue, take_step
from ginex_jax.belady.planning import _find_next_uses, plan_cache
from tests.ginex_jax.cache_oracles import fewest_misses, replay, skewed_trace, traces


@given(traces(most_nodes=5), st.integers(0, 4), st.data())
@settings(max_examples=120, deadline=None, derandomize=True)
def test_no_cache_misses_less(trace_and_nodes, capacity, data):
    trace, num_nodes = trace_and_nodes
    ids = st.lists(st.integers(0, num_nodes - 1), unique=True, max_size=min(capacity, num_nodes))
    initial = data.draw(st.none() | ids)
    priority = data.draw(st.none() | st.lists(st.integers(0, 2**32 - 1), min_size=num_nodes, max_size=num_nodes))
    plan = plan_cache(
        trace,
        capacity=capacity,
        num_nodes=num_nodes,
        initial=None if initial is None else np.array(initial, np.int64),
        priority=None if priority is None else np.array(priority),
    )
    assert plan.misses.sum() == fewest_misses(trace, capacity, num_nodes, initial)
    assert replay(trace, plan.steps, capacity, plan.initial_ids)[0] == plan.misses.tolist()
    assert [step.num_misses for step in plan.steps] == plan.misses.tolist()
    if initial is None:
        accessed = list(dict.fromkeys(int(node) for ids in trace for node in ids))
        assert plan.initial_ids.tolist() == accessed[:capacity]
    else:
        assert plan.initial_ids.tolist() == initial


def test_a_large_trace():
    """More batches than a word of the bitmap has bits, and buckets of several chunks; misses as a plain heap finds them."""
    trace = skewed_trace(num_batches=300, batch_size=120)
    plan = plan_cache(trace, capacity=300, num_nodes=2000, initial=np.arange(200))
    misses, _ = replay(trace, plan.steps, 300, range(200))
    assert misses == plan.misses.tolist() == slow_misses(trace, 300, set(range(200)))


def slow_misses(trace, capacity, held):
    """What is used soonest of contents and batch is kept, by sorting."""
    misses = []
    for batch, ids in enumerate(trace):
        misses.append(len(set(ids.tolist()) - held))
        next_uses = {}
        for later in reversed(range(batch + 1, len(trace))):
            next_uses.update(dict.fromkeys(trace[later].tolist(), later))
        held = set(sorted((held | set(ids.tolist())) & next_uses.keys(), key=next_uses.get)[:capacity])
    return misses


def test_the_example_of_figure_12():
    """Next uses are the paper's pointers into its lists of accesses: 5 nodes, and 5 stands for never."""
    trace = [np.array(ids) for ids in ([3, 4], [4, 2], [0, 3], [0, 4], [3, 0])]
    accesses = np.array(
        [2, 3, 4, 1, 0, 2, 4, 0, 1, 3, 5]
    )  # of node 0, 2, 3, 4, and the end of lists; 1 is never accessed
    pointers = [[0, 3, 3, 5, 8], [0, 3, 10, 5, 9], [1, 3, 10, 6, 9], [2, 3, 10, 6, 10], [10, 3, 10, 10, 10]]
    table, found = np.full(5, -1, np.int32), {}
    for batch in reversed(range(5)):
        found[batch] = np.empty(2, np.int32)
        assert _find_next_uses(trace[batch], batch, table, found[batch]) == -1
    for batch, ids in enumerate(trace):
        wanted = accesses[np.array(pointers[batch])[ids]]
        assert np.where(found[batch] < 0, 5, found[batch]).tolist() == wanted.tolist()


def test_the_example_of_figure_11():
    """The batch 9, 5, 0, 7, 2 brings 2 and 5 in for 0 and 6, and 2 is at 4, 5 at 1 in the batch."""
    trace = [np.array([9, 5, 0, 7, 2]), np.array([4, 1, 2, 5, 7])]  # what is kept is what is used next
    plan = plan_cache(trace, capacity=5, num_nodes=10, initial=np.array([7, 4, 1, 6, 0]))
    hits, writes = plan.steps[0]
    assert hits.tolist() == [-1, -1, 4, 0, -1]
    assert np.flatnonzero(writes >= 0).tolist() == [1, 4]
    assert sorted(writes[writes >= 0].tolist()) == [3, 4]  # the slots of 6 and 0
    assert plan.misses.tolist() == [3, 0]


def test_rows_without_another_use_stay_by_priority():
    trace = [np.arange(4), np.array([4, 5]), np.array([0])]
    priority = np.array([0, 10, 1, 100, 50, 1000])
    plan = plan_cache(trace, capacity=4, num_nodes=6, initial=np.array([], np.int64), priority=priority)
    _, slots = replay(trace, plan.steps, 4)
    assert set(slots.tolist()) == {0, 3, 4, 5}
    assert plan.misses.tolist() == [4, 2, 0]
    plain = plan_cache(trace, capacity=4, num_nodes=6, initial=np.array([], np.int64))
    assert sum((step.write_slots >= 0).sum() for step in plain.steps) == 1


def test_the_nearest_use_is_written_first():
    """Of three rows read at once, two fit: none is written that would be evicted at once."""
    trace = [np.array([0, 1, 2]), np.array([2]), np.array([1]), np.array([0])]
    plan = plan_cache(trace, capacity=2, num_nodes=3, initial=np.array([], np.int64))
    assert plan.steps[0].write_slots[0] == -1
    assert (plan.steps[0].write_slots[1:] >= 0).all()


def test_libcachesim_does_not_do_better():
    """Its Belady decides after every request: any of its caches is one that batches could have, and C0 saves each first miss."""
    libcachesim = pytest.importorskip("libcachesim")
    trace = skewed_trace(batch_size=400, num_batches=60)
    requests = np.concatenate(trace).tolist()
    next_access, last = [1 << 62] * len(requests), {}
    for time in reversed(range(len(requests))):
        next_access[time] = last.get(requests[time], 1 << 62)
        last[requests[time]] = time
    for capacity in (50, 200, 600):
        theirs = libcachesim.Belady(cache_size=capacity)
        misses = 0
        for time, node in enumerate(requests):
            request = libcachesim.Request(obj_id=node, obj_size=1, next_access_vtime=next_access[time])
            misses += not theirs.get(request)
        plan = plan_cache(trace, capacity=capacity, num_nodes=2000)
        assert plan.misses.sum() + len(plan.initial_ids) <= misses
        assert plan.misses.sum() > 0.9 * misses - capacity  # and it is no other problem


def test_a_cache_that_holds_everything():
    trace = skewed_trace(num_batches=5)
    plan = plan_cache(trace, capacity=10**9, num_nodes=2000, initial=np.empty(0, np.int64))
    assert plan.misses.sum() == len(np.unique(np.concatenate(trace)))
    assert plan_cache(trace, capacity=10**9, num_nodes=2000).misses.sum() == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"trace": [np.array([0, 4])]}, r"ids of batch 0 should be in \[0, 4\), got 4 at 1"),
        ({"trace": [np.array([0]), np.array([-1])]}, "ids of batch 1"),
        ({"trace": [np.array([0]), np.array([2, 1, 2])]}, "ids of batch 1 should be distinct, and 2 is there twice"),
        ({"capacity": -1}, "capacity should be at least 0 rows, got -1"),
        ({"num_nodes": 2**31}, "num_nodes should be in"),
        ({"initial": np.arange(3)}, "initial should be at most the 2 rows"),
        ({"initial": np.array([1, 1])}, "initial should be distinct"),
        ({"initial": np.array([9])}, "initial should be in"),
        ({"priority": np.array([1])}, "priority should be one for each of 4 nodes, got 1"),
        ({"priority": np.array([1, -1, 0, 0])}, "priority should be in"),
    ],
)
def test_mistakes(changes, complaint):
    arguments = {"trace": [np.array([0, 1])], "capacity": 2, "num_nodes": 4} | changes
    with pytest.raises(ValueError, match=complaint):
        plan_cache(**arguments)


def test_a_step_allocates_nothing_with_the_graph():
    """The tables are made once: a step is given all of its memory."""
    cache = new_queue(np.full(10, -1, np.int32), 4, 3)
    writes, hits = np.array([1, -1], np.int32), np.empty(2, np.int32)
    assert take_step(cache, 0, np.array([7, 3]), writes, np.empty(0, np.uint16), False, hits) == 2
    assert (hits.tolist(), writes.tolist()) == ([-1, -1], [0, -1])
