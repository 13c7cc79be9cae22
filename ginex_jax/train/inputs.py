"""From a loaded batch to what the compiled step takes. Everything here is the host's."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Shaped

from ginex_jax.batch import Block, DegreeBlock, MiniBatch, grown
from ginex_jax.pipeline.loading import LoadedBatch
from ginex_jax.train.config import LINK_TASKS


class StepInputs(NamedTuple):
    """The arguments of a step that change from batch to batch: a pytree of arrays whose shapes follow from the batch's shape.

    Attributes:
      blocks: of the mini-batch.
      features: one row for each source of the first block, padding included.
      node_data: in-degrees in the whole graph of the same nodes, 0 in the padding; None for models that need none.
      seed_positions: the row of the model's output that answers for each seed.
      seed_mask: False for padding.
      targets: int32 [seeds], -1 for no label; or float32 [seeds, outputs], NaN for no label; or of links those of `link_targets`.
    """

    blocks: tuple[Block | DegreeBlock, ...]
    features: Shaped[np.ndarray, "sources width"]
    node_data: Float32[np.ndarray, " sources"] | None
    seed_positions: Int32[np.ndarray, " seeds"]
    seed_mask: Bool[np.ndarray, " seeds"]
    targets: Shaped[np.ndarray, "..."]


class NodeArrays(NamedTuple):
    """What training knows of every node, besides its features.

    Attributes:
      labels: int64 [nodes], -1 for none; or float32 [nodes, outputs], NaN for none; None where links are the targets.
      in_degrees: of the whole graph, for models whose `needs_degrees` says so.
      nodes_per_link: seeds that a link takes, `LinkConfig.nodes_per_link`; 0 where labels are the targets.
    """

    labels: Shaped[np.ndarray, "nodes ..."] | None
    in_degrees: Int64[np.ndarray, " nodes"] | None = None
    nodes_per_link: int = 0


def step_inputs(loaded: LoadedBatch, nodes: NodeArrays) -> StepInputs:
    """Looks up the seeds' targets and the nodes' in-degrees."""
    batch = loaded.batch
    return StepInputs(
        blocks=batch.blocks,
        features=loaded.features,
        node_data=None if nodes.in_degrees is None else _degrees(nodes.in_degrees, batch.node_ids, loaded.features),
        seed_positions=batch.seed_positions,
        seed_mask=batch.seed_mask,
        targets=_targets(batch, nodes),
    )


def check_labels(nodes: NodeArrays, task: str, num_outputs: int) -> None:
    """Raises ValueError unless the labels are of the task's kind and there is an output for each. O(labels)."""
    labels: Any = nodes.labels
    if task in LINK_TASKS:
        if task == "directed-links" and num_outputs % 2:
            raise ValueError(f"directed links need an even number of outputs, a half for each end, got {num_outputs}")
        return
    if task == "single-label":
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"a single-label task needs one integer a node, and labels are {labels.dtype} {labels.shape}"
            )
        if len(labels) and (labels.min() < -1 or labels.max() >= num_outputs):
            raise ValueError(
                f"labels should be in [-1, {num_outputs}), one for each of the model's outputs, got {labels.min()} to {labels.max()}"
            )
    elif labels.ndim != 2 or labels.dtype.kind != "f" or labels.shape[1] != num_outputs:
        raise ValueError(
            f"a multi-label task needs {num_outputs} floats a node, one for each of the model's outputs, and labels are "
            f"{labels.dtype} {labels.shape}"
        )


def _targets(batch: MiniBatch, nodes: NodeArrays) -> Shaped[np.ndarray, "..."]:
    if nodes.labels is None:
        return link_targets(batch.seed_mask, nodes.nodes_per_link)
    targets = nodes.labels[batch.node_ids[batch.seed_positions]]
    targets = targets.astype(np.int32 if targets.ndim == 1 else np.float32)
    targets[~batch.seed_mask] = -1 if targets.ndim == 1 else np.nan
    return targets


def link_targets(seed_mask: Bool[np.ndarray, " seeds"], nodes_per_link: int) -> Float32[np.ndarray, "links pairs"]:
    """1 for the pair of a link's source and target, 0 for those with its negatives, NaN for padding.

    Raises:
      ValueError: the seeds are not so many for each link.
    """
    if nodes_per_link < 3 or len(seed_mask) % nodes_per_link:
        raise ValueError(
            f"nodes_per_link should be that of the sampler's LinkConfig, and divide {len(seed_mask)} seeds, got {nodes_per_link}"
        )
    is_link = seed_mask.reshape(-1, nodes_per_link)[:, :1]
    wanted = np.zeros((1, nodes_per_link - 1), np.float32)
    wanted[0, 0] = 1
    return np.where(is_link, wanted, np.float32(np.nan))


def _degrees(
    in_degrees: Int64[np.ndarray, " nodes"], node_ids: Int64[np.ndarray, " rows"], features: np.ndarray
) -> Float32[np.ndarray, " sources"]:
    return grown(in_degrees[node_ids].astype(np.float32), len(features))
