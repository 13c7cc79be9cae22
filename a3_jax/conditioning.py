"""Keys and queries changed so that softmax stays as it is and the search finds more: centring and rotation. Not in the paper.

A search sees products, not dot products. What is the same in every key (a channel's mean) fills the ends of columns without telling
rows apart, and a direction that is spread over many columns gives many small products in place of a large one. Both can be taken
out for free:

    (key - mean) @ rotation   and   query @ rotation

give every dot product less the same number, `query @ mean`, if the rotation is orthogonal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Conditioning(NamedTuple):
    """What is done to keys and queries.

    Attributes:
      mean: subtracted from every key. Any vector leaves softmax as it is.
      rotation: orthogonal; multiplied to keys and queries from the right. Any orthogonal matrix leaves dot products as they are.
    """

    mean: Float[Array, " d"]
    rotation: Float[Array, "d d"]


def fit_conditioning(
    key: Float[Array, "n d"], *, center: bool = True, rotate: bool = True, mask: Bool[Array, " n"] | None = None
) -> Conditioning:
    """The mean of the keys and the basis of their principal components, the largest first.

    It need not be fitted on all keys, or again when keys are added: what was fitted on the first ones is as exact on later ones, and only
    finds less. One fit serves all queries of a grouped head.

    Args:
      key: a row is one key. Float32 is computed in at least.
      center: whether the mean is taken out; else it is zeros.
      rotate: whether to rotate; else the rotation is the identity. Components are those of the keys less their mean, centred or not.
      mask: rows that take part.

    O(n d^2 + d^3), once for all queries. No gradient flows.
    """
    key = jax.lax.stop_gradient(key).astype(jnp.promote_types(key.dtype, jnp.float32))
    valid = jnp.ones(key.shape[0], bool) if mask is None else mask
    key = jnp.where(valid[:, None], key, 0)
    count = jnp.maximum(jnp.sum(valid), 1).astype(key.dtype)
    mean = jnp.sum(key, axis=0) / count
    rotation = jnp.eye(key.shape[1], dtype=key.dtype)
    if rotate:
        deviations = jnp.where(valid[:, None], key - mean[None], 0)
        covariance = jnp.matmul(deviations.T, deviations, precision=jax.lax.Precision.HIGHEST) / count
        rotation = jnp.linalg.eigh(covariance)[1][:, ::-1]
    return Conditioning(mean if center else jnp.zeros_like(mean), rotation)


def condition_keys(key: Float[Array, "n d"], conditioning: Conditioning) -> Float[Array, "n d"]:
    """`(key - mean) @ rotation` in the type of the keys, before they are sorted. O(n d^2), once for all queries."""
    mean, rotation = conditioning
    centred = key.astype(mean.dtype) - mean[None]
    return jnp.matmul(centred, rotation, precision=jax.lax.Precision.HIGHEST).astype(key.dtype)


def condition_query(query: Float[Array, " d"], conditioning: Conditioning) -> Float[Array, " d"]:
    """`query @ rotation` in the type of the query. O(d^2) for every query, or nothing where the rotation is folded into weights."""
    rotated = jnp.matmul(
        query.astype(conditioning.rotation.dtype), conditioning.rotation, precision=jax.lax.Precision.HIGHEST
    )
    return rotated.astype(query.dtype)


def score_shift(query: Float[Array, " d"], conditioning: Conditioning) -> Float[Array, ""]:
    """How much less every dot product is, `query @ mean` for the query as it was.

    Added to the `lse` of attention over conditioned keys, with the same scale, it gives that over the keys as they were: what a merge with
    attention over other, unconditioned rows needs.
    """
    mean = conditioning.mean
    return jnp.matmul(query.astype(mean.dtype), mean, precision=jax.lax.Precision.HIGHEST)
