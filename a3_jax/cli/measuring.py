"""M, C and K of real queries and keys, counted by running the selector and post-scoring on them."""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from a3_jax.cli.files import read_array
from a3_jax.cost.selector import SelectorOptions, SelectorTrace, simulate_selector
from a3_jax.cost.workload import Workload


class Inputs(NamedTuple):
    """Queries and the key that they share, both float32 or both int32."""

    queries: Shaped[np.ndarray, "queries d"]
    key: Shaped[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What A3 does with some inputs.

    Attributes:
      queue_depth: of the selector.
      trace: of the selector.
      candidates: rows that get their score; where the selector finds none, the one whose product was popped first.
      kept: of these the rows that post-scoring keeps.
      mass: of every query, the part of the softmax over all rows that the kept ones have.
    """

    queue_depth: int
    trace: SelectorTrace
    candidates: Bool[np.ndarray, "queries n"]
    kept: Bool[np.ndarray, "queries n"]
    mass: Float64[np.ndarray, " queries"]

    @property
    def num_candidates(self) -> Int64[np.ndarray, " queries"]:
        """C."""
        return self.candidates.sum(1)

    @property
    def num_kept(self) -> Int64[np.ndarray, " queries"]:
        """K."""
        return self.kept.sum(1)

    def workload(self) -> Workload:
        """One entry a query.

        Cycles in which the selector waits, or fills its queues for longer than a cycle a round, count as iterations.
        """
        rounds = np.minimum(self.trace.fill_cycles, self.queue_depth)
        return Workload(
            n=self.candidates.shape[1],
            M=self.trace.busy_cycles + self.trace.fill_cycles - rounds,
            C=self.num_candidates,
            K=self.num_kept,
            origin="measured",
        )


def read_inputs(key: Path, query: Path, *, scale: float = 1.0) -> Inputs:
    """`[n, d]` and `[queries, d]` of .npy files. Integers stay as they are; ValueError if they were to be scaled, or widths differ."""
    keys, queries = read_array(key, ndim=2), read_array(query, ndim=2)
    if keys.shape[1] != queries.shape[1]:
        raise ValueError(f"{key} has {keys.shape[1]} columns and {query} has {queries.shape[1]}: they should be alike")
    if not 0 < scale < math.inf:
        raise ValueError(f"--scale should be above 0 and finite, got {scale}")
    if keys.dtype.kind == "f" or queries.dtype.kind == "f":
        return Inputs(queries.astype(np.float32) * np.float32(scale), keys.astype(np.float32))
    if scale != 1:
        raise ValueError("--scale is for floats: these are integers")
    for file, array in ((key, keys), (query, queries)):
        if abs(array.astype(np.float64)).max() >= 2**31:
            raise ValueError(f"{file} has integers that 32 bits do not hold")
    return Inputs(queries.astype(np.int32), keys.astype(np.int32))


def random_inputs(num_queries: int, n: int, d: int, seed: int) -> Inputs:
    """Independent normal numbers, queries scaled by 1 / sqrt(d): no structure, so that post-scoring keeps many rows."""
    for name, value in (("--random", num_queries), ("--n", n), ("d", d)):
        if value < 1:
            raise ValueError(f"{name} should be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"--seed should be at least 0, got {seed}")
    rng = np.random.default_rng(seed)
    key = rng.standard_normal((n, d), np.float32)
    return Inputs(rng.standard_normal((num_queries, d), np.float32) / np.float32(math.sqrt(d)), key)


def measure(
    inputs: Inputs, *, num_iterations: int, threshold_percent: float | None, options: SelectorOptions, unit: float = 1.0
) -> Measured:
    """Candidates of the selector, and of these the rows whose weight is at least so many per cent of the largest; all with None.

    `unit` is what 1 in a score stands for: a fixed-point format's 2^-2f. ValueError for a threshold that is not in (0, 100].
    """
    if threshold_percent is not None and not 0 < threshold_percent <= 100:
        raise ValueError(f"T should be above 0 and at most 100 per cent, got {threshold_percent}")
    trace = simulate_selector(inputs.queries, inputs.key, num_iterations=num_iterations, options=options)
    candidates = trace.candidates.copy()
    none = np.flatnonzero(~candidates.any(1))
    candidates[none, trace.popped_rows[none, 0, 0]] = True
    scores = inputs.queries.astype(np.float64) @ inputs.key.astype(np.float64).T * unit
    best = np.where(candidates, scores, -np.inf).max(1, keepdims=True)
    allowed = math.inf if threshold_percent is None else math.log(100 / threshold_percent)
    kept = candidates & (best - scores <= allowed)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    mass = (weights * kept).sum(1) / weights.sum(1)
    return Measured(queue_depth=options.queue_depth, trace=trace, candidates=candidates, kept=kept, mass=mass)
