"""Throughput, latency, energy and area of the two pipelines by formula, for the steady state and, where queries are alike, a run."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from a3_jax.cost.cost import Cost
from a3_jax.cost.energy import active_cycles
from a3_jax.cost.hardware import Hardware, Pipeline
from a3_jax.cost.preprocessing import preprocessing
from a3_jax.cost.query_cost import query_cost
from a3_jax.cost.stages import dram_cycles, stage_cycles
from a3_jax.cost.workload import Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class Performance:
    """The steady state of a pipeline.

    Attributes:
      stage_cycles: mean cycles of a query in each stage of one unit, and what DRAM needs for it where it reads there.
      interval: mean cycles from one query to the next, all units together. Where queries differ this is the least there can be;
        `simulate` says what there is.
      latency: mean cycles of a query that meets an empty pipeline, its share of a sort included.
      preprocessing: cycles of that share; also part of `interval`.
      throughput: queries a second.
      utilisation: by module, the part of the time in which it works.
      bottleneck: the stage that sets the interval, two stages with "+" where they share a single buffer, "dram" or "preprocessing".
      cost: of one query.
    """

    pipeline: Pipeline
    stage_cycles: Mapping[str, float]
    interval: float
    latency: float
    preprocessing: float
    throughput: float
    utilisation: Mapping[str, float]
    bottleneck: str
    cost: Cost

    @property
    def estimated(self) -> frozenset[str]:
        """Names of the attributes, parts of `cost` included, that rest on an extrapolation."""
        times = {"stage_cycles", "interval", "latency", "preprocessing", "throughput", "utilisation", "bottleneck"}
        from_cost = {f"cost.{name}" for name in self.cost.estimated}
        return frozenset(from_cost | (times if "cycles" in self.cost.estimated else set()))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {
            "stage_cycles": dict(self.stage_cycles),
            "utilisation": dict(self.utilisation),
            "cost": self.cost.to_dict(),
            "estimated": sorted(self.estimated),
        }


def performance(
    hardware: Hardware, workload: Workload, *, pipeline: Pipeline, static_energy: bool = False
) -> Performance:
    """The steady state of the base pipeline (n + 9 cycles a query, 3 n + 27 of latency) or the approximate one.

    `static_energy` adds what leaks in the meantime, which the paper leaves out. ValueError if the workload lacks M, C or K and the
    pipeline needs them. Time and memory O(queries).
    """
    stages = {name: float(np.mean(c)) for name, c in stage_cycles(hardware, workload, pipeline=pipeline).items()}
    sort = preprocessing(hardware, workload) if pipeline == "approximate" else None
    sort_cycles = sort.cycles if sort else 0.0
    dram = float(np.mean(dram_cycles(hardware, workload, pipeline=pipeline)))
    limits = service_limits(hardware, stages)
    slowest = max(reversed(limits), key=lambda name: limits[name])
    interval = limits[slowest] / hardware.units + sort_cycles
    busy = {name: rows / hardware.copies[name] for name, rows in active_cycles(workload, pipeline=pipeline).items()}
    return Performance(
        pipeline=pipeline,
        stage_cycles=stages | ({"dram": dram} if dram else {}),
        interval=interval,
        latency=sum(stages.values()) + sort_cycles,
        preprocessing=sort_cycles,
        throughput=hardware.clock / interval,
        utilisation={name: cycles / (interval * hardware.units) for name, cycles in busy.items()},
        bottleneck=_bottleneck(slowest, limits[slowest], dram, sort_cycles * hardware.units),
        cost=query_cost(hardware, workload, pipeline=pipeline, interval=interval, static_energy=static_energy),
    )


def run_cycles(hardware: Hardware, workload: Workload, *, pipeline: Pipeline) -> float:
    """Cycles from the first query's start to the last one's end, fill and drain included, sorting ahead of time.

    With one selector this is latency + (queries - 1) interval. Several are not always full, so that here whole rounds are counted.
    ValueError unless all queries are alike (then `simulate`).
    """
    if not workload.is_constant:
        raise ValueError("the closed form of a run is for queries that are alike; simulate these")
    stages = {name: float(cycles[0]) for name, cycles in stage_cycles(hardware, workload, pipeline=pipeline).items()}
    more = -(-workload.num_queries // hardware.units) - 1  # of the unit that has most to do, after its first
    limits = service_limits(dataclasses.replace(hardware, selectors=1), stages)
    if pipeline == "base" or hardware.selectors == 1:
        return sum(stages.values()) + more * max(limits.values())
    selecting = {name: limits[name] for name in limits if name.startswith("selector")}
    others = max(cycles for name, cycles in limits.items() if name not in selecting)
    rounds = more // hardware.selectors if max(selecting.values()) > hardware.selectors * others else 0
    return sum(stages.values()) + rounds * max(selecting.values()) + (more - rounds * hardware.selectors) * others


def service_limits(hardware: Hardware, stages: Mapping[str, float]) -> dict[str, float]:
    """Cycles a query that each stage of a unit needs, or, handing over through a single buffer, each two neighbours.

    A single buffer is taken from the moment its writer starts until its reader ends.
    """
    servers = {name: hardware.selectors if name == "selector" else 1 for name in stages}
    limits = {name: cycles / servers[name] for name, cycles in stages.items()}
    if hardware.buffering == "single":
        names = list(stages)
        pairs = itertools.pairwise(names)
        limits |= {f"{a}+{b}": (stages[a] + stages[b]) / servers[a] for a, b in pairs}
    return limits


def _bottleneck(slowest: str, cycles: float, dram: float, sort_cycles: float) -> str:
    if sort_cycles > cycles:
        return "preprocessing"
    return "dram" if dram and cycles == dram else slowest
