"""MRR and AUC of a model on edges that were held out: by the embeddings of all nodes, or by sampled mini-batches."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int64

from ginex_jax.features import FeatureStore
from ginex_jax.pipeline.loading import Loader
from ginex_jax.sampling.edge_set import EdgeSet
from ginex_jax.sampling.links import Links, uniform_negatives
from ginex_jax.train.inputs import NodeArrays, StepInputs, step_inputs
from ginex_jax.train.link_metrics import area_under_curve, mean_reciprocal_rank
from ginex_jax.train.link_scores import link_scores
from ginex_jax.train.step import Params, seed_logits

_EVALUATION = 2**64 - 3  # in the place of a batch
_LINKS_AT_ONCE = 1024


class LinkQuality(NamedTuple):
    """How well held-out edges are told from uniform negatives.

    Attributes:
      mrr: of every edge among its own negatives.
      auc: of all edges and all negatives.
      num_links: edges.
    """

    mrr: float
    auc: float
    num_links: int


def evaluation_links(
    edges: Int64[np.ndarray, "edges 2"],
    *,
    num_negatives: int,
    num_nodes: int,
    seed: int,
    avoid: EdgeSet | None = None,
) -> Links:
    """All edges in their order, each with negatives that depend on the seed and its place alone.

    Args:
      avoid: edges that no negative should be: those of the graph, for a filtered rank.
    """
    from ginex_jax.random_numbers import batch_key

    sources, targets = (np.ascontiguousarray(ends) for ends in edges.T)
    key = int(batch_key(seed, 0, _EVALUATION))
    return Links(sources, targets, uniform_negatives(sources, num_negatives, num_nodes=num_nodes, key=key, avoid=avoid))


def evaluate_embeddings(embeddings: FeatureStore, links: Links, task: str) -> LinkQuality:
    """The quality of scores of the embeddings of nodes, which layer-wise inference over all nodes gives.

    Args:
      embeddings: a row for each node; `ArrayFeatures` of an array will do.
      links: those of `evaluation_links`.
      task: "links" or "directed-links".

    Raises:
      ValueError: there are no links, or a score is not a number.

    Reads the rows of some thousand nodes at once; memory for the scores.
    """
    score = jax.jit(lambda rows: link_scores(rows, task))
    scores = np.empty((len(links.sources), 1 + links.negatives.shape[1]), np.float32)
    nodes = links.seed_nodes.reshape(len(links.sources), -1)
    for start in range(0, len(nodes), _LINKS_AT_ONCE):
        ids = nodes[start : start + _LINKS_AT_ONCE]
        rows = np.zeros((min(_LINKS_AT_ONCE, len(nodes)), *ids.shape[1:], embeddings.shape[1]), embeddings.dtype)
        embeddings.read_rows(ids.reshape(-1), out=rows.reshape(-1, embeddings.shape[1]))
        scores[start : start + len(ids)] = score(rows)[: len(ids)]
    return _quality(scores)


def evaluate_batches(model: Any, params: Params, loader: Loader, nodes: NodeArrays, task: str) -> LinkQuality:
    """The quality over epoch 0 of a loader of held-out edges: the same batches every time; exact with all neighbours.

    Args:
      loader: of a `LinkSampler` whose target edges are the held-out ones.
      nodes: `nodes_per_link`, and in-degrees if the model needs them.

    Raises:
      ValueError: a score is not a number.
    """

    @jax.jit
    def scores_of(params: Params, inputs: StepInputs) -> Float32[jax.Array, "links pairs"]:
        logits = seed_logits(model, params, inputs)
        return link_scores(logits.reshape(len(inputs.targets), -1, logits.shape[1]), task)

    found: list[Float[np.ndarray, "links pairs"]] = []
    with loader.stream(0, loader.steps_per_epoch) as stream:
        for loaded in stream:
            inputs = step_inputs(loaded, nodes)
            found.append(np.array(scores_of(params, inputs))[~np.isnan(inputs.targets[:, 0])])
            loaded.release()
    return _quality(np.concatenate(found))


def _quality(scores: Float[np.ndarray, "links pairs"]) -> LinkQuality:
    positive, negative = scores[:, 0], scores[:, 1:]
    return LinkQuality(mean_reciprocal_rank(positive, negative), area_under_curve(positive, negative), len(scores))
