"""A graph of four communities, undirected, and what learning its links needs."""

import functools

import numpy as np

from ginex_jax.features import ArrayFeatures
from ginex_jax.graph import CSCGraph
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.edge_set import EdgeSet, edge_set
from ginex_jax.sampling.edge_split import EdgeSplit, edges_of, split_edges
from ginex_jax.sampling.links import LinkConfig

NUM_NODES, NUM_COMMUNITIES, WIDTH = 400, 8, 8


@functools.cache
def communities() -> CSCGraph:
    """Some 12 neighbours a node, nearly all of its own community: no score tells them from uniform negatives with an AUC above 0.93."""
    rng = np.random.default_rng(1)
    community = np.arange(NUM_NODES) % NUM_COMMUNITIES
    chance = np.where(community[:, None] == community, 0.25, 0.001)
    upper = np.triu(rng.random(chance.shape) < chance, 1)
    targets, sources = np.nonzero(upper | upper.T)
    counts = np.bincount(targets, minlength=NUM_NODES)
    return CSCGraph(np.concatenate([[0], np.cumsum(counts)]), sources.astype(np.int32))


@functools.cache
def features() -> ArrayFeatures:
    """One node's hardly tell its community; those of its neighbours together do."""
    rng = np.random.default_rng(2)
    centers = 0.6 * rng.standard_normal((NUM_COMMUNITIES, WIDTH))
    noise = rng.standard_normal((NUM_NODES, WIDTH))
    return ArrayFeatures((centers[np.arange(NUM_NODES) % NUM_COMMUNITIES] + noise).astype(np.float32))


def split() -> EdgeSplit:
    return split_edges(edges_of(communities()), valid_fraction=0.1, test_fraction=0.1, seed=0, undirected=True)


def held_out() -> EdgeSet:
    return edge_set(np.concatenate([split().valid, split().test]), NUM_NODES, both_directions=True)


def link_config(batch_size: int = 128, fanouts: tuple[int | None, ...] = (8, 8)) -> LinkConfig:
    return LinkConfig(sampling=SamplerConfig(fanouts=fanouts, batch_size=batch_size, seed=1), num_negatives=2)
