"""Loss and score of a batch, as sums that stay on the device until somebody asks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int32, Shaped

from ginex_jax.train.config import LINK_TASKS
from ginex_jax.train.link_scores import link_scores, ordered_pairs


class Tally(NamedTuple):
    """Sums over labelled targets; those of two batches add up.

    The score is hits / (hits + errors). With one label a node these are right and wrong predictions, and the score is the accuracy. With
    many, hits are twice the true positives and errors the false positives and negatives, and the score is the micro-averaged F1. Of links
    every pair of a target edge and one of its negatives counts twice, and the score is how often the edge is above, ties as a half: an
    estimate of the AUC.
    """

    loss_sum: Float32[Array | np.ndarray, ""]
    num_targets: Int32[Array | np.ndarray, ""]
    hits: Int32[Array | np.ndarray, ""]
    errors: Int32[Array | np.ndarray, ""]

    @classmethod
    def zero(cls) -> "Tally":
        """On the device, like all that follow: NumPy's would be another signature of the compiled step."""
        return cls(jnp.zeros((), jnp.float32), *(jnp.zeros((), jnp.int32) for _ in range(3)))

    @property
    def loss(self) -> float:
        """The mean over targets; 0 where there are none. Waits for the device."""
        return float(self.loss_sum) / max(int(self.num_targets), 1)

    @property
    def score(self) -> float:
        """In [0, 1]; 0 where there is nothing to count. Waits for the device."""
        return int(self.hits) / max(int(self.hits) + int(self.errors), 1)


def tally(logits: Float[Array, "seeds outputs"], targets: Shaped[Array | np.ndarray, "..."], task: str) -> Tally:
    """Loss and score of one batch, in float32.

    Args:
      logits: one row a seed.
      targets: int32 [seeds], -1 for no label: softmax cross-entropy. Or float32 [seeds, outputs], NaN for no label: the sigmoid's binary
        cross-entropy of each output. For links, those of `link_targets`: the same of each pair's score.

    Returns:
      Sums over what is labelled; no gradient flows through what is not.
    """
    logits, targets = logits.astype(jnp.float32), jnp.asarray(targets)
    if task == "single-label":
        labelled = targets >= 0
        classes = jnp.where(labelled, targets, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
        hits = (jnp.argmax(logits, axis=1) == targets) & labelled
        errors = labelled & ~hits
        return _sums(losses, labelled, jnp.sum(hits), jnp.sum(errors))
    if task in LINK_TASKS:
        logits = link_scores(logits.reshape(len(targets), -1, logits.shape[1]), task)
    labelled = ~jnp.isnan(targets)
    wanted = jnp.where(labelled, targets, 0)
    losses = optax.sigmoid_binary_cross_entropy(logits, wanted)
    if task in LINK_TASKS:
        return _sums(losses, labelled, *ordered_pairs(logits, labelled))
    predicted, positive = (logits > 0) & labelled, wanted > 0.5
    return _sums(losses, labelled, 2 * jnp.sum(predicted & positive), jnp.sum(predicted ^ positive))


def mean_loss(sums: Tally) -> Float32[Array, ""]:
    """The loss to minimize: the mean over labelled targets, 0 where there are none. Traceable."""
    return jnp.asarray(sums.loss_sum / jnp.maximum(sums.num_targets, 1).astype(jnp.float32))


def added(a: Tally, b: Tally) -> Tally:
    """The tally of both. Traceable."""
    return jax.tree.map(jnp.add, a, b)


def _sums(
    losses: Float32[Array, "*targets"], labelled: Shaped[Array, "*targets"], hits: Shaped[Array, ""], errors: Array
) -> Tally:
    loss_sum = jnp.sum(jnp.where(labelled, losses, 0))
    return Tally(loss_sum, *(count.astype(jnp.int32) for count in (jnp.sum(labelled), hits, errors)))
