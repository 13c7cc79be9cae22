"""How many rows a cache would read, without any row. Importing this module imports numba."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int64, Integer

from ginex_jax.belady.planning import check_trace, checked_sizes, planned_steps, start_plan
from ginex_jax.belady.policies import LruPolicy, NoCache, StaticPolicy
from ginex_jax.belady.rolling import RollingPlanner
from ginex_jax.belady.steps import CachePolicy
from ginex_jax.store.uses import count_ids, most_used

Policy = Literal["belady", "lru", "static", "none"]


def simulate(
    trace: Sequence[Integer[np.ndarray, " _"]],
    *,
    capacity: int,
    policy: Policy,
    num_nodes: int,
    hot_ids: Integer[np.ndarray, " hot"] | None = None,
    window: int | None = None,
    commit: int = 1,
) -> Int64[np.ndarray, " batches"]:
    """Misses of every batch, of a cache that starts empty; the first read of a row is a miss for every policy.

    Args:
      trace: the node ids of every batch, int32 or int64, distinct within a batch.
      capacity: rows that the cache holds, at least 0.
      policy: "belady", the fewest misses possible; "lru", the least recently used row goes, ids in the order of the batch; "static", a
        fixed set; "none", no cache.
      num_nodes: ids are in [0, num_nodes).
      hot_ids: for "static", the most wanted first: the first `capacity` of them are kept. By default those that are most often in
        the trace, of equals the lowest, which no cache can know beforehand.
      window: for "belady", the batches in view; all by default.
      commit: for "belady" with a window, by how many batches the view moves on.

    Raises:
      ValueError: an argument is out of range, or a batch has an id twice.

    Time O(accesses), and once O(nodes), without `hot_ids` O(nodes log nodes). Memory at most 18 bytes a node, and for "belady" 4 an
    access.
    """
    capacity, num_nodes = checked_sizes(capacity, num_nodes)
    if policy == "belady" and window is None:
        nothing, no_priorities = np.empty(0, np.int64), np.empty(0, np.uint16)
        cache, next_uses, _ = start_plan(trace, capacity, num_nodes, nothing, no_priorities)
        return np.array([misses for _, misses in planned_steps(trace, cache, next_uses, no_priorities)], np.int64)
    check_trace(trace, num_nodes)
    chosen = _policy(trace, capacity, policy, num_nodes, hot_ids, window, commit)
    return np.array([step.num_misses for step in chosen.steps(trace)], np.int64)


def _policy(
    trace: Sequence[Integer[np.ndarray, " _"]],
    capacity: int,
    policy: Policy,
    num_nodes: int,
    hot_ids: Integer[np.ndarray, " hot"] | None,
    window: int | None,
    commit: int,
) -> CachePolicy:
    match policy:
        case "belady":
            assert window is not None
            return RollingPlanner(capacity=capacity, num_nodes=num_nodes, window=window, commit=commit)
        case "lru":
            return LruPolicy(capacity=capacity, num_nodes=num_nodes)
        case "static":
            if hot_ids is None:
                hot_ids = most_used(count_ids(trace, num_nodes), capacity)
            return StaticPolicy(hot_ids[:capacity], num_nodes=num_nodes)
        case "none":
            return NoCache()
    raise ValueError(f"a policy is one of belady, lru, static, none, got {policy!r}")
