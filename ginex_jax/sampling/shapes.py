"""The few static shapes that the mini-batches of a run are padded to; and the sampler's state, which holds them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from ginex_jax.batch import COMBINE_WIDTHS, TABLE_WIDTHS, BatchShape, DegreeRows, MiniBatch
from ginex_jax.graph import Graph
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.degree_blocks import count_rows

PILOT_EPOCH = 2**64 - 1  # this and the ones below: no epochs that anybody trains on
_PILOT_BATCHES = 16
_MARGINS = (1.02, 1.2, 4.0)  # above the largest of the pilot's batches; the widest for what a few long lists can do
_MULTIPLE = 64
_NODES_AT_ONCE = 1 << 20
_STATE_VERSION = 1


def pilot(graph: Graph, nodes: Int64[np.ndarray, " nodes"], config: SamplerConfig) -> tuple[BatchShape, ...]:
    """At most four shapes, ascending, to pad every mini-batch of these seed nodes to. Deterministic.

    The first ones lie a little above the largest of 16 batches of epochs that are not trained on; the last holds any batch that there can
    be. Call it once before the first step, and keep the result with the state of the run.

    Args:
      nodes: the seed nodes of the epochs.

    Raises:
      ValueError: there are no nodes, or sampling them is not possible.

    Time O(16 batches); with a fan-out of None, O(graph.num_nodes) besides.
    """
    from ginex_jax.sampling.samplers import sampled

    num_batches = -(-len(nodes) // config.batch_size)
    return pilot_shapes(graph, config, num_batches, lambda epoch, index: sampled(graph, nodes, config, epoch, index))


def pilot_shapes(
    graph: Graph, config: SamplerConfig, num_batches: int, sample: Callable[[int, int], MiniBatch]
) -> tuple[BatchShape, ...]:
    """As `pilot`, for the mini-batches that `sample(epoch, index)` gives, `num_batches` an epoch."""
    if num_batches == 0:
        raise ValueError("there should be at least one seed node")
    last = _largest(graph, config)
    numbers = [divmod(number, num_batches) for number in range(_PILOT_BATCHES)]
    seen = [sample(PILOT_EPOCH - epoch, index).shape for epoch, index in numbers]
    top = np.max([shape.sizes for shape in seen], axis=0).tolist()
    shapes = [_sized(last, [_rounded(size, margin) for size in top]) for margin in _MARGINS] + [last]
    return tuple(shape for i, shape in enumerate(shapes) if shape not in shapes[:i])


def to_state(config: SamplerConfig, shapes: Sequence[BatchShape]) -> dict[str, Any]:
    """The sampler's state as what JSON holds."""
    return {
        "version": _STATE_VERSION,
        "config": {**dataclasses.asdict(config), "fanouts": list(config.fanouts)},
        "shapes": [
            {
                "batch_size": shape.batch_size,
                "level_sizes": list(shape.level_sizes),
                "degree_rows": [rows and {"tables": list(rows[0]), "combines": list(rows[1])} for rows in shape[2]],
            }
            for shape in shapes
        ],
    }


def from_state(state: dict[str, Any]) -> tuple[SamplerConfig, tuple[BatchShape, ...]]:
    """Undoes `to_state`. ValueError where a field is missing or the version is another."""
    if state.get("version") != _STATE_VERSION:
        raise ValueError(f"the sampler's state should be of version {_STATE_VERSION}, got {state.get('version')!r}")
    try:
        config = {**state["config"], "fanouts": tuple(state["config"]["fanouts"])}
        shapes = tuple(
            BatchShape(
                shape["batch_size"],
                tuple(shape["level_sizes"]),
                tuple(
                    None if rows is None else DegreeRows(tuple(rows["tables"]), tuple(rows["combines"]))
                    for rows in shape["degree_rows"]
                ),
            )
            for shape in state["shapes"]
        )
        return SamplerConfig(**config), shapes
    except (KeyError, TypeError) as error:
        raise ValueError(f"the sampler's state is damaged: {error!r}") from error


def _largest(graph: Graph, config: SamplerConfig) -> BatchShape:
    """Sizes that no batch exceeds: every neighbour a new node, until there are no more; and no more long lists than the graph has."""
    levels, rows = [min(config.batch_size, graph.num_nodes)], []
    in_graph, longest = _lists_of(graph) if None in config.fanouts else (None, 0)
    for fanout in config.fanouts:
        size = levels[-1]
        levels.append(min(graph.num_nodes, size + size * (longest if fanout is None else fanout)))
        if fanout is not None or in_graph is None:
            rows.append(None)
            continue
        *narrow, widest = in_graph.tables  # a list may fill many rows of the widest
        tables = *(min(size, count) for count in narrow), widest
        rows.append(DegreeRows(tables, tuple(min(size, count) for count in in_graph.combines)))
    return BatchShape(config.batch_size, tuple(levels), tuple(rows))


def _lists_of(graph: Graph) -> tuple[DegreeRows, int]:
    """The rows that all lists of the graph fill, and the length of the longest."""
    tables, combines, longest = np.zeros(len(TABLE_WIDTHS), int), np.zeros(len(COMBINE_WIDTHS), int), 0
    for start in range(0, graph.num_nodes, _NODES_AT_ONCE):
        degrees = np.diff(graph.indptr[start : start + _NODES_AT_ONCE + 1])
        rows = count_rows(degrees)
        tables, combines = tables + rows.tables, combines + rows.combines
        longest = max(longest, int(degrees.max()))
    return DegreeRows(tuple(tables.tolist()), tuple(combines.tolist())), longest


def _rounded(size: int, margin: float) -> int:
    """At least one multiple, also of what the pilot never met: a long list, say."""
    return -(-int(np.ceil((size + 1) * margin)) // _MULTIPLE) * _MULTIPLE


def _sized(last: BatchShape, sizes: Sequence[int]) -> BatchShape:
    """A shape of these sizes, none of them beyond the last one's; the batch size and the seeds' level are the last one's."""
    bounded = iter([min(size, bound) for size, bound in zip(sizes, last.sizes, strict=True)][2:])
    levels = (last.level_sizes[0], *(next(bounded) for _ in last.level_sizes[1:]))
    rows = tuple(
        rows and DegreeRows(tuple(next(bounded) for _ in rows.tables), tuple(next(bounded) for _ in rows.combines))
        for rows in last.degree_rows
    )
    return BatchShape(last.batch_size, levels, rows)
