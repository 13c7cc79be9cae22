"""Policies: against the exhaustive search where they can be optimal, plain dictionaries, libCacheSim, and replay."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ginex_jax.belady.planning import plan_cache
from ginex_jax.belady.policies import LruPolicy, NoCache, StaticPolicy
from ginex_jax.belady.rolling import RollingPlanner
from ginex_jax.belady.simulation import simulate
from ginex_jax.belady.steps import CachePolicy
from tests.ginex_jax.cache_oracles import fewest_misses, replay, skewed_trace, traces


def misses_of(policy, trace):
    return [step.num_misses for step in policy.steps(trace)]


@given(traces(), traces(), st.integers(0, 4), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_what_is_planned_is_what_happens(first, second, capacity, window, commit):
    """Contents carry over from one call to the next, and to the one after that was cut short."""
    num_nodes = max(first[1], second[1])
    policies = (
        RollingPlanner(capacity=capacity, num_nodes=num_nodes, window=max(window, commit), commit=min(window, commit)),
        LruPolicy(capacity=capacity, num_nodes=num_nodes),
        StaticPolicy(np.arange(min(capacity, num_nodes)), num_nodes=num_nodes),
        NoCache(),
    )
    for policy in policies:
        assert isinstance(policy, CachePolicy)
        part, half = policy.steps(second[0]), len(second[0]) // 2
        cut = [next(part) for _ in range(half)]
        part.close()
        replay(second[0][:half] + first[0], cut + list(policy.steps(first[0])), capacity)


@given(traces(), st.integers(0, 4), st.integers(0, 3))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_window_over_everything_is_optimal(trace_and_nodes, capacity, more):
    trace, num_nodes = trace_and_nodes
    window = max(1, len(trace)) + more
    rolling = RollingPlanner(capacity=capacity, num_nodes=num_nodes, window=window, commit=1)
    assert sum(misses_of(rolling, trace)) == fewest_misses(trace, capacity, num_nodes, [])


@pytest.mark.parametrize("commit", [1, 3, 8])
def test_every_step_is_that_of_a_plan_for_the_view(commit):
    """Planning each view anew from the contents it finds gives the same misses; which unused rows are kept is checked by their use."""
    trace, window, capacity = skewed_trace(), 8, 150
    rolling = RollingPlanner(capacity=capacity, num_nodes=2000, window=window, commit=commit)
    steps = list(rolling.steps(trace))
    misses, _ = replay(trace, steps, capacity)
    for start in range(0, len(trace), commit):
        _, slots = replay(trace[:start], steps[:start], capacity)
        plan = plan_cache(trace[start : start + window], capacity=capacity, num_nodes=2000, initial=slots[slots >= 0])
        assert plan.misses[:commit].tolist() == misses[start : start + commit]


def test_the_distance_to_the_whole_trace():
    trace = skewed_trace(num_nodes=20_000, num_batches=240, batch_size=1000)
    for capacity in (1000, 2000):
        optimum = simulate(trace, capacity=capacity, num_nodes=20_000, policy="belady").sum()
        rolled = simulate(trace, capacity=capacity, num_nodes=20_000, policy="belady", window=60, commit=30).sum()
        assert optimum <= rolled <= 1.03 * optimum


def test_it_looks_no_further_than_it_says():
    trace = skewed_trace(num_batches=20)
    for window, commit in ((1, 1), (6, 2), (6, 6)):
        taken = 0

        def counted():
            nonlocal taken
            for ids in trace:
                taken += 1
                yield ids

        rolling = RollingPlanner(capacity=50, num_nodes=2000, window=window, commit=commit)
        assert rolling.lookahead == window
        for yielded, _ in enumerate(rolling.steps(counted())):
            assert taken <= yielded + window


def test_counted_uses_decide_among_unused_rows():
    often, rare = np.array([0]), np.array([1])
    rolling = RollingPlanner(capacity=1, num_nodes=3, window=1, commit=1)
    steps = list(rolling.steps([often, often, often, rare, often]))
    assert [step.num_misses for step in steps] == [1, 0, 0, 1, 0]


def test_many_moves_rebuild_the_buckets():
    """A window of two batches makes most rows unused at once: entries go stale at every use."""
    rng = np.random.default_rng(0)
    trace = [rng.permutation(60)[:50] for _ in range(400)]
    rolling = RollingPlanner(capacity=40, num_nodes=60, window=2, commit=1)
    misses, _ = replay(trace, list(rolling.steps(trace)), 40)
    assert misses[0] == 50 and all(
        10 <= count <= 20 for count in misses[1:]
    )  # of 50 ids at most 40 are held, at least 30


def test_batches_that_grow_move_the_ring():
    rng = np.random.default_rng(0)
    trace = [rng.permutation(9000)[:size] for size in (10, 3000, 4000, 0, 9000, 20, 9000, 9000, 5, 9000)]
    rolling = RollingPlanner(capacity=2000, num_nodes=9000, window=4, commit=2)
    whole = RollingPlanner(capacity=2000, num_nodes=9000, window=10, commit=1)
    replay(trace, list(rolling.steps(trace)), 2000)
    assert sum(misses_of(whole, trace)) == simulate(trace, capacity=2000, num_nodes=9000, policy="belady").sum()
    assert rolling.nbytes > 10 * 9000


def test_lru_is_an_ordered_dictionary():
    trace = skewed_trace(num_batches=20)
    for capacity in (0, 1, 7, 100, 400):
        policy, held = LruPolicy(capacity=capacity, num_nodes=2000), collections.OrderedDict()
        steps = list(policy.steps(trace))
        misses, slots = replay(trace, steps, capacity)
        for ids, count in zip(trace, misses, strict=True):
            expected = 0
            for node in ids.tolist():
                expected += node not in held
                held[node] = None
                held.move_to_end(node)
                if len(held) > capacity:
                    held.popitem(last=False)
            assert count == expected
        assert set(slots[slots >= 0].tolist()) == set(held)


def test_lru_is_libcachesims():
    libcachesim = pytest.importorskip("libcachesim")
    trace = skewed_trace(num_batches=30, batch_size=400)
    for capacity in (40, 400):
        theirs = libcachesim.LRU(cache_size=capacity)
        wanted = [sum(not theirs.get(libcachesim.Request(obj_id=node, obj_size=1)) for node in ids) for ids in trace]
        assert simulate(trace, capacity=capacity, num_nodes=2000, policy="lru").tolist() == wanted


def test_static_keeps_the_most_used():
    trace = skewed_trace(num_batches=20)
    counts = np.bincount(np.concatenate(trace), minlength=2000)
    hot = set(np.argsort(-counts, kind="stable")[:100].tolist())
    wanted = sum(count if node not in hot else min(count, 1) for node, count in enumerate(counts))
    assert simulate(trace, capacity=100, num_nodes=2000, policy="static").sum() == wanted
    given_ids = np.arange(300)
    misses = simulate(trace, capacity=100, num_nodes=2000, policy="static", hot_ids=given_ids).sum()
    assert misses == sum(count if node >= 100 else min(count, 1) for node, count in enumerate(counts))


def test_no_cache_reads_everything():
    trace = skewed_trace(num_batches=3)
    assert simulate(trace, capacity=5, num_nodes=2000, policy="none").tolist() == [len(ids) for ids in trace]


def test_no_policy_beats_belady():
    trace = skewed_trace()
    for capacity in (0, 30, 300, 3000):
        best = simulate(trace, capacity=capacity, num_nodes=2000, policy="belady").sum()
        for policy in ("lru", "static", "none"):
            assert best <= simulate(trace, capacity=capacity, num_nodes=2000, policy=policy).sum()


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: LruPolicy(capacity=-1, num_nodes=3), "capacity"),
        (lambda: StaticPolicy(np.array([1, 1]), num_nodes=3), "distinct"),
        (lambda: StaticPolicy(np.array([3]), num_nodes=3), "hot_ids"),
        (lambda: RollingPlanner(capacity=1, num_nodes=3, window=2, commit=3), "commit <= window"),
        (lambda: RollingPlanner(capacity=1, num_nodes=3, window=0, commit=0), "1 <= commit"),
        (lambda: list(LruPolicy(capacity=1, num_nodes=3).steps([np.array([3])])), "ids of a batch"),
        (lambda: list(StaticPolicy(np.array([0]), num_nodes=3).steps([np.array([-1])])), "ids of a batch"),
        (lambda: simulate([np.array([1, 1])], capacity=1, num_nodes=3, policy="lru"), "distinct"),
        (lambda: simulate([np.array([4])], capacity=1, num_nodes=3, policy="none"), "ids of batch 0"),
    ],
)
def test_mistakes(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()


def test_a_mistake_leaves_the_planner_usable():
    rolling = RollingPlanner(capacity=2, num_nodes=5, window=3, commit=1)
    first = next(rolling.steps([np.array([0, 1]), np.array([1])]))
    with pytest.raises(ValueError, match="1 is there twice"):
        list(rolling.steps([np.array([0]), np.array([1, 2, 1])]))
    steps = list(rolling.steps([np.array([1]), np.array([0, 1])]))
    assert (first.num_misses, *[step.num_misses for step in steps]) == (2, 0, 0)
