"""The cost of a query as a value, with the labels of what is extrapolated."""

import numpy as np

from a3_jax.cost.cost import Cost
from a3_jax.cost.energy import query_energy, unit_area
from a3_jax.cost.hardware import Hardware, Pipeline
from a3_jax.cost.preprocessing import preprocessing
from a3_jax.cost.stages import dram_cycles
from a3_jax.cost.workload import Workload


def query_cost(
    hardware: Hardware, workload: Workload, *, pipeline: Pipeline, interval: int | float, static_energy: bool = False
) -> Cost:
    """The mean query's cost if one ends every `interval` cycles, all units together; a share of a sort is part of that."""
    static_cycles = interval if static_energy else 0.0
    energy, estimated = query_energy(hardware, workload, pipeline=pipeline, static_cycles=static_cycles)
    area, area_is_estimated = unit_area(hardware, pipeline=pipeline)
    times = {"cycles", "seconds"} if times_are_estimated(hardware, workload, pipeline=pipeline) else set()
    return Cost(
        queries=1,
        cycles=interval,
        seconds=interval / hardware.clock,
        energy=energy,
        area=area * hardware.units,
        estimated=estimated | times | ({"area"} if area_is_estimated else set()),
    )


def times_are_estimated(hardware: Hardware, workload: Workload, *, pipeline: Pipeline) -> bool:
    """Whether cycles rest on something that the paper neither built nor measured.

    That is reading DRAM, several lanes or selectors, queues that run dry, a single buffer, and a sort on the chip or of another size.
    """
    streams = bool(np.any(dram_cycles(hardware, workload, pipeline=pipeline) > 0))
    if streams or hardware.lanes > 1 or hardware.buffering == "single":
        return True
    if pipeline == "base":
        return False
    runs_dry = hardware.queue_depth < hardware.refill_latency
    return hardware.selectors > 1 or runs_dry or preprocessing(hardware, workload).is_estimated
