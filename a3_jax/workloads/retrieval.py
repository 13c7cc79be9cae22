"""Finding the passage that a sentence was taken from, by an encoder with A3 inside: how well, and what it costs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from a3_jax.workloads.encoder import Attention, Encoder, encode
from a3_jax.workloads.encoder_attention import Setting, attention_of
from a3_jax.workloads.encoder_files import padded
from a3_jax.workloads.passages import Passage

PASSAGE_LENGTH, SENTENCE_LENGTH = 320, 64  # what texts are padded to
_BATCH_TOKENS = 4 * PASSAGE_LENGTH  # of a call: scores of a layer take tens of MB

Progress = Callable[[int, int], object]


class QueryCounts(NamedTuple):
    """One entry for every query of every head, layer and text, padding left out.

    Attributes:
      n: rows of its key, the tokens of its text.
      M, C, K: iterations, candidates, rows kept.
      keys: key matrices that these queries asked, which is how many were sorted.
    """

    n: Int32[np.ndarray, " queries"]
    M: Int32[np.ndarray, " queries"]
    C: Int32[np.ndarray, " queries"]
    K: Int32[np.ndarray, " queries"]
    keys: int


class Retrieval(NamedTuple):
    """What a setting did.

    Attributes:
      ranks: of every sentence the place of its passage, from 1.
      passages, sentences: embeddings of length 1.
      counts: of all texts, passages first.
    """

    ranks: Int32[np.ndarray, " sentences"]
    passages: Float[np.ndarray, "passages width"]
    sentences: Float[np.ndarray, "sentences width"]
    counts: QueryCounts

    @property
    def mean_reciprocal_rank(self) -> float:
        return float(np.mean(1 / self.ranks))

    def recall(self, k: int) -> float:
        """The part of the sentences whose passage is among the first k."""
        return float(np.mean(self.ranks <= k))


def retrieve(
    encoder: Encoder, passages: Sequence[Passage], setting: Setting, *, progress: Progress = lambda done, total: None
) -> Retrieval:
    """Embeds passages and sentences with A3 as the setting says in every layer, and ranks passages by cosine.

    `progress` is called with texts done and texts in all. ValueError for a text that is longer than 320 or 64 tokens, and as
    `attention_of` has it. A passage of 300 tokens takes a third of a second of one core, half as much again with M = n / 2.
    """
    attention = attention_of(setting)
    total = 2 * len(passages)
    texts = [passage.tokens for passage in passages]
    first, counts = embed(encoder, texts, attention, length=PASSAGE_LENGTH, progress=lambda n: progress(n, total))
    second, more = embed(
        encoder,
        [passage.sentence for passage in passages],
        attention,
        length=SENTENCE_LENGTH,
        progress=lambda n: progress(len(passages) + n, total),
    )
    return Retrieval(ranks_of(first, second), first, second, _joined([counts, more]))


def ranks_of(
    passages: Float[np.ndarray, "n width"], sentences: Float[np.ndarray, "n width"]
) -> Int32[np.ndarray, " n"]:
    """The place of passage i for sentence i: one more than there are passages that are nearer, or as near."""
    similarity = sentences @ passages.T
    own = np.diag(similarity)[:, None]
    return (similarity >= own).sum(1).astype(np.int32)


def embed(
    encoder: Encoder,
    texts: Sequence[Sequence[int]],
    attention: Attention,
    *,
    length: int,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[Float[np.ndarray, "texts width"], QueryCounts]:
    """Embeddings of texts, padded to one length and taken a few at a time, and the counts of all their queries."""
    tokens, mask = padded(texts, length)
    size = max(1, _BATCH_TOKENS // length)
    embeddings, counts = [], []
    for start in range(0, len(texts), size):
        # The last batch is filled with its first text, so that only one shape is compiled.
        rows = np.arange(start, start + size)
        rows[rows >= len(texts)] = start
        real = min(size, len(texts) - start)
        found, by_layer = encode(encoder, jnp.asarray(tokens[rows]), jnp.asarray(mask[rows]), attention=attention)
        embeddings.append(np.asarray(found)[:real])
        for layer in by_layer:
            counts.append(_of_queries([np.asarray(count)[:real] for count in layer], mask[rows[:real]]))
        progress(start + real)
    return np.concatenate(embeddings), _joined(counts)


def _of_queries(counts: Sequence[Int32[np.ndarray, "batch heads seq"]], mask: np.ndarray) -> QueryCounts:
    """In the order of text, head, query."""
    heads = counts[0].shape[1]
    valid = np.broadcast_to(mask[:, None, :], counts[0].shape)
    rows = np.broadcast_to(mask.sum(1, dtype=np.int32)[:, None, None], valid.shape)
    return QueryCounts(rows[valid], *(count[valid] for count in counts), keys=len(mask) * heads)


def _joined(parts: Sequence[QueryCounts]) -> QueryCounts:
    arrays = (np.concatenate(column) for column in zip(*(part[:4] for part in parts), strict=True))
    return QueryCounts(*arrays, keys=sum(part.keys for part in parts))
