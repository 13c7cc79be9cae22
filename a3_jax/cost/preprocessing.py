"""Sorting the key: what it adds to a query's time and energy."""

import math
from typing import NamedTuple

from a3_jax.cost.hardware import Hardware
from a3_jax.cost.workload import Workload


class Preprocessing(NamedTuple):
    """A query's share of one sort."""

    cycles: float = 0.0
    energy: float = 0.0  # joules
    is_estimated: bool = False


def preprocessing(hardware: Hardware, workload: Workload) -> Preprocessing:
    """The share of a sort that every query of its key bears; nothing where keys are sorted ahead of time.

    The pipeline waits for a sort (so the paper's 7 % and 24 % for BERT). A host sorts one key after another for all units; a sorter
    is part of each unit, and units with keys of their own sort at the same time.
    """
    if workload.queries_per_key is None:
        return Preprocessing()
    n = float(workload.counts("n").mean())
    share = 1 / workload.queries_per_key
    if hardware.sort == "chip":
        cycles = sorter_cycles(hardware, n)
        own = hardware.units if hardware.unit_keys == "own" else 1
        return Preprocessing(cycles * share / own, cycles * share * _sorter_power(hardware) / hardware.clock, True)
    seconds = hardware.host_sort_time * _sort_work(n) / _sort_work(hardware.n)
    return Preprocessing(
        seconds * hardware.clock * share, seconds * share * hardware.host_sort_power, is_estimated=n != hardware.n
    )


def sorter_cycles(hardware: Hardware, n: int | float) -> float:
    """Cycles of our sorter for a key of n rows, an estimate: ceil(log2 n) merging passes over n d words, `sorter_width` a cycle."""
    return max(1, math.ceil(math.log2(n))) * n * hardware.d / hardware.sorter_width


def sorter_area(hardware: Hardware) -> float:
    """m^2 of our sorter, an estimate: as post-scoring, which subtracts and compares `post_scoring_width` words a cycle."""
    return hardware.modules["post_scoring"].area * _sorter_ratio(hardware)


def sorter_static_power(hardware: Hardware) -> float:
    """Watts that our sorter leaks, an estimate as its area."""
    return hardware.modules["post_scoring"].static_power * _sorter_ratio(hardware)


def _sorter_power(hardware: Hardware) -> float:
    """Watts: comparators, and a sorted memory that is read and written; Table I's gives the selector two entries a cycle."""
    comparators = hardware.modules["post_scoring"].dynamic_power * _sorter_ratio(hardware)
    return comparators + hardware.modules["sorted_memory"].dynamic_power * hardware.sorter_width


def _sorter_ratio(hardware: Hardware) -> float:
    return hardware.sorter_width / hardware.post_scoring_width


def _sort_work(n: int | float) -> float:
    """Comparisons of a column, up to a factor."""
    return n * max(1.0, math.log2(n))
