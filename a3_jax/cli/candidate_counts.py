"""C and K as functions of M and T: from the paper's figures, from given queries and keys, or as given."""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from a3_jax.cli.measuring import Inputs, measure
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.published import (
    CANDIDATE_FRACTION,
    KEPT_FRACTION,
    M_FRACTIONS,
    QUALITY_BY_M,
    QUALITY_BY_T,
    ROWS,
    THRESHOLDS,
    Task,
    published,
)
from a3_jax.cost.selector import SelectorOptions
from a3_jax.cost.workload import Workload


class Counted(NamedTuple):
    """A workload, and how the counts came about.

    `mass` is the part of the softmax that is kept, where queries and keys are given; `quality` the task's own, where the paper has it.
    """

    workload: Workload
    source: str
    mass: float | None = None
    quality: float | None = None


@runtime_checkable
class Counts(Protocol):
    """Where C and K come from."""

    @property
    def rows(self) -> float:
        """n where it is not swept."""
        ...

    def at(self, hardware: Hardware, *, n: float, m: float, t: float, **counts: float) -> Counted: ...


class PaperCounts:
    """Fractions of n read off the paper's figures 11 and 12, straight lines between its points.

    C / n by M / n; below the paper's least M, n / 8, a line to no candidate without an iteration. K / n by T on a logarithmic scale; it
    was measured without candidate selection, which makes it an upper bound, never above C. (At the paper's two settings K, as its energy
    bars tell, is between a third and three quarters of that.) Quality (accuracy on bAbI, mean average precision on WikiMovies, F1 on
    SQuAD) as if what M and T lose added up: the paper's six combined points are within 0.011.
    """

    def __init__(self, task: Task) -> None:
        self._task: Task = task

    @property
    def rows(self) -> float:
        return float(ROWS[self._task])

    def at(self, hardware: Hardware, *, n: float, m: float, t: float, **counts: float) -> Counted:
        """ValueError for M above n and T outside of 1 to 20 per cent, where the paper has no points."""
        _require_none(counts, "the paper's figures say")
        if m > n:
            raise ValueError(f"the paper counts candidates for M up to n = {n:g}, got {m:g}")
        if not THRESHOLDS[0] <= t <= THRESHOLDS[-1]:
            raise ValueError(f"the paper counts kept rows for T from 1 to 20 per cent, got {t:g}")
        candidates = n * np.interp(m / n, (0, *M_FRACTIONS[::-1]), (0, *CANDIDATE_FRACTION[self._task][::-1]))
        kept = n * np.interp(np.log(t), np.log(THRESHOLDS), KEPT_FRACTION[self._task])
        shared = ROWS["bert"] if self._task == "bert" else None
        workload = Workload(n=n, M=m, C=candidates, K=min(candidates, kept), queries_per_key=shared)
        below = "" if m >= n / 8 else ", C below n/8 by a straight line to 0"
        source = f"figures 11 and 12, digitised; K of post-scoring alone, an upper bound{below}"
        return Counted(workload, source, quality=self._quality(m / n, t))

    def _quality(self, fraction: float, t: float) -> float | None:
        """None below the paper's least M."""
        if fraction < M_FRACTIONS[-1]:
            return None
        by_m = np.interp(fraction, M_FRACTIONS[::-1], QUALITY_BY_M[self._task][::-1])
        by_t = np.interp(np.log(t), np.log(THRESHOLDS), QUALITY_BY_T[self._task])
        return float(by_m + by_t - published(self._task, "base", "quality").value)


class MeasuredCounts:
    """Of queries and a key, run through selector and post-scoring."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._measured = functools.lru_cache(maxsize=1024)(self._measure)

    @property
    def rows(self) -> float:
        return float(len(self._inputs.key))

    def at(self, hardware: Hardware, *, n: float, m: float, t: float, **counts: float) -> Counted:
        """ValueError for other n than the key's, and M that is not from 1 to n d."""
        _require_none(counts, "queries and key say")
        if n != self.rows:
            raise ValueError(f"the key has {self.rows} rows, got n = {n:g}")
        columns = self._inputs.key.shape[1]
        if columns > hardware.d:
            raise ValueError(f"the key has {columns} columns and the hardware d = {hardware.d}")
        if not 1 <= m <= n * columns:
            raise ValueError(f"M should be at least 1 and at most n d = {n * columns:g}, got {m:g}")
        options = SelectorOptions.of(hardware)
        workload, mass = self._measured(int(np.ceil(m)), t, options, hardware.fraction_bits)
        return Counted(workload, "measured", mass=mass)

    def _measure(self, m: int, t: float, options: SelectorOptions, fraction_bits: int) -> tuple[Workload, float]:
        unit = 1.0 if self._inputs.key.dtype.kind == "f" else 4.0**-fraction_bits
        found = measure(self._inputs, num_iterations=m, threshold_percent=t, options=options, unit=unit)
        return found.workload(), float(found.mass.mean())


class GivenCounts:
    """C and K as they are, whatever M and T; n and M too unless `explicit` has them, or M is not known."""

    def __init__(self, workload: Workload, explicit: Collection[str]) -> None:
        self._workload = workload
        self._explicit = explicit

    @property
    def rows(self) -> float:
        return float(self._workload.counts("n").mean())

    def at(self, hardware: Hardware, *, n: float, m: float, t: float, **counts: float) -> Counted:
        """`counts` may have C and K of this point; T decides nothing here. ValueError as `Workload` has them."""
        changes = counts | ({"n": n} if "n" in self._explicit else {})
        if "M" in self._explicit or self._workload.M is None:
            changes["M"] = m
        return Counted(dataclasses.replace(self._workload, **changes), "given")


def _require_none(counts: Mapping[str, float], who: str) -> None:
    if counts:
        raise ValueError(f"{who} what {min(counts)} is: leave it out")
