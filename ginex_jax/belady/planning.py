"""The optimal cache for a trace that is known: Belady's algorithm, a batch at a time. Importing this module imports numba."""

import operator
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32, Int64, Integer

from ginex_jax.belady.next_use_queue import NOTHING, NextUseQueue, fill, new_queue, take_step
from ginex_jax.belady.steps import CachePlan, CacheStep
from ginex_jax.compilation import PREFETCHED, compiled_bare, prefetch
from ginex_jax.features import require_within

MAX_NODES = 2**31 - 1  # a node id takes 4 bytes in every table
MAX_BATCHES = 2**30


def plan_cache(
    trace: Sequence[Integer[np.ndarray, " _"]],
    *,
    capacity: int,
    num_nodes: int,
    initial: Integer[np.ndarray, " initial"] | None = None,
    priority: Integer[np.ndarray, " all_nodes"] | None = None,
) -> CachePlan:
    """The plan with the fewest misses in all that any cache of this capacity can have on this trace.

    After every batch the cache keeps, of its contents and the batch's rows, those that are used again soonest; a row that was just read
    need not be kept (Belady, 1966; Ginex, Park et al., VLDB 2022, section 4.2). "Fewest" means: for this trace alone, all rows costing the
    same, and with all of a batch's rows in use at the same time.

    Args:
      trace: the node ids of every batch, int32 or int64, distinct within a batch. Batches may be empty.
      capacity: rows that the cache holds; it may be 0, or more than there are nodes.
      num_nodes: ids are in [0, num_nodes).
      initial: what the cache holds before the first batch, at most `capacity` distinct ids. By default the best that it could hold: the
        first `capacity` distinct ids of the trace; reading them is not counted.
      priority: for each node, at least 0 and below 2^32. Of rows that the trace does not use again, which are not written otherwise, those
        with the higher priority, compared to one part in 8, are kept in slots that nothing else needs. Misses do not depend on it.

    Raises:
      ValueError: an argument is out of range, or a batch has an id twice.

    Time O(accesses), and once O(nodes). Memory 4 bytes a node, 13 a slot, and 8 an access for the plan.
    """
    capacity, num_nodes = checked_sizes(capacity, num_nodes)
    priorities = _checked_priority(priority, num_nodes)
    cache, next_uses, initial_ids = start_plan(trace, capacity, num_nodes, initial, priorities)
    misses, steps = np.zeros(len(trace), np.int64), []
    for batch, (step, count) in enumerate(planned_steps(trace, cache, next_uses, priorities)):
        misses[batch] = count
        steps.append(step)
    return CachePlan(initial_ids, misses, tuple(steps))


def start_plan(
    trace: Sequence[Integer[np.ndarray, " _"]],
    capacity: int,
    num_nodes: int,
    initial: Integer[np.ndarray, " initial"] | None,
    priorities: Integer[np.ndarray, " priorities"],
) -> tuple[NextUseQueue, list[Int32[np.ndarray, " _"]], Int64[np.ndarray, " held"]]:
    """The cache before the first batch, the batch of the next use of every access, or -1, and the cache's contents.

    Arguments and errors are those of `plan_cache`; without priorities there are none in the array.
    """
    if len(trace) > MAX_BATCHES:
        raise ValueError(f"a trace should have at most {MAX_BATCHES} batches, got {len(trace)}")
    table = np.full(num_nodes, NOTHING, np.int32)
    cache = new_queue(table, min(capacity, num_nodes), max(1, len(trace)))
    next_uses = [np.empty(len(ids), np.int32) for ids in trace]
    for batch in reversed(range(len(trace))):
        _go_back(trace[batch], batch, table, next_uses[batch])
    initial_ids = (
        _first_used(trace, table, len(cache.ids)) if initial is None else _checked_initial(initial, capacity, num_nodes)
    )
    first_uses = table[initial_ids]
    table.fill(NOTHING)  # the same memory serves as the cache's table
    fill(cache, initial_ids, first_uses, priorities)
    return cache, next_uses, initial_ids


def planned_steps(
    trace: Sequence[Integer[np.ndarray, " _"]],
    cache: NextUseQueue,
    next_uses: list[Int32[np.ndarray, " _"]],
    priorities: Integer[np.ndarray, " _"],
) -> Iterator[tuple[CacheStep, int]]:
    """Each batch's step and its misses. Uses up the cache and the next uses, whose memory receives the slots to write."""
    for batch, ids in enumerate(trace):
        hits = np.empty(len(ids), np.int32)
        keep_unused = len(priorities) > 0
        misses = take_step(cache, batch, ids, next_uses[batch], priorities, keep_unused, hits)
        yield CacheStep(hits, next_uses[batch]), misses


def check_trace(trace: Sequence[Integer[np.ndarray, " _"]], num_nodes: int) -> None:
    """Raises ValueError, with the offender, unless all ids are in [0, num_nodes) and distinct within their batch. 4 bytes a node."""
    table, scratch = np.full(num_nodes, NOTHING, np.int32), np.empty(0, np.int32)
    for batch, ids in enumerate(trace):
        if len(scratch) < len(ids):
            scratch = np.empty(len(ids), np.int32)
        _go_back(ids, batch, table, scratch[: len(ids)])


def checked_sizes(capacity: int, num_nodes: int) -> tuple[int, int]:
    """As ints; raises ValueError for what no cache can be."""
    capacity, num_nodes = operator.index(capacity), operator.index(num_nodes)
    if capacity < 0:
        raise ValueError(f"capacity should be at least 0 rows, got {capacity}")
    if not 0 <= num_nodes <= MAX_NODES:
        raise ValueError(f"num_nodes should be in [0, {MAX_NODES}], got {num_nodes}")
    return capacity, num_nodes


def _checked_priority(
    priority: Integer[np.ndarray, " nodes"] | None, num_nodes: int
) -> Integer[np.ndarray, " priorities"]:
    """The priorities, empty for none; raises ValueError unless they are one a node, in [0, 2**32)."""
    if priority is None:
        return np.empty(0, np.uint16)
    if len(priority) != num_nodes:
        raise ValueError(f"priority should be one for each of {num_nodes} nodes, got {len(priority)}")
    require_within(priority, 2**32, "priority")
    return priority


def _checked_initial(
    initial: Integer[np.ndarray, " initial"], capacity: int, num_nodes: int
) -> Int64[np.ndarray, " initial"]:
    if len(initial) > capacity:
        raise ValueError(f"initial should be at most the {capacity} rows that the cache holds, got {len(initial)}")
    require_within(initial, num_nodes, "initial")
    if len(np.unique(initial)) != len(initial):
        raise ValueError("initial should be distinct ids")
    return initial.astype(np.int64)


def _first_used(
    trace: Sequence[Integer[np.ndarray, " _"]], first_uses: Int32[np.ndarray, " nodes"], count: int
) -> Int64[np.ndarray, " held"]:
    """The first distinct ids of a trace in the order of access."""
    found, known = np.empty(count, np.int64), 0
    for batch, ids in enumerate(trace):
        if known == count:
            break
        known = _collect_first(ids, batch, first_uses, found, known)
    return found[:known].copy()


def _go_back(
    ids: Integer[np.ndarray, " nodes"],
    batch: int,
    next_use: Int32[np.ndarray, " all_nodes"],
    found: Int32[np.ndarray, " nodes"],
) -> None:
    require_within(ids, len(next_use), f"ids of batch {batch}")
    duplicate = _find_next_uses(ids, batch, next_use, found)
    if duplicate != NOTHING:
        raise ValueError(f"ids of batch {batch} should be distinct, and {ids[duplicate]} is there twice")


@compiled_bare
def _find_next_uses(ids, batch, next_use, found):
    """Goes one batch back: `next_use` has the next batch of every node, or -1. Returns the place of an id that is there twice, or -1."""
    for i in range(len(ids)):
        if i + PREFETCHED < len(ids):
            prefetch(next_use, np.intp(ids[i + PREFETCHED]))
        found[i] = next_use[ids[i]]
        next_use[ids[i]] = batch
    for i in range(len(ids)):
        if found[i] == batch:
            return i
    return -1


@compiled_bare
def _collect_first(ids, batch, first_uses, found, known):
    """Adds the ids whose first use is this batch, while there is room; returns how many there are."""
    for i in range(len(ids)):
        if known == len(found):
            break
        if i + PREFETCHED < len(ids):
            prefetch(first_uses, np.intp(ids[i + PREFETCHED]))
        if first_uses[ids[i]] == batch:
            found[known] = ids[i]
            known += 1
    return known
