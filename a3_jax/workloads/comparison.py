"""Quality against bytes: a task done by A3, with and without conditioned keys, and by each baseline. A row of numbers for each.

A task's own quality is in the row beside what attention missed: accuracy for the memory network, and for the encoder the
cosine of its embeddings with those of exact attention and the places of the passages; for a decoder the divergence of the next token's
probabilities.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from a3_jax.workloads.babi import EncodedQuestions
from a3_jax.workloads.compared_attention import (
    Baseline,
    BaselineName,
    Measured,
    Method,
    Search,
    attend_by,
    attend_steps_by,
)
from a3_jax.workloads.decode import Text, log_softmax
from a3_jax.workloads.decode_inputs import StepInputs
from a3_jax.workloads.encoder import Attention, Encoder, encode
from a3_jax.workloads.encoder_files import padded
from a3_jax.workloads.memory_evaluation import chunks_of
from a3_jax.workloads.memory_network import MemoryNetwork, Reading, look
from a3_jax.workloads.memory_training import Parameters
from a3_jax.workloads.passages import Passage
from a3_jax.workloads.retrieval import PASSAGE_LENGTH, SENTENCE_LENGTH, ranks_of

SHARES = (0.5, 0.25, 0.125, 0.0625)  # of exact attention's bytes, and of n for M
NAMES: tuple[BaselineName, ...] = (
    "oracle top k",
    "exact top k",
    "SparQ",
    "SparQ, mean value",
    "Quest",
    "sign hash",
    "sliding window",
    "random",
)
EXACT = Baseline(name="oracle top k", share=1)
_BATCH_TOKENS = 4 * PASSAGE_LENGTH


def methods(*, page_size: int = 16, shares: Sequence[float] = SHARES, shared: bool = False) -> Iterator[Method]:
    """A3 with its keys as they are, centred, rotated and both, with M = share n and T = 5 %; then every baseline with those shares, the
    exact top k, which reads all keys, with those of the other half.

    `shared` adds centring alone and both, fitted on many texts.
    """
    changes = [(False, False, False), (True, False, False), (False, True, False), (True, True, False)]
    changes += [(True, False, True), (True, True, True)] if shared else []
    for center, rotate, together in changes:
        for share in shares:
            yield Search(iterations=share, center=center, rotate=rotate, shared=together)
    for name in NAMES:
        for share in shares:
            # Reading all keys is half of the bytes, if keys and values are as wide.
            allowed = (1 + share) / 2 if name == "exact top k" else share
            yield Baseline(name=name, share=allowed, page_size=page_size)


def row_of(method: Method, measured: Measured, quality: dict[str, float]) -> dict[str, Any]:
    """For JSON. Means over queries; `bytes_over_exact` is a sum over a sum."""
    asked = {"M_over_n": method.iterations} if isinstance(method, Search) else {"share": method.share}
    return {
        "method": method.name,
        **asked,
        "bytes": float(np.mean(measured.bytes)),
        "bytes_over_exact": float(np.sum(measured.bytes) / np.sum(measured.exact_bytes)),
        **{name: float(np.mean(getattr(measured, name))) for name in ("mass", "recall", "error")},
        **quality,
    }


def compare_memory_network(
    questions: EncodedQuestions, network: MemoryNetwork, parameters: Parameters, chosen: Sequence[Method]
) -> Iterator[dict[str, Any]]:
    """Of every method the mean accuracy over tasks, and what attention missed in all hops.

    A method takes some ten seconds for 20,000 questions, and a minute where it fits a rotation to each story.
    """
    exact = _answers(questions, network, parameters, EXACT)[0]
    for method in chosen:
        words, measured = _answers(questions, network, parameters, method)
        quality = {"accuracy": _accuracy(questions, words), "exact_accuracy": _accuracy(questions, exact)}
        yield row_of(method, measured, quality)


def _answers(
    questions: EncodedQuestions, network: MemoryNetwork, parameters: Parameters, method: Method
) -> tuple[np.ndarray, Measured]:
    """The words, and what was measured by hop and question."""
    words = np.zeros(len(questions.answers), np.int32)
    found: list[list[np.ndarray]] = []
    for rows, batch in chunks_of(questions):
        reading = cast(Reading, network.apply(parameters, batch, method="read"))

        def attend(hop: int, query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, Measured]:
            asking = jnp.ones((len(query), 1), bool)
            output, measured = attend_by(method, query[:, None, None], key[:, None], value[:, None], mask, asking)
            return output[:, 0, 0], jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0, 0], measured)

        query, by_hop = look(reading, attend)
        words[rows] = np.argmax(np.asarray(network.apply(parameters, query, method="answer")), axis=1)
        # The last chunk is filled up with questions that are there already.
        _, first = np.unique(rows, return_index=True)
        found += [[field[first] for field in measured] for measured in by_hop]
    return words, _joined(found)


def _accuracy(questions: EncodedQuestions, words: np.ndarray) -> float:
    right = words == questions.answers
    return float(np.mean([right[questions.tasks == task].mean() for task in np.unique(questions.tasks)]))


def compare_encoder(
    encoder: Encoder, passages: Sequence[Passage], chosen: Sequence[Method]
) -> Iterator[dict[str, Any]]:
    """Of every method the mean cosine with the embeddings of exact attention, over passages, recall at 1 and 10, and what attention missed.

    A method takes half a second for a passage.
    """
    exact, _ = _embeddings(encoder, [passage.tokens for passage in passages], EXACT, PASSAGE_LENGTH)
    for method in chosen:
        found, measured = _embeddings(encoder, [passage.tokens for passage in passages], method, PASSAGE_LENGTH)
        asked, _ = _embeddings(encoder, [passage.sentence for passage in passages], method, SENTENCE_LENGTH)
        ranks = ranks_of(found, asked)
        quality = {
            "cosine_with_exact": float(np.mean(np.sum(found * exact, axis=1))),
            "recall_at_1": float(np.mean(ranks <= 1)),
            "recall_at_10": float(np.mean(ranks <= 10)),
        }
        yield row_of(method, measured, quality)


def _embeddings(
    encoder: Encoder, texts: Sequence[Sequence[int]], method: Method, length: int
) -> tuple[np.ndarray, Measured]:
    """Of length 1, and what was measured, an entry for every query of every layer, head and text; padding is left out."""
    tokens, mask = padded(texts, length)
    size = max(1, _BATCH_TOKENS // length)
    embeddings, found = [], []
    for start in range(0, len(texts), size):
        rows = np.arange(start, start + size)
        rows[rows >= len(texts)] = start  # one shape is compiled
        real = min(size, len(texts) - start)
        arrays = jnp.asarray(tokens[rows]), jnp.asarray(mask[rows])
        batch, by_layer = encode(encoder, *arrays, attention=_attention_of(method))
        embeddings.append(np.asarray(batch)[:real])
        asked = np.broadcast_to(mask[rows[:real], None, :], (real, encoder.num_heads, length))
        found += [[np.asarray(field)[:real][asked] for field in measured] for measured in by_layer]
    return np.concatenate(embeddings), _joined(found)


def compare_decoder(texts: Iterable[Text], chosen: Sequence[Method]) -> list[dict[str, Any]]:
    """Of every method, at the steps of all texts, the divergence of the next token's probabilities from those with exact attention, nats,
    the perplexity, and what attention missed. Errors go on from layer to layer. ValueError as in `attend_steps_by`.
    """
    measured: list[list[list[np.ndarray]]] = [[] for _ in chosen]
    kl: list[list[np.ndarray]] = [[] for _ in chosen]
    nll: list[list[np.ndarray]] = [[] for _ in chosen]
    for text in texts:
        exact = log_softmax(text.steps(lambda inputs: attend_steps_by(EXACT, inputs)[0]))
        for place, method in enumerate(chosen):

            def attend(
                inputs: StepInputs, method: Method = method, found: list[list[np.ndarray]] = measured[place]
            ) -> Float[np.ndarray, "heads steps d"]:
                output, one = attend_steps_by(method, inputs)
                found.append([np.ravel(field) for field in one])
                return output

            logits = log_softmax(text.steps(attend))
            kl[place].append((np.exp(exact) * (exact - logits)).sum(1))
            nll[place].append(-logits[np.arange(len(logits)), text.targets])
    return [
        row_of(
            method,
            _joined(measured[place]),
            {
                "kl": float(np.concatenate(kl[place]).mean()),
                "perplexity": float(np.exp(np.concatenate(nll[place]).mean())),
            },
        )
        for place, method in enumerate(chosen)
    ]


def _attention_of(method: Method) -> Attention:
    def attention(query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, Measured]:
        return attend_by(method, query, key, value, mask, mask)

    return attention


def _joined(parts: Sequence[Sequence[np.ndarray]]) -> Measured:
    return Measured(*(np.concatenate(column) for column in zip(*parts, strict=True)))
