"""What a loader samples: the mini-batches of a run by number, for nodes or for links, whole or a share of each."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from ginex_jax.batch import BatchShape, MiniBatch
from ginex_jax.features import require_within
from ginex_jax.graph import Graph
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.edge_set import EdgeSet, edge_set, without_edges
from ginex_jax.sampling.links import LinkConfig, Links, links_at
from ginex_jax.sampling.neighbors import sample_any_epoch
from ginex_jax.sampling.shapes import pilot_shapes, to_state


@runtime_checkable
class BatchSampler(Protocol):
    """The mini-batches of every epoch: a pure function of (epoch, index), for any number of threads at once."""

    @property
    def num_nodes(self) -> int:
        """Of the graph."""
        ...

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        """Those that mini-batches are padded to, ascending; the last holds every one."""
        ...

    @property
    def state(self) -> dict[str, Any]:
        """What decides the mini-batches, as JSON holds it. The same for all shares."""
        ...

    def sampled(self, epoch: int, index: int) -> MiniBatch:
        """Mini-batch `index` of the epoch, without padding."""
        ...


class Share(NamedTuple):
    """The part of every mini-batch that one device gets: number `index` of `count`."""

    index: int = 0
    count: int = 1

    def part(self, num_items: int) -> slice:
        """Which of so many items: consecutive ones, and no share has over one more than another."""
        return slice(num_items * self.index // self.count, num_items * (self.index + 1) // self.count)


WHOLE = Share()


class NodeSampler:
    """The neighbourhoods of seed nodes, and shares of them.

    Nodes are drawn for each node by numbers of its own, so that a seed's neighbourhood is the same in every share and in the whole.
    """

    def __init__(
        self,
        graph: Graph,
        nodes: Int64[np.ndarray, " nodes"],
        config: SamplerConfig,
        *,
        shapes: Sequence[BatchShape] | None = None,
        share: Share = WHOLE,
    ) -> None:
        """Samples a few mini-batches if the shapes are not known yet.

        Args:
          graph: read by several threads at once.
          nodes: the seed nodes of every epoch.
          config: its `batch_size` counts the seeds of all shares together.
          shapes: of one share; those of an earlier sampler with the same arguments.
          share: which part to sample.

        Raises:
          ValueError: there is nothing to sample, or a batch cannot be divided by the number of shares.
        """
        if len(nodes) == 0:
            raise ValueError("there should be at least one seed node")
        self._graph, self._nodes, self._config, self._share = graph, nodes, config, share
        self._of_share = _of_share(config, share)
        self._shapes = self._pilot() if shapes is None else _checked(shapes, self._of_share)

    @property
    def num_nodes(self) -> int:
        return self._graph.num_nodes

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._nodes) // self._config.batch_size)

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        return self._shapes

    @property
    def state(self) -> dict[str, Any]:
        return {**to_state(self._of_share, self._shapes), **_shares_of(self._share)}

    def sampled(self, epoch: int, index: int) -> MiniBatch:
        return self._sampled(self._share, epoch, index)

    def _sampled(self, share: Share, epoch: int, index: int) -> MiniBatch:
        return sampled(self._graph, self._nodes, self._config, epoch, index, share)

    def _pilot(self) -> tuple[BatchShape, ...]:
        return pilot_shapes(
            self._graph, self._of_share, self.steps_per_epoch, _share_by_share(self._sampled, self._share.count)
        )


class LinkSampler:
    """The neighbourhoods of the ends of links, without the edges that are to be predicted.

    The seeds of a mini-batch are those of `Links.seed_nodes`, so that it says itself which nodes belong together. Out of every hop are
    masked: the target edges of the mini-batch, all shares, in both directions if undirected; and held-out edges. What is drawn and then
    masked is not drawn again; to draw among the other edges only, give a graph that `graph_without` made, and no `held_out`. Its
    `indptr` also has the in-degrees that GCN is to divide by: those of the graph itself would count the held-out edges.
    """

    def __init__(
        self,
        graph: Graph,
        edges: Int64[np.ndarray, "edges 2"],
        config: LinkConfig,
        *,
        held_out: EdgeSet | None = None,
        avoid: EdgeSet | None = None,
        shapes: Sequence[BatchShape] | None = None,
        share: Share = WHOLE,
    ) -> None:
        """Samples a few mini-batches if the shapes are not known yet.

        Args:
          graph: read by several threads at once.
          edges: the target edges of every epoch, (source, target).
          config: its batch size counts the target edges of all shares together.
          held_out: edges of validation and test, each in all directions that must not be seen; they are in the graph and stay there.
          avoid: edges that no negative should be.
          shapes: of one share; those of an earlier sampler with the same arguments.
          share: which part to sample.

        Raises:
          ValueError: as `NodeSampler`.
        """
        self._graph, self._edges, self._config, self._share = graph, edges, config, share
        self._held_out = EdgeSet(np.empty(0, np.int64), graph.num_nodes) if held_out is None else held_out
        self._avoid = avoid
        if len(edges) == 0:
            raise ValueError("there should be at least one target edge")
        require_within(edges.reshape(-1), graph.num_nodes, "nodes of edges")
        self._of_share = _of_share(config.of_seeds, share, config.nodes_per_link)
        self._shapes = self._pilot() if shapes is None else _checked(shapes, self._of_share)

    @property
    def num_nodes(self) -> int:
        return self._graph.num_nodes

    @property
    def config(self) -> LinkConfig:
        return self._config

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._edges) // self._config.sampling.batch_size)

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        return self._shapes

    @property
    def state(self) -> dict[str, Any]:
        """With checksums of the edges, which no dataset holds."""
        links = {
            "num_negatives": self._config.num_negatives,
            "undirected": self._config.undirected,
            "target_edges": _checksum(self._edges),
            "held_out_edges": _checksum(self._held_out.keys),
            "avoided_edges": None if self._avoid is None else _checksum(self._avoid.keys),
        }
        return {**to_state(self._of_share, self._shapes), **_shares_of(self._share), "links": links}

    def links(self, epoch: int, index: int) -> Links:
        """The links of a mini-batch, all shares."""
        return links_at(
            self._edges, self._config, num_nodes=self.num_nodes, epoch=epoch, index=index, avoid=self._avoid
        )

    def sampled(self, epoch: int, index: int) -> MiniBatch:
        return self._sampled(self._share, epoch, index)

    def _sampled(self, share: Share, epoch: int, index: int) -> MiniBatch:
        links, size = self.links(epoch, index), self._config.nodes_per_link
        links_of_share = share.part(len(links.sources))
        seeds = slice(links_of_share.start * size, links_of_share.stop * size)
        batch = _neighborhood(self._graph, links.seed_nodes, seeds, self._config.sampling, epoch, index)
        targets = edge_set(links.edges, self.num_nodes, both_directions=self._config.undirected)
        return without_edges(without_edges(batch, targets), self._held_out)

    def _pilot(self) -> tuple[BatchShape, ...]:
        return pilot_shapes(
            self._graph, self._of_share, self.steps_per_epoch, _share_by_share(self._sampled, self._share.count)
        )


def sampled(
    graph: Graph,
    nodes: Int64[np.ndarray, " nodes"],
    config: SamplerConfig,
    epoch: int,
    index: int,
    share: Share = WHOLE,
) -> MiniBatch:
    """A mini-batch of `NodeSampler`, without its shapes; reserved epochs included."""
    from ginex_jax.random_numbers import permuted

    first = index * config.batch_size
    positions = np.arange(first, min(first + config.batch_size, len(nodes)), dtype=np.int64)
    seeds = nodes[permuted(config.seed, epoch, len(nodes), positions)]
    return _neighborhood(graph, seeds, share.part(len(seeds)), config, epoch, index)


def _of_share(config: SamplerConfig, share: Share, unit: int = 1) -> SamplerConfig:
    """With the seeds of one share, of which `unit` belong together."""
    if not 0 <= share.index < share.count:
        raise ValueError(f"a share should be one of {share.count}, from 0, got {share.index}")
    if (config.batch_size // unit) % share.count:
        raise ValueError(
            f"a batch size of {config.batch_size // unit} should be a multiple of the {share.count} shares that divide it"
        )
    return dataclasses.replace(config, batch_size=config.batch_size // share.count)


def _checked(shapes: Sequence[BatchShape], config: SamplerConfig) -> tuple[BatchShape, ...]:
    if not shapes or any(shape.batch_size != config.batch_size for shape in shapes):
        raise ValueError(
            f"shapes should be those that pilot gives for batches of {config.batch_size} seeds, got {shapes}"
        )
    return tuple(shapes)


def _shares_of(share: Share) -> dict[str, int]:
    return {} if share.count == 1 else {"num_shares": share.count}


def _share_by_share(sample: Callable[[Share, int, int], MiniBatch], count: int) -> Callable[[int, int], MiniBatch]:
    """Takes turns, so that every share's pilot sees the same."""
    return lambda epoch, index: sample(Share(index % count, count), epoch, index)


def _neighborhood(
    graph: Graph, seeds: Int64[np.ndarray, " seeds"], part: slice, config: SamplerConfig, epoch: int, index: int
) -> MiniBatch:
    """The mini-batch of some of the seeds. If these are none: that of one seed, which nobody asks for."""
    batch = sample_any_epoch(
        graph,
        seeds[part] if part.stop > part.start else seeds[:1],
        fanouts=config.fanouts,
        seed=config.seed,
        epoch=epoch,
        index=index,
        weighted=config.weighted,
    )
    if part.stop > part.start:
        return batch
    return batch._replace(
        seed_positions=batch.seed_positions[:0],
        seed_mask=batch.seed_mask[:0],
        shape=batch.shape._replace(batch_size=0),
    )


def _checksum(array: Int64[np.ndarray, "..."]) -> list[int]:
    """Its length and CRC-32."""
    return [len(array), zlib.crc32(np.ascontiguousarray(array).data)]
