"""Links: edges to be told from pairs of nodes that are none.

Which links a mini-batch asks for is a pure function of (seed, epoch, index).
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.edge_set import EdgeSet

_NEGATIVES = 2**64 - 1  # in the place of a hop
_DRAWS = 8  # of a negative, until one is not to be avoided


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """What decides, together with the graph and the target edges, every mini-batch of links.

    Attributes:
      sampling: its `batch_size` counts target edges.
      num_negatives: nodes drawn for every target edge, in the place of its target.
      undirected: the graph has every edge in both directions, and its reverse gives a target edge away.
    """

    sampling: SamplerConfig
    num_negatives: int = 1
    undirected: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.num_negatives, int) or isinstance(self.num_negatives, bool) or self.num_negatives < 1:
            raise ValueError(f"num_negatives should be an int of at least 1, got {self.num_negatives!r}")
        if not isinstance(self.undirected, bool):
            raise ValueError(f"undirected should be True or False, got {self.undirected!r}")

    @property
    def nodes_per_link(self) -> int:
        """Seeds that a target edge takes: its source, its target and the negatives."""
        return 2 + self.num_negatives

    @property
    def of_seeds(self) -> SamplerConfig:
        """With the number of seeds, several for every target edge, as batch size."""
        return dataclasses.replace(self.sampling, batch_size=self.sampling.batch_size * self.nodes_per_link)


class Links(NamedTuple):
    """Target edges, and for each of them pairs (source, negative) that are taken for no edges."""

    sources: Int64[np.ndarray, " links"]
    targets: Int64[np.ndarray, " links"]
    negatives: Int64[np.ndarray, "links negatives"]

    @property
    def seed_nodes(self) -> Int64[np.ndarray, " seeds"]:
        """Source, target and negatives of the first link, then of the second, and so on: what to sample a mini-batch for.

        Its `seed_positions.reshape(-1, 2 + negatives)` then are the local ids of every link, and so with `seed_mask`.
        """
        return np.concatenate([self.sources[:, None], self.targets[:, None], self.negatives], axis=1).reshape(-1)

    @property
    def edges(self) -> Int64[np.ndarray, "links 2"]:
        """The target edges."""
        return np.stack([self.sources, self.targets], axis=1)


def links_at(
    edges: Int64[np.ndarray, "edges 2"],
    config: LinkConfig,
    *,
    num_nodes: int,
    epoch: int,
    index: int,
    avoid: EdgeSet | None = None,
) -> Links:
    """The links of mini-batch `index` of an epoch: target edges in the epoch's order, with uniform negatives.

    Every epoch has an order of its own; the last mini-batch holds what is left. No two devices, threads or processes disagree.

    Args:
      edges: the target edges, (source, target).
      num_nodes: negatives are drawn from [0, num_nodes).
      epoch: in [0, 2**64).
      index: in [0, number of mini-batches).
      avoid: edges that no negative should be; see `uniform_negatives`.

    Raises:
      ValueError: there is no such mini-batch.
    """
    from ginex_jax.random_numbers import batch_key, hashed, permuted

    size, seed = config.sampling.batch_size, config.sampling.seed
    if not 0 <= index < -(-len(edges) // size):
        raise ValueError(f"index should be in [0, {-(-len(edges) // size)}), got {index}")
    positions = np.arange(index * size, min((index + 1) * size, len(edges)), dtype=np.int64)
    chosen = edges[permuted(seed, epoch, len(edges), positions)]
    key = int(hashed(batch_key(seed, epoch, index), np.uint64(_NEGATIVES)))
    sources = np.ascontiguousarray(chosen[:, 0])
    negatives = uniform_negatives(sources, config.num_negatives, num_nodes=num_nodes, key=key, avoid=avoid)
    return Links(sources, np.ascontiguousarray(chosen[:, 1]), negatives)


def uniform_negatives(
    sources: Int64[np.ndarray, " links"],
    num_negatives: int,
    *,
    num_nodes: int,
    key: int,
    first: int = 0,
    avoid: EdgeSet | None = None,
) -> Int64[np.ndarray, "links negatives"]:
    """Nodes for the place of a link's target, each uniform over all nodes and independent of the others.

    So one may be the target itself, or make a true edge with the source: with a chance of the source's degree over the number of nodes.

    Args:
      key: of the stream of numbers; row i of the result depends on it and on `first + i`, in [0, 2**64) both.
      first: the number of the first link.
      avoid: a pair that it holds is drawn again, up to seven times: then a source with nearly all nodes as targets keeps it.
    """
    from ginex_jax.sampling.kernels import draw_nodes

    def drawn(attempt: int) -> Int64[np.ndarray, "links negatives"]:
        nodes = np.empty((len(sources), num_negatives), np.int64)
        draw_nodes(np.uint64(key), np.uint64(first), np.uint64(attempt * num_negatives), num_nodes, nodes)
        return nodes

    negatives = drawn(0)
    for attempt in range(1, _DRAWS if avoid is not None else 1):
        assert avoid is not None
        again = avoid.contains(sources[:, None], negatives)
        if not again.any():
            break
        negatives = np.where(again, drawn(attempt), negatives)
    return negatives
