"""The pipeline stage by stage, query by query: when each starts and ends, and what the stages wait for."""

import numpy as np
from jaxtyping import Real

from a3_jax.cost.cost import Cost
from a3_jax.cost.hardware import Hardware, Pipeline
from a3_jax.cost.pipeline_trace import PipelineTrace
from a3_jax.cost.preprocessing import preprocessing
from a3_jax.cost.query_cost import query_cost
from a3_jax.cost.stages import STAGES, stage_cycles
from a3_jax.cost.workload import Workload


def simulate(hardware: Hardware, workload: Workload, *, pipeline: Pipeline) -> PipelineTrace:
    """Every query's way through the stages, from one key's first query to the last; keys are sorted ahead of time.

    A stage takes queries in their order, works on one at a time for `stage_cycles`, and starts when it is free, when the stage
    before has ended, and when there is a buffer for its results. A buffer is taken from its writer's start to its reader's end, and
    there are two or, with single buffering, one (as many for each selector, where there are several; of these, the first that is
    free takes the next query). All queries are there at the start. Units with the same keys take the next query as soon as one can
    start (of several, the one that had fewest), units with keys of their own take every `units`-th.

    Where all queries are alike the end is at `run_cycles`, exactly. ValueError if the workload lacks M, C or K and they are needed.
    Time and memory O(queries): about 5 ms for 1,000.
    """
    by_stage = stage_cycles(hardware, workload, pipeline=pipeline)
    shape = (workload.num_queries,)
    cycles = np.stack([np.broadcast_to(by_stage[name], shape) for name in STAGES[pipeline]], 1)
    return simulate_stages(
        cycles,
        stages=STAGES[pipeline],
        first_servers=hardware.selectors if pipeline == "approximate" else 1,
        buffers=2 if hardware.buffering == "double" else 1,
        units=hardware.units,
        in_turn=hardware.unit_keys == "own",
    )


def simulate_stages(
    cycles: Real[np.ndarray, "queries stages"],
    *,
    stages: tuple[str, ...],
    first_servers: int = 1,
    buffers: int = 2,
    units: int = 1,
    in_turn: bool = False,
) -> PipelineTrace:
    """As `simulate`, for stages of any name, number and time; the first has `first_servers`, the others one.

    ValueError unless there is a query, a name for each stage, and at least one server, buffer and unit.
    """
    num_queries, num_stages = cycles.shape
    if not num_queries or len(stages) != num_stages or min(first_servers, buffers, units) < 1:
        raise ValueError(
            f"there should be a query, a name for each stage, a server, a buffer and a unit, got cycles of shape "
            f"{cycles.shape}, {len(stages)} names, {first_servers} servers, {buffers} buffers, {units} units"
        )
    servers = (first_servers, *[1] * (num_stages - 1))
    states = [_Unit(servers, buffers) for _ in range(units)]
    unit_of = np.empty(num_queries, np.int64)
    for query, row in enumerate(cycles.astype(np.float64).tolist()):
        index = query % units
        if not in_turn and units > 1:
            index = min(range(units), key=lambda unit: (states[unit].earliest_start(), len(states[unit].start), unit))
        unit_of[query] = index
        states[index].enter(row)
    start, finish = np.empty((2, num_queries, num_stages))
    server_of = np.empty((num_queries, num_stages), np.int64)
    for index, unit in enumerate(states):
        if unit.start:
            mine = unit_of == index
            start[mine], finish[mine], server_of[mine] = unit.start, unit.finish, unit.server
    return PipelineTrace(
        stages=stages,
        servers=servers,
        buffers=buffers,
        units=units,
        unit=unit_of,
        server=server_of,
        start=start,
        finish=finish,
    )


def run_cost(
    hardware: Hardware, workload: Workload, trace: PipelineTrace, *, pipeline: Pipeline, static_energy: bool = False
) -> Cost:
    """Of all queries of a simulated run: its cycles, the queries' shares of a sort besides, and the energy of these counts."""
    num_queries = workload.num_queries
    sort_cycles = preprocessing(hardware, workload).cycles if pipeline == "approximate" else 0.0
    interval = trace.total_cycles / num_queries + sort_cycles
    one = query_cost(hardware, workload, pipeline=pipeline, interval=interval, static_energy=static_energy)
    return one * num_queries


class _Unit:
    """One pipeline while queries enter it; the times of each depend on those before it alone."""

    def __init__(self, servers: tuple[int, ...], buffers: int) -> None:
        self.start: list[list[float]] = []
        self.finish: list[list[float]] = []
        self.server: list[list[int]] = []
        self._free = [[0.0] * number for number in servers]  # when each server ends, by stage
        self._buffers = [buffers * number for number in servers[:-1]]

    def earliest_start(self) -> float:
        """When the first stage could take one more query."""
        return max(min(self._free[0]), self._room(0))

    def enter(self, cycles: list[float]) -> None:
        """Adds a query that stays so long in each stage."""
        starts, finishes, servers, ready = [], [], [], 0.0
        for stage, duration in enumerate(cycles):
            free = min(self._free[stage])
            server = self._free[stage].index(free)
            begin = max(ready, free, self._room(stage))
            ready = self._free[stage][server] = begin + duration
            starts.append(begin)
            finishes.append(ready)
            servers.append(server)
        self.start.append(starts)
        self.finish.append(finishes)
        self.server.append(servers)

    def _room(self, stage: int) -> float:
        """When the next stage ends the query that is in the buffer to be written; the last stage always has room."""
        if stage == len(self._buffers):
            return 0.0
        before = len(self.finish) - self._buffers[stage]
        return self.finish[before][stage + 1] if before >= 0 else 0.0
