"""One layer over many nodes: in blocks whose shapes, programs and memory are known before the first is computed."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Float32, Int64, Integer, Shaped

from ginex_jax.batch import (
    COMBINE_WIDTHS,
    TABLE_WIDTHS,
    BatchShape,
    DegreeBlock,
    DegreeRows,
    DegreeTable,
    grown,
    padded,
)
from ginex_jax.graph import CSCGraph, Graph
from ginex_jax.inference.hot_rows import HotRows
from ginex_jax.inference.node_blocks import Targets, block_shapes, cut, longest_list_shape, num_places
from ginex_jax.models.network import BlockNetwork
from ginex_jax.sampling.neighbors import sample_batch
from ginex_jax.store.direct_reads import aligned_bytes

# Host memory of a block besides features: of a source for numbering (see `sample_batch`) and for reading; of a place in a table, before
# and after padding; of an edge for its position, and its neighbour on the way from the disk.
_SOURCE_BYTES, _PLACE_BYTES, _EDGE_BYTES = 210, 10, 40
_MAX_PROGRAMS = 64  # kept for the next call: a model is evaluated after every epoch
_SHIFTS = (0, 2)  # programs for the same tables: with room for all sources that there can be, and for a quarter


class TooLittleMemoryError(ValueError):
    """`needed` bytes are the least that would do."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"one block takes {needed} bytes")
        self.needed = needed


class LayerPass:
    """Computes layer `index` of a model for some nodes, with all their neighbours. Exact but for the order of sums.

    Attributes:
      working_bytes: of memory that a block takes at most, on the host and on a CPU that computes; the hot rows come on top.
    """

    def __init__(
        self,
        model: BlockNetwork,
        parameters: Any,
        index: int,
        graph: Graph,
        targets: Targets,
        *,
        input_width: int,
        input_dtype: np.dtype[Any],
    ) -> None:
        """`fit` comes next."""
        self.index, self._parameters = index, parameters
        self._graph, self._targets, self._needs_degrees = without_weights(graph), targets, model.needs_degrees
        self._width, self._dtype = input_width, np.dtype(input_dtype)
        leaves, structure = jax.tree.flatten(parameters)
        self._parameter_bytes = sum(leaf.nbytes for leaf in leaves)
        kinds = tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves)
        self._step = functools.partial(_compiled, cast(Any, model), index, structure, kinds, input_width, self._dtype)
        self._bounds: list[int] = []
        self._shapes: list[BatchShape] = []
        self.working_bytes = 0

    @property
    def least_bytes(self) -> int:
        """Memory that the longest list needs; lists of similar length may need a little more."""
        return 2 * self._longest_bytes()

    def fit(self, memory_bytes: int) -> None:
        """Cuts the nodes into blocks that take at most half of the memory, or all of it where a long list makes that necessary.

        Raises:
          TooLittleMemoryError: a block of the longest list alone takes more.
        """
        self._bounds, self._shapes, self.working_bytes = self._fitted(memory_bytes)

    @property
    def num_targets(self) -> int:
        return self._targets.count

    @property
    def num_blocks(self) -> int:
        return len(self._shapes)

    def run(self, rows: HotRows) -> Iterator[tuple[Int64[np.ndarray, " nodes"], Shaped[np.ndarray, "nodes outputs"]]]:
        """The nodes in order, block by block, and what the layer gives for them.

        A block is read while the one before is computed.
        """
        waiting = None
        for start, stop, shape in zip(self._bounds, self._bounds[1:], self._shapes, strict=False):
            ids = self._targets.ids(start, stop)
            result = ids, *self._started(ids, shape, rows)
            if waiting is not None:
                yield _finished(*waiting)
            waiting = result
        if waiting is not None:
            yield _finished(*waiting)

    def _started(self, ids: np.ndarray, shape: BatchShape, rows: HotRows) -> tuple[np.ndarray, jax.Array]:
        """Positions of the nodes in the result, which is on its way."""
        batch = sample_batch(self._graph, ids, fanouts=(None,), seed=0, epoch=0, index=0)
        shape = shape._replace(level_sizes=(shape.level_sizes[0], _fewer_sources(shape, len(batch.node_ids))))
        block = padded(batch, shape).blocks[0]
        positions, sources, node_ids = batch.seed_positions, shape.level_sizes[1], batch.node_ids
        del batch
        x = self._features(node_ids, sources, rows)
        degrees = self._degrees(node_ids, sources) if self._needs_degrees else None
        return positions, self._step(shape)(self._parameters, block, x, degrees)

    def _features(self, node_ids: np.ndarray, count: int, rows: HotRows) -> Shaped[np.ndarray, "sources inputs"]:
        memory = aligned_bytes(
            count * self._width * self._dtype.itemsize
        )  # new each time: the step may read it where it is
        x = memory.view(self._dtype).reshape(count, self._width)
        rows.read(node_ids, x[: len(node_ids)])
        x[len(node_ids) :] = 0
        return x

    def _degrees(self, node_ids: np.ndarray, count: int) -> Float32[np.ndarray, " sources"]:
        indptr = self._graph.indptr
        return grown((indptr[node_ids + 1] - indptr[node_ids]).astype(np.float32), count)

    def _fitted(self, memory_bytes: int) -> tuple[list[int], list[BatchShape], int]:
        """Bounds, shapes, and bytes of the largest block."""
        row_bytes = self._width * self._dtype.itemsize
        node_cost, edge_cost = _SOURCE_BYTES + 3 * row_bytes, _SOURCE_BYTES + _EDGE_BYTES + 4 * row_bytes
        budget = wanted = memory_bytes // 2
        longest = None
        while True:
            bounds = cut(self._targets, node_cost=node_cost, edge_cost=edge_cost, budget=budget)
            shapes = block_shapes(self._targets, bounds, self._graph.num_nodes)
            by_size = sorted(set(shapes), key=lambda shape: (num_places(shape), shape.level_sizes))
            working = self.bytes_of(by_size[-1])  # the others are compiled only once this one is small enough
            if working <= wanted:
                working = max(map(self.bytes_of, by_size))
            if working <= wanted:
                return bounds, shapes, working
            if longest is None:
                longest = self._longest_bytes()
                wanted = max(wanted, 3 * longest // 2)
            if 2 * longest > memory_bytes or len(shapes) == self._targets.count:  # other lists share its shape
                raise TooLittleMemoryError(max(2 * longest, working))
            budget = int(budget * min(0.7, 0.9 * wanted / working))

    def _longest_bytes(self) -> int:
        return self.bytes_of(longest_list_shape(self._targets, self._graph.num_nodes))

    def bytes_of(self, shape: BatchShape) -> int:
        """Memory that a block of this shape takes while the next one is read."""
        sources = shape.level_sizes[1]
        host = sources * _SOURCE_BYTES + num_places(shape) * (_PLACE_BYTES + _EDGE_BYTES)
        host += sources * self._width * self._dtype.itemsize
        analysis = self._step(shape).memory_analysis()
        if analysis is None:  # of a device that does not say
            return 3 * host
        step = 2 * (analysis.argument_size_in_bytes - self._parameter_bytes) + analysis.temp_size_in_bytes
        return int(host + step + 2 * analysis.output_size_in_bytes)


def result_of(
    model: BlockNetwork, index: int, parameters: Any, input_width: int, input_dtype: np.dtype[Any]
) -> tuple[int, np.dtype[Any]]:
    """Width and dtype of what the layer gives."""
    nothing = BatchShape(1, (1, 1), (DegreeRows((0,) * len(TABLE_WIDTHS), (0,) * len(COMBINE_WIDTHS)),))
    result = jax.eval_shape(_layer(model, index), parameters, *_inputs(model, nothing, input_width, input_dtype))
    return int(result.shape[1]), np.dtype(result.dtype)


def without_weights(graph: Graph) -> Graph:
    """The same lists; weights, which no model reads, stay on the disk."""
    if isinstance(graph, CSCGraph):
        return graph._replace(weights=None)
    return _Unweighted(graph) if graph.is_weighted else graph


class _Unweighted:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.indptr, self.num_nodes, self.num_edges = graph.indptr, graph.num_nodes, graph.num_edges
        self.is_weighted = False

    def neighbors_at(self, positions: Int64[np.ndarray, " positions"]) -> Integer[np.ndarray, " positions"]:
        return self._graph.neighbors_at(positions)

    def weights_at(self, positions: Int64[np.ndarray, " positions"]) -> Float32[np.ndarray, " positions"]:
        raise ValueError("the graph has no edge weights")


def _finished(ids: np.ndarray, positions: np.ndarray, result: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    return ids, np.asarray(result)[positions]


def _fewer_sources(shape: BatchShape, needed: int) -> int:
    """A number of sources close above what is needed: one of few, so that few programs are compiled."""
    count, most = shape.level_sizes
    sizes = [max(count, most >> shift) for shift in _SHIFTS]
    return min(size for size in sizes if size >= needed)


def _layer(model: BlockNetwork, index: int) -> Callable[..., Any]:
    def layer(parameters: Any, block: DegreeBlock, x: jax.Array, degrees: jax.Array | None) -> Any:
        return model.apply(parameters, index, block, x, degrees, method="layer")

    return layer


@functools.lru_cache(maxsize=_MAX_PROGRAMS)
def _compiled(
    model: BlockNetwork,
    index: int,
    structure: Any,
    kinds: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...],
    width: int,
    dtype: np.dtype[Any],
    shape: BatchShape,
) -> jax.stages.Compiled:
    """The program of a layer for blocks of this shape: (parameters, block, x, degrees) -> result. `kinds` are those of parameters."""
    parameters = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
    return jax.jit(_layer(model, index)).lower(parameters, *_inputs(model, shape, width, dtype)).compile()


def _inputs(model: BlockNetwork, shape: BatchShape, width: int, dtype: np.dtype[Any]) -> tuple[Any, Any, Any]:
    """Block, x and degrees as shapes and dtypes."""
    (count, sources), rows = shape.level_sizes, shape.degree_rows[0]
    assert rows is not None
    array = jax.ShapeDtypeStruct

    def table(num_rows: int, table_width: int) -> DegreeTable:
        places = num_rows, table_width
        return DegreeTable(array(places, np.int32), array(places, np.bool_))  # pyright: ignore[reportArgumentType]

    block = DegreeBlock(
        tables=tuple(table(*pair) for pair in zip(rows.tables, TABLE_WIDTHS, strict=True)),
        combines=tuple(table(*pair) for pair in zip(rows.combines, COMBINE_WIDTHS, strict=True)),
        rows=array((count,), np.int32),  # pyright: ignore[reportArgumentType]
        degrees=array((count,), np.int32),  # pyright: ignore[reportArgumentType]
    )
    degrees = array((sources,), np.float32) if model.needs_degrees else None
    return block, array((sources, width), dtype), degrees
