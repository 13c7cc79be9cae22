"""Inference layer by layer over all nodes, with all their neighbours, in the memory that is given."""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from ginex_jax.features import ArrayFeatures, FeatureStore, require_within
from ginex_jax.graph import Graph
from ginex_jax.inference.hidden_features import HiddenFeatures, on_disk_bytes
from ginex_jax.inference.hot_rows import HOT_ROW_BYTES, HotRows
from ginex_jax.inference.layer_pass import LayerPass, TooLittleMemoryError, result_of
from ginex_jax.inference.node_blocks import targets_of
from ginex_jax.models.network import BlockNetwork
from ginex_jax.store.publishing import require_room
from ginex_jax.store.stored_graph import StoredGraph
from ginex_jax.store.uses import count_ids, most_used

Progress = Callable[[str, int, int], None]  # phase, nodes done, nodes in all
_EDGES_AT_ONCE = 1 << 20
_COUNTING_BYTES = 28  # a node: what choosing hot rows takes, before they are read


class NodeOutputs(NamedTuple):
    """What the last layer gives for some nodes, row by row."""

    node_ids: Int64[np.ndarray, " nodes"]
    outputs: Float32[np.ndarray, "nodes outputs"]


class _Width(NamedTuple):
    """Of the rows that a layer reads or gives."""

    width: int
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize


class _Plan(NamedTuple):
    passes: tuple[LayerPass, ...]
    spare_bytes: tuple[int, ...]  # of memory for hot rows, one a pass
    in_memory: bool  # hidden features are


def infer(
    model: BlockNetwork,
    parameters: Any,
    graph: Graph,
    features: FeatureStore,
    *,
    memory_bytes: int,
    nodes: Int64[np.ndarray, " nodes"] | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[NodeOutputs]:
    """Outputs of a trained model, exact: every layer sees all neighbours of every node, so that nothing is sampled.

    Every layer is computed for all nodes before the next one, as the textbooks do on whole graphs; the last one only for `nodes`. Nodes go
    through it in consecutive blocks. Of each block the distinct neighbours are read, those used most from memory, and the others from
    `features` or, for inner layers, from files in `scratch`. Where they fit into half of the memory, hidden features never touch the disk.

    Args:
      model: of `build_model`.
      parameters: of its `init`, or trained.
      graph: its lists may be on disk.
      features: one row a node.
      memory_bytes: for all that is allocated here, on the device too; not for what `graph`, `features`, parameters, libraries and the
        threads that read files hold.
      nodes: whose outputs are wanted, in this order and with repetitions; all, ascending, if not given.
      scratch: a folder for hidden features. Not needed where these fit into memory.
      progress: called with a phase, nodes done and all nodes of the phase.

    Returns:
      Blocks of nodes in order, and their outputs. Files in `scratch` are removed when it ends, fails or is closed.

    Raises:
      ValueError: features and graph do not match, or the memory is too little; the message says how much would do.
      OSError: the disk is too small, or failed.

    Reads every list once a layer and once more for choosing hot rows. Time O(layers * edges * features).
    """
    if features.shape[0] != graph.num_nodes:
        raise ValueError(f"features should be one row for each of {graph.num_nodes} nodes, got {features.shape}")
    if memory_bytes < 1:
        raise ValueError(f"memory_bytes should be at least 1, got {memory_bytes}")
    if nodes is not None:
        require_within(nodes, graph.num_nodes, "nodes")
    if graph.num_nodes == 0 or (nodes is not None and len(nodes) == 0):
        return iter(())
    widths = _widths(model, parameters, features)
    plan = _planned(model, parameters, graph, widths, nodes, memory_bytes, scratch is not None)
    if not plan.in_memory:
        assert scratch is not None
        require_room(scratch, _most_on_disk(graph.num_nodes, widths))
    return _outputs(plan, graph, features, widths, None if plan.in_memory else scratch, progress)


def least_memory(
    model: BlockNetwork,
    parameters: Any,
    graph: Graph,
    features: FeatureStore,
    nodes: Int64[np.ndarray, " nodes"] | None = None,
) -> int:
    """About the least `memory_bytes` with which `infer`, given a scratch folder, takes these arguments: what the longest list needs.

    Args:
      parameters: of their shapes and dtypes; values do not matter.

    Compiles a program for each layer.
    """
    least = 1
    for index, (width, dtype) in enumerate(_widths(model, parameters, features)[:-1]):
        targets = targets_of(graph, nodes if index == model.num_layers - 1 else None)
        layer = LayerPass(model, parameters, index, graph, targets, input_width=width, input_dtype=dtype)
        least = max(least, layer.least_bytes)
    return least


def _widths(model: BlockNetwork, parameters: Any, features: FeatureStore) -> tuple[_Width, ...]:
    """Of the input of every layer, and of the last one's output."""
    widths = [_Width(features.shape[1], np.dtype(features.dtype))]
    for index in range(model.num_layers):
        widths.append(_Width(*result_of(model, index, parameters, *widths[-1])))
    return tuple(widths)


def _planned(
    model: BlockNetwork,
    parameters: Any,
    graph: Graph,
    widths: Sequence[_Width],
    nodes: Int64[np.ndarray, " nodes"] | None,
    memory_bytes: int,
    has_scratch: bool,
) -> _Plan:
    """Hidden features stay in memory if they take at most half of it and leave enough for the longest list."""
    resident = [width.row_bytes * graph.num_nodes for width in widths]
    resident[0] = resident[-1] = 0  # the caller's
    in_use = [before + after for before, after in itertools.pairwise(resident)]

    def plan(in_memory: bool) -> _Plan:
        passes, spare, needed = [], [], 0
        for index, used in enumerate(in_use if in_memory else [0] * len(in_use)):
            targets = targets_of(graph, nodes if index == model.num_layers - 1 else None)
            width, dtype = widths[index]
            passes.append(LayerPass(model, parameters, index, graph, targets, input_width=width, input_dtype=dtype))
            try:
                passes[-1].fit(memory_bytes - used)
                spare.append(memory_bytes - used - passes[-1].working_bytes)
            except TooLittleMemoryError as error:
                needed = max(needed, used + error.needed)
        if needed:
            raise TooLittleMemoryError(needed)
        return _Plan(tuple(passes), tuple(spare), in_memory)

    most, needed = max(in_use), 0
    if 2 * most <= memory_bytes:
        try:
            return plan(in_memory=True)
        except TooLittleMemoryError as error:
            needed = error.needed
    if not has_scratch and most > 0:
        raise ValueError(
            f"memory_bytes should be at least {max(2 * most, needed):,} to hold hidden features of all nodes,"
            f" got {memory_bytes:,}: name a scratch folder for them"
        )
    try:
        return plan(in_memory=False)
    except TooLittleMemoryError as error:
        raise ValueError(
            f"memory_bytes should be at least {error.needed:,} for the longest list of neighbours, got {memory_bytes:,}"
        ) from None


def _most_on_disk(num_nodes: int, widths: Sequence[_Width]) -> int:
    """Bytes of the two hidden layers that are there at the same time."""
    sizes = [0, *(on_disk_bytes((num_nodes, width.width), width.dtype) for width in widths[1:-1]), 0]
    return max(before + after for before, after in itertools.pairwise(sizes))


def _outputs(
    plan: _Plan,
    graph: Graph,
    features: FeatureStore,
    widths: Sequence[_Width],
    scratch: Path | None,
    progress: Progress | None,
) -> Iterator[NodeOutputs]:
    with contextlib.ExitStack() as stack:
        folder = None
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".hidden-features-", dir=scratch)))
        choice, store, before = _HotChoice(graph), features, None
        for index, layer in enumerate(plan.passes):
            rows = choice.rows_of(store, layer, plan.spare_bytes[index])
            blocks = _reported(layer.run(rows), f"layer {index + 1} of {len(plan.passes)}", layer.num_targets, progress)
            if index == len(plan.passes) - 1:
                for node_ids, outputs in blocks:
                    yield NodeOutputs(node_ids, outputs)
                return
            width, dtype = widths[index + 1]
            hidden = HiddenFeatures(folder, f"layer{index + 1}", (graph.num_nodes, width), dtype)
            stack.callback(hidden.remove)
            for _, outputs in blocks:
                hidden.append(outputs)
            del rows
            if before is not None:
                before.remove()
            store, before = hidden.store(), hidden


def _reported(
    blocks: Iterator[tuple[np.ndarray, np.ndarray]], phase: str, total: int, progress: Progress | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    done = 0
    for node_ids, outputs in blocks:
        done += len(node_ids)
        if progress is not None:
            progress(phase, done, total)
        yield node_ids, outputs


class _HotChoice:
    """Which rows stay in memory: those that are neighbours most often, counted when first needed."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._uses = graph, None

    def rows_of(self, store: FeatureStore, layer: LayerPass, spare_bytes: int) -> HotRows:
        """The store, and what of it the spare memory holds: nothing where every row is read once or is in memory already."""
        num_nodes = self._graph.num_nodes
        row_bytes = store.shape[1] * np.dtype(store.dtype).itemsize + HOT_ROW_BYTES
        if isinstance(store, ArrayFeatures) or layer.num_blocks == 1:
            return HotRows(store, np.empty(0, np.int64))
        if spare_bytes >= num_nodes * row_bytes:
            return HotRows(store, np.arange(num_nodes))
        if spare_bytes < num_nodes * _COUNTING_BYTES:
            return HotRows(store, np.empty(0, np.int64))
        if self._uses is None:
            self._uses = _count_uses(self._graph)
        count = (spare_bytes - self._uses.nbytes) // row_bytes
        return HotRows(store, most_used(self._uses, count))


def _count_uses(graph: Graph) -> Int64[np.ndarray, " nodes"]:
    """How often each node is a neighbour."""
    if isinstance(graph, StoredGraph):
        return graph.count_uses()  # reads lists by the run
    starts = range(0, graph.num_edges, _EDGES_AT_ONCE)
    pieces = (graph.neighbors_at(np.arange(start, min(start + _EDGES_AT_ONCE, graph.num_edges))) for start in starts)
    return count_ids(pieces, graph.num_nodes)
