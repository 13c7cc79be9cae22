"""One byte budget, and who gets how much of it. Pure arithmetic: what it needs to know of the graph is measured elsewhere."""

import dataclasses
from collections.abc import Sequence

_WAITING_SHARE = 0.15  # of what is left after the fixed parts: for batches that wait while the plan looks ahead
_MAX_WINDOW = 512
_MIN_WINDOW = 4
_RING_BATCHES = 4  # typical batches on their way at the same time
_HELD_BATCHES = 2  # that whoever trains may hold while the largest one is read
_RING_SHARE = 0.25
_SAMPLING_BYTES = 110  # a node of a batch, in each thread that samples
_UNPACKED_BATCHES = 3
_SLOT_BYTES = 16  # a node of a batch that waits, beside the batch: its slots, and what the planner needs to find them
_BUFFER_BYTES = 96 << 20  # of the threads that read, and of the interpreter's own small change


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demand:
    """What a run needs to know about itself before memory is split.

    Attributes:
      graph_bytes: that stay in memory whatever else happens: `indptr`.
      list_bytes: of all neighbour lists, should they be in memory.
      reserved_bytes: for what is not the loader's: labels, parameters, the compiled step.
      spare_share: part of what is left, when all have the least that they need, that goes beside `reserved_bytes`.
      row_bytes: of a feature row.
      num_rows: of the feature matrix.
      policy_node_bytes: of the cache policy's tables, for each node.
      policy_slot_bytes: the same for each slot.
      batch_rows: nodes of a typical batch.
      largest_batch_rows: that memory must be there for.
      batch_bytes: of a typical batch that waits to be planned.
      padded_batch_bytes: of one that is about to be used, without features.
      num_samplers: threads that sample.
      lookahead: whether the policy looks ahead.
      cached: whether it keeps any rows.
      steps: of the whole run: there is no looking beyond them.
    """

    graph_bytes: int
    list_bytes: int
    reserved_bytes: int
    row_bytes: int
    num_rows: int
    policy_node_bytes: int
    policy_slot_bytes: int
    batch_rows: int
    largest_batch_rows: int
    batch_bytes: int
    padded_batch_bytes: int
    num_samplers: int
    lookahead: bool
    steps: int
    cached: bool = True
    spare_share: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorySplit:
    """Bytes of one run, by purpose. They add up to at most the budget.

    Attributes:
      reserved: for what is not the loader's: at least this.
      spare: for the same.
      graph: `indptr`.
      lists: pinned neighbour lists, or all of them.
      cache: feature rows, `capacity` of them.
      policy: tables of the cache policy.
      waiting: batches that wait while the plan looks `window` batches ahead.
      ring: `ring_rows` feature rows of batches on their way.
      working: sampling, unpacked batches, buffers of the reading threads.
    """

    reserved: int
    spare: int
    graph: int
    lists: int
    cache: int
    policy: int
    waiting: int
    ring: int
    working: int
    capacity: int
    window: int
    ring_rows: int

    @property
    def total(self) -> int:
        loading = self.graph + self.lists + self.cache + self.policy + self.waiting + self.ring + self.working
        return self.reserved + self.spare + loading


def candidate_splits(memory_bytes: int, demand: Demand) -> list[MemorySplit]:
    """Ways to divide the budget between neighbour lists and feature rows, everything else alike; fewest lists first.

    Raises:
      ValueError: the budget is too small; the message says what the least is.
    """
    least = _least(demand)
    if memory_bytes < least:
        raise ValueError(
            f"{memory_bytes:,} bytes of memory are too few: {least:,} are the least for this graph and these batches; "
            "smaller batches or fan-outs need less"
        )
    window, ring_rows = _window(memory_bytes, demand), _ring_rows(memory_bytes, demand)
    fixed = _fixed(demand, window, ring_rows)
    fixed["spare"] = int((memory_bytes - least) * demand.spare_share)
    left = memory_bytes - sum(fixed.values())
    most_lists = min(demand.list_bytes, left)
    splits = []
    for eighths in range(9):
        lists = most_lists * eighths // 8
        slot_bytes = demand.row_bytes + demand.policy_slot_bytes
        capacity = min((left - lists) // slot_bytes, demand.num_rows) if demand.cached else 0
        splits.append(
            MemorySplit(
                **{**fixed, "policy": fixed["policy"] + capacity * demand.policy_slot_bytes},
                lists=lists,
                cache=capacity * demand.row_bytes,
                capacity=capacity,
                window=window,
                ring_rows=ring_rows,
            )
        )
    return splits


def best_split(splits: Sequence[MemorySplit], reads: Sequence[float]) -> MemorySplit:
    """The one with the fewest reads a batch, `reads` being those expected of each; of equals the one with the largest cache."""
    return min(zip(reads, range(len(splits)), splits, strict=True))[2]


def _least(demand: Demand) -> int:
    return sum(_fixed(demand, _least_window(demand), _least_ring_rows(demand)).values())


def _least_window(demand: Demand) -> int:
    return min(_MIN_WINDOW, max(1, demand.steps)) if demand.lookahead else 0


def _window(memory_bytes: int, demand: Demand) -> int:
    if not demand.lookahead:
        return 0
    left = memory_bytes - _least(demand)
    affordable = _least_window(demand) + int(left * _WAITING_SHARE) // _waiting_bytes(demand)
    return max(1, min(affordable, _MAX_WINDOW, demand.steps))


def _ring_rows(memory_bytes: int, demand: Demand) -> int:
    wanted = _RING_BATCHES * demand.batch_rows
    affordable = int((memory_bytes - _least(demand)) * _RING_SHARE) // demand.row_bytes
    least = _least_ring_rows(demand)
    return max(least, min(wanted, least + affordable))


def _least_ring_rows(demand: Demand) -> int:
    return demand.largest_batch_rows + _HELD_BATCHES * demand.batch_rows


def _waiting_bytes(demand: Demand) -> int:
    return demand.batch_bytes + _SLOT_BYTES * demand.batch_rows


def _fixed(demand: Demand, window: int, ring_rows: int) -> dict[str, int]:
    on_their_way = 2 * demand.num_samplers + 16  # between sampler and planner, and between planner and reader
    return {
        "reserved": demand.reserved_bytes,
        "graph": demand.graph_bytes,
        "policy": demand.policy_node_bytes * demand.num_rows,
        "waiting": (window + on_their_way) * _waiting_bytes(demand),
        "ring": ring_rows * demand.row_bytes,
        "working": (
            _SAMPLING_BYTES * demand.num_samplers * demand.batch_rows
            + _UNPACKED_BATCHES * demand.padded_batch_bytes
            + _BUFFER_BYTES
        ),
    }
