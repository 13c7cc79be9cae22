"""Energy and area of a unit from the figures of its modules."""

import math
from typing import Literal

from a3_jax.cost.hardware import Hardware, Pipeline
from a3_jax.cost.modules import BASE_MODULE_NAMES, MODULE_NAMES
from a3_jax.cost.preprocessing import preprocessing, sorter_area, sorter_static_power
from a3_jax.cost.stages import dram_bytes
from a3_jax.cost.workload import Workload

# Which count says how long a module works (found from the bars of the paper's figure 15, which it gives within 2 %).
_WORKS: dict[str, Literal["M", "C", "K"]] = {
    "dot_product": "C",
    "exponent": "K",
    "output": "K",
    "selector": "M",
    "post_scoring": "K",
    "key_memory": "C",
    "value_memory": "K",
    "sorted_memory": "M",
}


def module_names(pipeline: Pipeline) -> tuple[str, ...]:
    """Modules that a pipeline consists of, in Table I's order."""
    return BASE_MODULE_NAMES if pipeline == "base" else MODULE_NAMES


def active_cycles(workload: Workload, *, pipeline: Pipeline) -> dict[str, float]:
    """Mean cycles a query in which each module works, if there is one of each: n for all, or M, C or K."""
    return {
        name: float(workload.counts("n" if pipeline == "base" else _WORKS[name]).mean())
        for name in module_names(pipeline)
    }


def query_energy(
    hardware: Hardware, workload: Workload, *, pipeline: Pipeline, static_cycles: int | float = 0.0
) -> tuple[dict[str, float], frozenset[str]]:
    """Joules of a query, and which of them are estimates.

    By module dynamic power times the cycles in which it works; `dram` for what does not fit the memories, `host_sort` or `sorter`
    for the query's share of a sort; and `<module>.static` for what all units leak in `static_cycles`, where that is not 0.
    """
    energy, estimated = {}, set()
    for name, cycles in active_cycles(workload, pipeline=pipeline).items():
        module = hardware.modules[name]
        energy[name] = module.dynamic_power * cycles / hardware.clock
        if "dynamic_power" in module.estimated:
            estimated.add(name)
        if static_cycles:
            copies = hardware.units * hardware.copies[name]
            energy[f"{name}.static"] = module.static_power * copies * static_cycles / hardware.clock
            if "static_power" in module.estimated or hardware.copies[name] > 1:
                estimated.add(f"{name}.static")
    if static_cycles and pipeline == "approximate" and hardware.sort == "chip":
        energy["sorter.static"] = sorter_static_power(hardware) * hardware.units * static_cycles / hardware.clock
        estimated.add("sorter.static")
    if moved := float(dram_bytes(hardware, workload, pipeline=pipeline).mean()):
        energy["dram"] = moved * hardware.dram_energy
        estimated.add("dram")
    if pipeline == "approximate" and (sort := preprocessing(hardware, workload)).energy:
        name = "sorter" if hardware.sort == "chip" else "host_sort"
        energy[name] = sort.energy
        if sort.is_estimated:
            estimated.add(name)
    return energy, frozenset(f"energy.{name}" for name in estimated)


def unit_area(hardware: Hardware, *, pipeline: Pipeline) -> tuple[float, bool]:
    """m^2 of one unit, and whether that is an estimate."""
    modules = [hardware.modules[name] for name in module_names(pipeline)]
    areas = [module.area * hardware.copies[module.name] for module in modules]
    estimated = any("area" in module.estimated or hardware.copies[module.name] > 1 for module in modules)
    if pipeline == "approximate" and hardware.sort == "chip":
        return math.fsum([*areas, sorter_area(hardware)]), True
    return math.fsum(areas), estimated
