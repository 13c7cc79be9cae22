"""From a dataset and a byte budget to a loader: samples a few batches to learn what they need, then divides the memory."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import jax
import numpy as np
from jaxtyping import Integer

from ginex_jax.batch import BatchShape, padded
from ginex_jax.belady.policies import LruPolicy, NoCache, StaticPolicy
from ginex_jax.belady.rolling import RollingPlanner
from ginex_jax.belady.steps import CachePolicy
from ginex_jax.features import FeatureStore
from ginex_jax.graph import Graph
from ginex_jax.pipeline.disk_loader import DiskLoader
from ginex_jax.pipeline.memory_split import Demand, MemorySplit, best_split, candidate_splits
from ginex_jax.pipeline.packed_batch import PackedBatch, pack, unpack
from ginex_jax.sampling.samplers import BatchSampler
from ginex_jax.sampling.shapes import PILOT_EPOCH
from ginex_jax.sampling.source import shape_for
from ginex_jax.store.dataset import Dataset
from ginex_jax.store.pinned_lists import would_choose
from ginex_jax.store.stored_graph import StoredGraph
from ginex_jax.store.uses import most_used

PolicyName: TypeAlias = Literal["belady", "lru", "static", "none"]
Phase: TypeAlias = Callable[[str], None]

_SAMPLES = 8  # batches that the split is judged by
_NUM_USES = 1 << 16  # uses are counted up to this when rows are ranked


@dataclasses.dataclass(frozen=True)
class OpenedLoader:
    """A loader, how its memory is divided, and the graph that it samples, with the neighbour lists that are in memory."""

    loader: DiskLoader
    split: MemorySplit
    graph: Graph


def open_loader(
    dataset: Dataset,
    make_sampler: Callable[[Graph, Sequence[BatchShape] | None], BatchSampler],
    *,
    memory_bytes: int,
    reserved_bytes: Callable[[BatchSampler], int] = lambda sampler: 0,
    spare_share: float = 0.0,
    policy: PolicyName = "belady",
    steps: int = 2**63 - 1,
    shapes: Sequence[BatchShape] | None = None,
    num_samplers: int = 2,
    phase: Phase = lambda name: None,
) -> OpenedLoader:
    """Opens a dataset for training within a budget.

    Neighbour lists and feature rows share what other parts leave: of several divisions the one that needs the fewest reads from disk
    for a few sampled batches, by how often nodes occur as neighbours.

    Args:
      dataset: with features.
      make_sampler: of the run's mini-batches, from a graph and, once they are known, their shapes: a `NodeSampler`, say.
      memory_bytes: for all that the loader holds: lists, cache, tables, batches on their way, buffers. The interpreter and its libraries
        come on top.
      reserved_bytes: of these, what others need: labels, parameters, the compiled step; asked once the sampler knows its shapes.
      spare_share: part of what is left, when all have the least that they need, that they get too: `MemorySplit.spare`.
      policy: which rows the cache keeps; "belady" looks ahead.
      steps: of the whole run, if known: there is no use in looking further ahead.
      shapes: those of the sampler of a run that goes on.
      num_samplers: threads that sample.
      phase: told what is being done, for whoever waits.

    Raises:
      ValueError: no features, or too little memory; the message says how much is needed.
      OSError: the disk failed.

    Time: one pass over the neighbour lists, some 24 sampled batches, and reading the lists to be kept.
    """
    features = dataset.open_features()  # of its own: its counts are the run's
    if features is None:
        raise ValueError(f"{dataset.path} has no features: ingest it again with --features")
    graph = dataset.graph
    phase("counting neighbours")
    uses = graph.count_uses()
    phase("sampling a few batches")
    graph.pin(memory_bytes // 4, uses=uses)
    sampler = make_sampler(graph, shapes)
    samples = _samples(sampler)
    reserved = reserved_bytes(sampler)
    demand = _demand(graph, features, samples, sampler.shapes, policy, num_samplers, reserved, steps)
    demand = dataclasses.replace(demand, spare_share=spare_share)
    splits = candidate_splits(memory_bytes, demand)
    split = best_split(splits, _expected_reads(graph, uses, samples, splits))
    phase("reading neighbour lists")
    lists = _with_lists(dataset, graph, uses, split, all_bytes=demand.list_bytes)
    loader = DiskLoader(
        make_sampler(lists, sampler.shapes),
        features,
        make_policy=policy_maker(
            policy, capacity=split.capacity, num_nodes=graph.num_nodes, window=split.window, uses=uses
        ),
        ring_rows=split.ring_rows,
        num_samplers=num_samplers,
    )
    return OpenedLoader(loader, split, lists)


def largest_expected(shapes: Sequence[BatchShape]) -> BatchShape:
    """The one that memory is kept for: the last; with all neighbours, which may be the whole graph, that of four times what was seen."""
    is_bounded = all(rows is None for rows in shapes[-1].degree_rows)
    return shapes[-1] if is_bounded or len(shapes) == 1 else shapes[-2]


def _samples(sampler: BatchSampler) -> list[PackedBatch]:
    numbers = [divmod(number, sampler.steps_per_epoch) for number in range(_SAMPLES)]
    return [pack(sampler.sampled(PILOT_EPOCH - epoch, index)) for epoch, index in numbers]


def _demand(
    graph: StoredGraph,
    features: FeatureStore,
    samples: Sequence[PackedBatch],
    shapes: Sequence[BatchShape],
    policy: PolicyName,
    num_samplers: int,
    reserved_bytes: int,
    steps: int,
) -> Demand:
    largest = max(samples, key=lambda batch: len(batch.node_ids))
    node_bytes, slot_bytes = _TABLE_BYTES[policy]
    return Demand(
        graph_bytes=graph.indptr.nbytes,
        list_bytes=graph.num_edges * graph.edge_bytes,
        reserved_bytes=reserved_bytes,
        row_bytes=features.shape[1] * features.dtype.itemsize,
        num_rows=graph.num_nodes,
        policy_node_bytes=node_bytes,
        policy_slot_bytes=slot_bytes,
        batch_rows=shape_for(largest.shape, shapes).level_sizes[-1],
        largest_batch_rows=largest_expected(shapes).level_sizes[-1],
        batch_bytes=largest.nbytes,
        padded_batch_bytes=_padded_bytes(largest, shapes),
        num_samplers=num_samplers,
        lookahead=policy == "belady",
        cached=policy != "none",
        steps=steps,
    )


def _padded_bytes(batch: PackedBatch, shapes: Sequence[BatchShape]) -> int:
    blocks = padded(unpack(batch), shape_for(batch.shape, shapes)).blocks
    return sum(array.nbytes for array in jax.tree.leaves(blocks))


def _expected_reads(
    graph: StoredGraph,
    uses: Integer[np.ndarray, " nodes"],
    samples: Sequence[PackedBatch],
    splits: Sequence[MemorySplit],
) -> list[float]:
    """Reads of a batch: lists that are not in memory, hop by hop, and rows that a cache of the most used ones would not hold."""
    rows = np.concatenate([batch.node_ids for batch in samples]).astype(np.int64)
    lists = np.concatenate([batch.node_ids[:size] for batch in samples for size in batch.level_sizes[:-1]])
    lists = lists.astype(np.int64)
    lists = lists[graph.indptr[lists + 1] > graph.indptr[lists]]
    sizes = [split.lists for split in splits]
    pinned = would_choose(graph.indptr, uses, lists, edge_bytes=graph.edge_bytes, memory_bytes=sizes)
    cold = _cold_rows(uses, uses[rows], [split.capacity for split in splits])
    all_lists = graph.num_edges * graph.edge_bytes
    list_reads = [
        0 if split.lists >= all_lists else int((~chosen).sum()) for split, chosen in zip(splits, pinned, strict=True)
    ]
    return [(reads + missed) / len(samples) for reads, missed in zip(list_reads, cold, strict=True)]


def _cold_rows(
    uses: Integer[np.ndarray, " nodes"], row_uses: Integer[np.ndarray, " rows"], capacities: Sequence[int]
) -> list[int]:
    """How many of the rows are not among the `capacity` most used ones, for each capacity."""
    counts = np.zeros(_NUM_USES, np.int64)
    for start in range(0, len(uses), 1 << 20):
        counts += np.bincount(np.minimum(uses[start : start + (1 << 20)], _NUM_USES - 1), minlength=_NUM_USES)
    hottest = np.cumsum(counts[::-1])  # nodes used at least so often, from the most used down
    rows = np.bincount(np.minimum(row_uses, _NUM_USES - 1), minlength=_NUM_USES)[::-1]
    held = np.concatenate([[0], np.cumsum(rows)])
    return [len(row_uses) - int(held[np.searchsorted(hottest, capacity, side="right")]) for capacity in capacities]


def _with_lists(
    dataset: Dataset, graph: StoredGraph, uses: Integer[np.ndarray, " nodes"], split: MemorySplit, *, all_bytes: int
) -> Graph:
    if split.lists >= all_bytes:
        graph.pin(0)
        return dataset.load_graph()
    graph.pin(split.lists, uses=uses)
    return graph


def policy_maker(
    policy: PolicyName, *, capacity: int, num_nodes: int, window: int, uses: Integer[np.ndarray, " nodes"] | None
) -> Callable[[], CachePolicy]:
    """What makes a cache policy of `capacity` rows, empty at first.

    Args:
      window: batches that "belady" sees ahead.
      uses: how often each node occurs as a neighbour; "static" needs it.

    Raises:
      ValueError: "static" without `uses`.
    """
    if policy == "none" or capacity == 0:
        return NoCache
    if policy == "lru":
        return functools.partial(LruPolicy, capacity=capacity, num_nodes=num_nodes)
    if policy == "static":
        if uses is None:
            raise ValueError("the static policy needs to know how often nodes are used")
        return functools.partial(StaticPolicy, most_used(uses, capacity), num_nodes=num_nodes)
    return functools.partial(RollingPlanner, capacity=capacity, num_nodes=num_nodes, window=window, commit=1)


# Of each policy, bytes a node and bytes a slot; their `nbytes` says the same afterwards.
_TABLE_BYTES: dict[PolicyName, tuple[int, int]] = {"belady": (10, 21), "lru": (4, 16), "static": (4, 1), "none": (0, 0)}
