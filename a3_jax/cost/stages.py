"""How long a query stays in each stage of the two pipelines."""

import math

import numpy as np
from jaxtyping import Float64

from a3_jax.cost.hardware import Hardware, Pipeline
from a3_jax.cost.workload import Workload

STAGES: dict[Pipeline, tuple[str, ...]] = {
    "base": ("dot_product", "exponent", "output"),
    "approximate": ("selector", "dot_product", "exponent", "output"),
}

Cycles = Float64[np.ndarray, " queries"]


def stage_constants(hardware: Hardware) -> dict[str, int]:
    """Cycles of each stage of the approximate pipeline that do not depend on the query.

    The selector's is c, the rounds that fill its queues. The dot product's is one for the products and one a level of its adder tree. The
    exponent's is subtract, look up, multiply. The output's is division and accumulation. By default 4, 7, 3 and 9.
    """
    return {
        "selector": hardware.queue_depth,
        "dot_product": 1 + math.ceil(math.log2(hardware.d)),
        "exponent": hardware.exponent_latency,
        "output": hardware.division_latency + hardware.mac_latency,
    }


def latency_constant(hardware: Hardware) -> int:
    """alpha of "latency = M + C + 2 K + alpha" (section V): the sum of `stage_constants`, 23 by default."""
    return sum(stage_constants(hardware).values())


def stage_cycles(hardware: Hardware, workload: Workload, *, pipeline: Pipeline) -> dict[str, Cycles]:
    """Cycles by stage, one entry a query or one for all, waiting not counted.

    Base (section III): every stage is built to take as long as the last, n rows and the latency of division and accumulation.
    Approximate (section V): M, C, K, K rows, each with its constant; the scan for candidates feeds the dot product, and
    post-scoring the exponent, so that these take no less than n and C over the width. A stage that reads DRAM takes at least as
    long as DRAM needs for everything the query reads there: bandwidth is divided in proportion.
    """
    wait = dram_cycles(hardware, workload, pipeline=pipeline)
    if pipeline == "base":
        rows = _in_lanes(workload.counts("n"), hardware)
        busy = rows + hardware.division_latency + hardware.mac_latency
        return {"dot_product": np.maximum(busy, wait), "exponent": busy, "output": np.maximum(busy, wait)}
    constants, kept = stage_constants(hardware), _in_lanes(workload.counts("K"), hardware)
    scan = np.ceil(workload.counts("n") / hardware.scan_width)
    post_scoring = np.ceil(workload.counts("C") / hardware.post_scoring_width)
    rows = {
        "selector": workload.counts("M"),
        "dot_product": np.maximum(_in_lanes(workload.counts("C"), hardware), scan),
        "exponent": np.maximum(kept, post_scoring),
        "output": kept,
    }
    busy = {name: rows[name] + constants[name] for name in rows}
    return {name: cycles if name == "exponent" else np.maximum(cycles, wait) for name, cycles in busy.items()}


def dram_bytes(hardware: Hardware, workload: Workload, *, pipeline: Pipeline) -> Cycles:
    """Bytes a query reads from DRAM: its reads, in the share of rows that the memories do not hold.

    Base: every row of key and value. Approximate: 2 M sorted entries, C keys and K values, as if rows were met evenly; an estimate.
    """
    n = workload.counts("n")
    outside = np.maximum(n - hardware.geometry.sram_rows, 0) / n
    if pipeline == "base":
        return outside * 2 * n * hardware.row_bytes
    rows = workload.counts("C") + workload.counts("K")
    return outside * (2 * workload.counts("M") * hardware.entry_bytes + rows * hardware.row_bytes)


def dram_cycles(hardware: Hardware, workload: Workload, *, pipeline: Pipeline) -> Cycles:
    """Cycles that DRAM needs for a query of one unit, all units reading at once."""
    seconds = dram_bytes(hardware, workload, pipeline=pipeline) * hardware.units / hardware.dram_bandwidth
    return seconds * hardware.clock


def _in_lanes(rows: Cycles, hardware: Hardware) -> Cycles:
    """Cycles for so many rows. With one lane an average stays the average it is."""
    return rows if hardware.lanes == 1 else np.ceil(rows / hardware.lanes)
