"""The candidate selector, cycle by cycle, driven by real queries and keys: A3, sections IV-C and V.

Queries are taken one after another; what several in flight do to each other is the business of the stage-level simulation, which
takes the cycles found here as its M (`SelectorTrace.busy_cycles`) and the candidates as its C (`num_candidates`).
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int32, Shaped

from a3_jax.cost.hardware import Hardware

Fill = Literal["shared", "own"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectorOptions:
    """The selector's sizes; the defaults are the paper's.

    Attributes:
      queue_depth: c, products that a column's queue holds, for the largest and for the smallest each.
      refill_latency: cycles from a pop to when the product that takes its place can be compared: the loop body's critical path.
      scan_width: greedy scores that a cycle of the scan looks at.
      fill: who multiplies to fill the queues before the first pop. "shared": the d multipliers of the dot product module and the
        d of the output module, a round of all columns a cycle; these modules cannot work on other queries in the meantime, which
        the paper leaves out. "own": the selector's two multipliers, d cycles a round.
      skip_heuristic: no minimum is taken while the sum of all entries taken, this iteration's maximum included, is negative.

    Raises:
      ValueError: a size is below 1, or `fill` is another word.
    """

    queue_depth: int = 4
    refill_latency: int = 4
    scan_width: int = 16
    fill: Fill = "shared"
    skip_heuristic: bool = True

    @classmethod
    def of(cls, hardware: Hardware, *, fill: Fill = "shared", skip_heuristic: bool = True) -> "SelectorOptions":
        """The selector of some hardware."""
        return cls(
            queue_depth=hardware.queue_depth,
            refill_latency=hardware.refill_latency,
            scan_width=hardware.scan_width,
            fill=fill,
            skip_heuristic=skip_heuristic,
        )

    def __post_init__(self) -> None:
        for name in ("queue_depth", "refill_latency", "scan_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, got {getattr(self, name)}")
        if self.fill not in ("shared", "own"):
            raise ValueError(f"fill is shared or own, got {self.fill!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectorTrace:
    """What the selector did, query by query. Cycles count from the start of the query's own filling.

    Sides are 0, the largest products, and 1, the smallest. Where a query took fewer iterations than the longest, or skipped a
    minimum, rows and columns are -1 and everything else is 0; pop cycles of iterations that did not happen are -1.

    Attributes:
      iterations: M, clamped to the valid rows times d.
      popped_rows: the row whose product was popped, in order.
      popped_columns: its column.
      popped_values: the product.
      pop_cycles: when, both sides in the same cycle.
      stalls: cycles that an iteration waited because a column's queue was empty, by the side that it waited for.
      greedy_scores: after the last pop.
      candidates: greedy score above 0.
      fill_cycles: before the first iteration can start.
      borrowed_cycles: of these, the ones that take the multipliers of the dot product module and of the output module.
      scan_cycles: from the end of the last iteration until all scores have been looked at.
      emit_cycles: when a candidate's row is sent on; -1 for the other rows.
    """

    iterations: Int32[np.ndarray, " queries"]
    popped_rows: Int32[np.ndarray, "queries 2 M"]
    popped_columns: Int32[np.ndarray, "queries 2 M"]
    popped_values: Shaped[np.ndarray, "queries 2 M"]
    pop_cycles: Int32[np.ndarray, "queries M"]
    stalls: Int32[np.ndarray, "queries 2 M"]
    greedy_scores: Shaped[np.ndarray, "queries n"]
    candidates: Bool[np.ndarray, "queries n"]
    fill_cycles: Int32[np.ndarray, " queries"]
    borrowed_cycles: Int32[np.ndarray, " queries"]
    scan_cycles: Int32[np.ndarray, " queries"]
    emit_cycles: Int32[np.ndarray, "queries n"]

    @property
    def stall_cycles(self) -> Int32[np.ndarray, " queries"]:
        """Of both sides and all iterations."""
        return self.stalls.sum((1, 2), dtype=np.int32)

    @property
    def busy_cycles(self) -> Int32[np.ndarray, " queries"]:
        """Iterations and stalls: what takes the place of M where cycles are counted."""
        return self.iterations + self.stall_cycles

    @property
    def total_cycles(self) -> Int32[np.ndarray, " queries"]:
        """Filling, iterations, stalls and scan."""
        return self.fill_cycles + self.busy_cycles + self.scan_cycles

    @property
    def num_candidates(self) -> Int32[np.ndarray, " queries"]:
        """C."""
        return self.candidates.sum(1, dtype=np.int32)


def simulate_selector(
    queries: Float32[np.ndarray, "queries d"] | Int32[np.ndarray, "queries d"],
    key: Float32[np.ndarray, "n d"] | Int32[np.ndarray, "n d"],
    mask: Bool[np.ndarray, "queries n"] | None = None,
    *,
    num_iterations: int,
    options: SelectorOptions = SelectorOptions(),
) -> SelectorTrace:
    """Pops, greedy scores and cycles of the candidate selector.

    A cycle takes, from the heads of the d queues of the largest products, the largest, and from those of the smallest the smallest;
    of equals the one in the lowest column, and within a column the one that is met first. What is popped is added to its row's greedy
    score if it is positive (largest) or negative (smallest). The product that follows in the column can be compared
    `refill_latency` cycles after the pop. An iteration waits while the queue of a column that has products left is empty, because
    nothing else says that the product on its way is not the next to be popped; with queues as deep as the refill takes, that never
    happens. An iteration that skips its minimum does not wait for that side. A column whose products are all popped drops out.

    Pops and scores are those of `greedy_scores(..., implementation="sequential")`, whatever the options: they decide the cycles.
    The scan looks at up to `scan_width` scores a cycle from where it stopped, and stops at a candidate, which it sends on. It
    starts when the last iteration has ended; the cycles in which that one's score is still on its way are not counted, as the
    paper's latency has no room for them.

    Args:
      queries: float32 or int32, scaled as selection should see them.
      key: of the same type.
      mask: which rows each query may use; all by default.
      num_iterations: M, at least 1; clamped to the valid rows times d.

    Raises:
      ValueError: types differ, a number is not finite, M is below 1, or integer scores might not fit 32 bits.

    Time O(n d log n) once, and O(M d) a query: about 0.1 s for 1,000 queries of M = 160, n = 320, d = 64, besides compiling once.
    Memory 44 bytes an iteration, 9 a row, of each query.
    """
    from a3_jax.cost.selector_kernel import run_scan, run_selector  # numba takes a second to import

    _require(queries, key, num_iterations)
    num_queries, (n, d) = len(queries), key.shape
    # Copies, writable and contiguous: numba compiles again for other layouts.
    queries, valid = (
        np.array(queries, order="C"),
        np.ones((num_queries, n), bool) if mask is None else np.array(mask, order="C"),
    )
    iterations = np.minimum(valid.sum(1) * d, num_iterations).astype(np.int32)
    longest = int(iterations.max(initial=0))
    order = np.argsort(key.T, axis=1, kind="stable")
    values = np.ascontiguousarray(np.take_along_axis(key.T, order, axis=1))
    rows = order.astype(np.int32)
    trace = _empty_trace(num_queries, n, longest, key.dtype, iterations, _fill_cycles(valid, d, options), options)
    failed = np.zeros(1, np.int8)
    for query in range(num_queries):
        run_selector(
            queries[query],
            values,
            rows,
            valid[query],
            options.queue_depth,
            options.refill_latency,
            options.skip_heuristic,
            int(iterations[query]),
            trace.greedy_scores[query],
            trace.popped_rows[query],
            trace.popped_columns[query],
            trace.popped_values[query],
            trace.pop_cycles[query],
            trace.stalls[query],
            failed,
        )
        trace.candidates[query] = trace.greedy_scores[query] > 0
        trace.scan_cycles[query] = run_scan(trace.candidates[query], options.scan_width, trace.emit_cycles[query])
    assert not failed[0], "columns ran out before the iterations did"
    _count_from_the_start(trace)
    return trace


def _require(queries: np.ndarray, key: np.ndarray, num_iterations: int) -> None:
    if queries.dtype != key.dtype:
        raise ValueError(f"queries and key should be of one type, got {queries.dtype} and {key.dtype}")
    if num_iterations < 1:
        raise ValueError(f"num_iterations should be at least 1, got {num_iterations}")
    if key.shape[0] == 0 or key.shape[1] == 0:
        raise ValueError(f"the key should have rows and columns, got {key.shape[0]} x {key.shape[1]}")
    if key.dtype.kind == "i":
        largest = np.abs(queries.astype(np.int64)) @ np.abs(key.astype(np.int64)).max(0)
        if largest.max(initial=0) >= 2**31:
            raise ValueError(f"a greedy score might reach {largest.max():,}, which 32 bits do not hold")
    elif not (np.isfinite(queries).all() and np.isfinite(key).all()):
        raise ValueError("queries and key should be finite")


def _fill_cycles(
    valid: Bool[np.ndarray, "queries n"], d: int, options: SelectorOptions
) -> Int32[np.ndarray, " queries"]:
    rounds = np.minimum(valid.sum(1), options.queue_depth)
    return (rounds if options.fill == "shared" else rounds * d).astype(np.int32)


def _empty_trace(
    num_queries: int,
    n: int,
    longest: int,
    dtype: np.dtype,
    iterations: Int32[np.ndarray, " queries"],
    fill_cycles: Int32[np.ndarray, " queries"],
    options: SelectorOptions,
) -> SelectorTrace:
    both = (num_queries, 2, longest)
    return SelectorTrace(
        iterations=iterations,
        popped_rows=np.full(both, -1, np.int32),
        popped_columns=np.full(both, -1, np.int32),
        popped_values=np.zeros(both, dtype),
        pop_cycles=np.full((num_queries, longest), -1, np.int32),
        stalls=np.zeros(both, np.int32),
        greedy_scores=np.zeros((num_queries, n), dtype),
        candidates=np.zeros((num_queries, n), bool),
        fill_cycles=fill_cycles,
        borrowed_cycles=fill_cycles.copy() if options.fill == "shared" else np.zeros_like(fill_cycles),
        scan_cycles=np.zeros(num_queries, np.int32),
        emit_cycles=np.full((num_queries, n), -1, np.int32),
    )


def _count_from_the_start(trace: SelectorTrace) -> None:
    """The loop counts from the first iteration, the scan from its own start."""
    happened = trace.pop_cycles >= 0
    trace.pop_cycles[happened] += np.broadcast_to(trace.fill_cycles[:, None], happened.shape)[happened]
    start = (trace.fill_cycles + trace.busy_cycles)[:, None]
    trace.emit_cycles[trace.candidates] += np.broadcast_to(start, trace.candidates.shape)[trace.candidates]
