"""How likely pairs of nodes are linked, from what a model gives for them. Importing this module imports jax."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32


def link_scores(
    embeddings: Float[Array | np.ndarray, "links nodes outputs"], task: str
) -> Float32[Array, "links pairs"]:
    """The score of every link's first node with each of its others: the logit of there being an edge.

    For "links" the dot product of the two nodes' outputs, which does not see their order. For "directed-links" the dot product of the
    first half of the source's outputs and the second half of the target's: with a last layer that is linear in z, a bilinear form
    z_source^T A^T B z_target, of a rank of half the outputs. Traceable.
    """
    wide = jnp.asarray(embeddings).astype(jnp.float32)
    sources, targets = wide[:, 0], wide[:, 1:]
    if task == "directed-links":
        half = wide.shape[2] // 2
        sources, targets = sources[:, :half], targets[:, :, half:]
    return jnp.sum(sources[:, None] * targets, axis=2)


def ordered_pairs(
    scores: Float32[Array, "links pairs"], labelled: Bool[Array, "links pairs"]
) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """Of the first pair and each of the others of every link: twice how often the first is above, and below; one of each for a tie."""
    differences = jnp.where(labelled[:, 1:], jnp.sign(scores[:, :1] - scores[:, 1:]), 0).astype(jnp.int32)
    counted = jnp.sum(labelled[:, 1:]).astype(jnp.int32)
    balance = jnp.sum(differences)
    return counted + balance, counted - balance
