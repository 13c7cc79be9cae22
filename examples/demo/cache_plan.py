"""What a feature cache would save while a graph network is trained: misses by size and policy, without a feature being read."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from examples.demo.attention_map import svg_of
from examples.demo.report import FigureBlock, TableBlock
from ginex_jax.belady.simulation import Policy, simulate
from ginex_jax.sampling.samplers import NodeSampler
from ginex_jax.store.uses import most_used

SHARES = (0.02, 0.05, 0.1, 0.2)  # of the feature rows
POLICIES: dict[Policy, tuple[str, str]] = {  # what is kept, and a colour
    "belady": ("Belady", "#0072B2"),
    "static": ("static", "#009E73"),
    "lru": ("LRU", "#D55E00"),
}
Trace: TypeAlias = Sequence[np.ndarray]  # the node ids of every mini-batch


class Expected(NamedTuple):
    """What one cache would read."""

    policy: Policy
    capacity: int  # rows
    misses: int
    hit_rate: float


def trace_of(sampler: NodeSampler, epochs: int) -> Trace:
    """The nodes of every mini-batch of so many epochs, in order: the same ones that training will see."""
    return [
        sampler.sampled(epoch, index).node_ids.astype(np.int32)
        for epoch in range(epochs)
        for index in range(sampler.steps_per_epoch)
    ]


def expected_misses(trace: Trace, uses: np.ndarray, shares: Sequence[float] = SHARES) -> list[Expected]:
    """For every size and policy; `uses` says how often each node is a neighbour, by which the static policy chooses."""
    accesses, num_nodes = sum(len(ids) for ids in trace), len(uses)
    results = []
    for share in shares:
        capacity = int(share * num_nodes)
        hot_ids = most_used(uses, capacity)
        for policy in POLICIES:
            fixed = hot_ids if policy == "static" else None
            misses = simulate(trace, capacity=capacity, policy=policy, num_nodes=num_nodes, hot_ids=fixed)
            results.append(Expected(policy, capacity, int(misses.sum()), 1 - int(misses.sum()) / accesses))
    return results


def plan_table(results: Sequence[Expected], num_nodes: int) -> TableBlock:
    """A line for each size."""
    rows = []
    for capacity in dict.fromkeys(result.capacity for result in results):
        of_size = {result.policy: result for result in results if result.capacity == capacity}
        cells = [f"{of_size[policy].misses:,} ({of_size[policy].hit_rate:.1%})" for policy in POLICIES]
        rows.append([f"{capacity / num_nodes:.0%}", f"{capacity:,}", *cells])
    return TableBlock(
        header=("cache", "rows in it", *(name for name, _ in POLICIES.values())),
        rows=rows,
        look_at=(
            "Planning: rows that the whole training would read, and hit rates, by size and policy of the feature cache. "
            "No cache of the same size can read fewer than Belady's."
        ),
    )


def plan_figure(results: Sequence[Expected], num_nodes: int) -> FigureBlock:
    """Hit rate against cache size, a line for each policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.1, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for policy, (name, color) in POLICIES.items():
        points = [(100 * r.capacity / num_nodes, 100 * r.hit_rate) for r in results if r.policy == policy]
        axes.plot(*zip(*points, strict=True), marker="o", color=color, label=name)
    axes.set(xlabel="cache, % of the feature rows", ylabel="hits, % of the rows needed", xlim=(0, None), ylim=(0, 100))
    axes.legend()
    return FigureBlock(
        svg=svg_of(figure),
        description="Hit rate against the size of the feature cache, one line for each policy",
        look_at="The gap between the lines is what knowing the mini-batches beforehand is worth.",
    )
