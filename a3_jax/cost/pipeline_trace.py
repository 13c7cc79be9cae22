"""What a simulated run was: times, waits by cause, and the bounds that it lies between."""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

CAUSES = ("busy", "fill", "starved", "blocked", "drain")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PipelineTrace:
    """Times of a run in cycles from the start of its first query.

    Attributes:
      stages: their names, in order.
      servers: how many of each stage a unit has; only the first may have several.
      buffers: between two stages, for each of the writer's servers.
      units: pipelines side by side.
      unit: which one each query went through.
      server: which one of its stage took it.
      start, finish: of each query in each stage.
    """

    stages: tuple[str, ...]
    servers: tuple[int, ...]
    buffers: int
    units: int
    unit: Int64[np.ndarray, " queries"]
    server: Int64[np.ndarray, "queries stages"]
    start: Float64[np.ndarray, "queries stages"]
    finish: Float64[np.ndarray, "queries stages"]

    @property
    def total_cycles(self) -> float:
        """Until the last query has left."""
        return float(self.finish.max())

    @property
    def latencies(self) -> Float64[np.ndarray, " queries"]:
        """Cycles from a query's start in the first stage until it leaves."""
        return self.finish[:, -1] - self.start[:, 0]

    @functools.cached_property
    def accounts(self) -> dict[str, Float64[np.ndarray, "units stages"]]:
        """Where the time of every stage went, in cycles of its servers; the causes add up to servers times `total_cycles`.

        `busy`: working. `fill`: before a server's first query. `starved`: free, and the stage before had not ended the next query.
        `blocked`: that was there, but no buffer for the results. `drain`: after a server's last query.
        """
        accounts = {cause: np.zeros((self.units, len(self.stages))) for cause in CAUSES}
        for unit in range(self.units):
            for stage, servers in enumerate(self.servers):
                for server in range(servers):
                    for cause, cycles in self._account(unit, stage, server).items():
                        accounts[cause][unit, stage] += cycles
        return accounts

    @property
    def least_cycles(self) -> float:
        """What the unit that ends last needs at least: the mean time of its busiest stage, or of two around a single buffer, by query."""
        means = self._last_cycles.mean(0)
        limits = means / np.array(self.servers)
        if self.buffers == 1:
            pairs = (means[:-1] + means[1:]) / np.array(self.servers[:-1])
            limits = np.concatenate([limits, pairs])
        return float(limits.max() * len(self._last_cycles))

    @property
    def synchronous_cycles(self) -> float:
        """What that unit would need if all stages moved on together, at the pace of the slowest; with a single buffer every other one."""
        cycles, spacing = self._last_cycles, 2 if self.buffers == 1 else 1
        queries, stages = cycles.shape
        steps = np.zeros(spacing * (queries - 1) + stages)
        for stage in range(stages):
            places = stage + spacing * np.arange(queries)
            steps[places] = np.maximum(steps[places], cycles[:, stage])
        return float(steps.sum())

    @property
    def busiest_stage(self) -> str:
        """Of the unit that ends last, by work for each server; of equals the later one."""
        loads = self._last_cycles.sum(0) / np.array(self.servers)
        return self.stages[len(loads) - 1 - int(np.argmax(loads[::-1]))]

    @property
    def gap(self) -> dict[str, float]:
        """What the busiest stage did besides working, in cycles for each of its servers: `total_cycles` less its work, by cause."""
        stage = self.stages.index(self.busiest_stage)
        return {
            cause: float(self.accounts[cause][self._last_unit, stage] / self.servers[stage])
            for cause in CAUSES
            if cause != "busy"
        }

    def to_dict(self) -> dict[str, Any]:
        """A summary for JSON; waits are sums over units."""
        return {
            "queries": len(self.unit),
            "total_cycles": self.total_cycles,
            "least_cycles": self.least_cycles,
            "synchronous_cycles": self.synchronous_cycles,
            "mean_latency_cycles": float(self.latencies.mean()),
            "max_latency_cycles": float(self.latencies.max()),
            "busiest_stage": self.busiest_stage,
            "gap_cycles": self.gap,
            "stage_cycles": {
                name: {cause: float(cycles[:, stage].sum()) for cause, cycles in self.accounts.items()}
                for stage, name in enumerate(self.stages)
            },
        }

    @property
    def _last_unit(self) -> int:
        return int(self.unit[np.argmax(self.finish[:, -1])])

    @property
    def _last_cycles(self) -> Float64[np.ndarray, "queries stages"]:
        """Times in the stages, of the queries of the unit that ends last."""
        return (self.finish - self.start)[self.unit == self._last_unit]

    def _account(self, unit: int, stage: int, server: int) -> dict[str, float]:
        """Where the time of one server went."""
        mine = (self.unit == unit) & (self.server[:, stage] == server)
        if not mine.any():
            return {"drain": self.total_cycles}
        start, finish = self.start[mine, stage], self.finish[mine, stage]
        ready = self.finish[mine, stage - 1] if stage else np.zeros_like(start)
        able = np.maximum(ready[1:], finish[:-1])
        return {
            "busy": float((finish - start).sum()),
            "fill": float(start[0]),
            "starved": float((able - finish[:-1]).sum()),
            "blocked": float((start[1:] - able).sum()),
            "drain": self.total_cycles - float(finish[-1]),
        }
