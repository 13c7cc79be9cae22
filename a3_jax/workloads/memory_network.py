"""The end-to-end memory network (Sukhbaatar et al. 2015): a question looks at the sentences of a story several times, then is answered."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array, Bool, Float, Int32


class MemoryBatch(NamedTuple):
    """Questions with their stories.

    Attributes:
      sentences: word ids of the sentences that occur, each once; word 0 is empty, and so is sentence 0.
      stories: of every question the sentences before it, the last one first, then zeros.
      times: how long ago each was, from 0; without noise it is the place in the story.
      questions: the sentence that is the question.
    """

    sentences: Int32[Array | np.ndarray, "sentences words"]
    stories: Int32[Array | np.ndarray, "batch memory"]
    times: Int32[Array | np.ndarray, "batch memory"]
    questions: Int32[Array | np.ndarray, " batch"]


class Reading(NamedTuple):
    """Questions and stories as vectors: hop k (from 0) has the keys `memories[:, :, k]` and the values `memories[:, :, k + 1]`.

    That a hop's values are the next one's keys is the adjacent tying of weights: A of hop k + 1 is C of hop k.
    """

    query: Float[Array, "batch d"]
    memories: Float[Array, "batch memory hops_and_1 d"]
    mask: Bool[Array, "batch memory"]

    @property
    def num_hops(self) -> int:
        return self.memories.shape[2] - 1


# (hop, query [batch, d], key [batch, memory, d], value [batch, memory, d], mask [batch, memory]) -> ([batch, d], what else is to be said).
Attend = Callable[[int, Array, Array, Array, Array], tuple[Array, Any]]
# (scores [batch, memory], mask [batch, memory]) -> weights [batch, memory].
Weigh = Callable[[Array, Array], Array]


class MemoryNetwork(linen.Module):
    """Position encoding, temporal encoding, adjacent weight tying; answers are words.

    Attributes:
      num_words: of the vocabulary, the empty word 0 with them.
      memory_size: sentences that are told apart by their age.
      dim: d.
      num_hops: how often a question looks at the story.
    """

    num_words: int
    memory_size: int = 50
    dim: int = 64
    num_hops: int = 3

    def setup(self) -> None:
        normal = linen.initializers.normal(0.1)
        # Of hop k: A is number k and C number k + 1. B, of the question, is the first A; W, of the answer, is the last C.
        self.embeddings = self.param("embeddings", normal, (self.num_hops + 1, self.num_words, self.dim))
        self.times = self.param("times", normal, (self.num_hops + 1, self.memory_size, self.dim))

    def __call__(self, batch: MemoryBatch, weigh: Weigh) -> Float[Array, "batch num_words"]:
        """Logits of every word, by exact attention.

        Dot products are taken with every distinct sentence and with every age, and those that a story has are picked: a batch's
        memories, of which training would add up the gradients one by one, are never put together. The same as `answer` after `look`.
        """
        encoded, (num_sentences, memory) = self._encode(batch.sentences), (batch.sentences.shape[0], self.memory_size)
        query = encoded[batch.questions, 0]
        for hop in range(self.num_hops):
            scores = jnp.take_along_axis(query @ encoded[:, hop].T, batch.stories, axis=1)
            scores += jnp.take_along_axis(query @ self.times[hop].T, batch.times, axis=1)
            weights = weigh(scores, jnp.asarray(batch.stories) > 0)
            query += _spread(weights, batch.stories, num_sentences) @ encoded[:, hop + 1]
            query += _spread(weights, batch.times, memory) @ self.times[hop + 1]
        return self.answer(query)

    def read(self, batch: MemoryBatch) -> Reading:
        """The keys and values of every story, for attention of another kind."""
        encoded = self._encode(batch.sentences)
        memories = encoded[batch.stories] + jnp.transpose(self.times, (1, 0, 2))[batch.times]
        return Reading(encoded[batch.questions, 0], memories, jnp.asarray(batch.stories) > 0)

    def _encode(
        self, sentences: Int32[Array | np.ndarray, "sentences words"]
    ) -> Float[Array, "sentences hops_and_1 d"]:
        """Every sentence by every matrix."""
        # One row for a word, of all matrices: gathering it, and adding to it in the gradient, is most of the work.
        table = jnp.transpose(self.embeddings, (1, 0, 2))
        return jnp.sum(table[sentences] * position_encoding(sentences, self.dim)[:, :, None, :], axis=1)

    def answer(self, query: Float[Array, "batch d"]) -> Float[Array, "batch num_words"]:
        """Logits of every word, after the last hop."""
        return query @ self.embeddings[-1].T


def look(reading: Reading, attend: Attend) -> tuple[Float[Array, "batch d"], list[Any]]:
    """All hops: what attention finds is added to the query. Also returns what else `attend` said, a hop each."""
    query, said = reading.query, []
    for hop in range(reading.num_hops):
        found, more = attend(hop, query, reading.memories[:, :, hop], reading.memories[:, :, hop + 1], reading.mask)
        query = query + found
        said.append(more)
    return query, said


def position_encoding(
    sentences: Int32[Array | np.ndarray, "sentences words"], dim: int
) -> Float[Array, "sentences words {dim}"]:
    """`(1 - j / J) - (k / d) (1 - 2 j / J)` for word j of J, from 1, and component k of d, from 1 (section 4.1); 0 for the empty word."""
    present = sentences > 0
    count = jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1).astype(jnp.float32)
    place = jnp.arange(1, sentences.shape[1] + 1, dtype=jnp.float32)[None, :] / count
    component = jnp.arange(1, dim + 1, dtype=jnp.float32) / dim
    weights = (1 - place)[:, :, None] - component[None, None, :] * (1 - 2 * place)[:, :, None]
    return jnp.where(present[:, :, None], weights, 0)


def softmax_weights(
    scores: Float[Array, "batch memory"], mask: Bool[Array, "batch memory"]
) -> Float[Array, "batch memory"]:
    """Of the sentences that are there, at least one of each story."""
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))


def linear_weights(
    scores: Float[Array, "batch memory"], mask: Bool[Array, "batch memory"]
) -> Float[Array, "batch memory"]:
    """Dot products as weights, without the softmax: what training starts with (section 4.2)."""
    return jnp.where(mask, scores, 0)


def _spread(
    weights: Float[Array, "batch memory"], places: Int32[Array | np.ndarray, "batch memory"], size: int
) -> Float[Array, "batch {size}"]:
    """The weights at these places, added up where places are equal."""
    rows = jnp.arange(weights.shape[0], dtype=jnp.int32)[:, None]
    return jnp.zeros((weights.shape[0], size), weights.dtype).at[rows, places].add(weights)
