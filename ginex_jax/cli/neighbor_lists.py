"""The graph that `ginex plan` and `ginex bench` sample: all lists in memory where they fit, else those that are used most."""

import numpy as np
from jaxtyping import Int64

from bandwise_commands.interrupts import Report
from ginex_jax.graph import Graph
from ginex_jax.store.dataset import Dataset


def count_uses(
    dataset: Dataset, *, memory_bytes: int, wanted: bool, progress: Report
) -> Int64[np.ndarray, " nodes"] | None:
    """How often every node is a neighbour; None where it is not `wanted` and the lists fit into memory."""
    if not wanted and _fit(dataset, memory_bytes):
        return None
    progress("counting uses", 0, 1)
    uses = dataset.graph.count_uses()
    progress("counting uses", 1, 1)
    return uses


def graph_within(dataset: Dataset, memory_bytes: int, uses: Int64[np.ndarray, " nodes"] | None) -> Graph:
    """With lists of at most `memory_bytes` in memory, by `uses` if they do not all fit."""
    if _fit(dataset, memory_bytes):
        return dataset.load_graph()
    dataset.graph.pin(memory_bytes, uses=uses)
    return dataset.graph


def _fit(dataset: Dataset, memory_bytes: int) -> bool:
    lists = (dataset.manifest.arrays[name] for name in ("indices", "weights") if name in dataset.manifest.arrays)
    return sum(entry.layout.nbytes for entry in lists) <= memory_bytes
