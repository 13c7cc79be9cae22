"""A3 in the place of a memory network's attention: what is selected, what is answered (HPCA 2020, section VI-B, figures 11 to 13).

Queries are what a hop looks with, keys and values its memories; nothing is trained again.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from a3_jax.attention.approximate import Info, approx_attention
from a3_jax.attention.exact import score_rows
from a3_jax.metrics import top_k_recall
from a3_jax.sorted_keys import SortedKeys, sort_keys
from a3_jax.workloads.babi import MEMORY_SIZE, EncodedQuestions
from a3_jax.workloads.memory_network import MemoryBatch, MemoryNetwork, Reading, look
from a3_jax.workloads.memory_training import Parameters

# What n is: sentences of the story; the most that a story of the task has in training, which is the size of the memory that the task
# needs (the paper's mean of 20); or the most that the network takes, 50.
RowCount: TypeAlias = Literal["story", "task", "memory"]
ROW_COUNTS: tuple[RowCount, ...] = ("story", "task", "memory")

_TOP = 2  # rows with the largest scores that figure 13 looks for in bAbI
_CHUNK = 400  # questions
_WIDTHS = (6, 12, 24, MEMORY_SIZE)  # sentences; one compiled function each


class Setting(NamedTuple):
    """How A3 is set.

    Attributes:
      iterations: M, a number, or a float that is a fraction of n (rounded up, at least 1); None without candidate selection.
      threshold_percent: T; None without post-scoring.
      rows: what n is. It decides M where that is a fraction, and is what the accelerator holds; rows beyond the story are empty, and never
        selected.
    """

    iterations: int | float | None
    threshold_percent: float | None
    rows: RowCount = "story"


class Outcome(NamedTuple):
    """What came of a setting; an entry a question, and of what a hop does a row of these each.

    Attributes:
      right: whether the answer was.
      n: by the setting's reading.
      M, C, K: iterations, candidates and rows kept.
      top_kept: the share of the two rows with the largest scores that were kept.
    """

    setting: Setting
    tasks: Int32[np.ndarray, " questions"]
    right: Bool[np.ndarray, " questions"]
    n: Int32[np.ndarray, " questions"]
    M: Int32[np.ndarray, "hops questions"]
    C: Int32[np.ndarray, "hops questions"]
    K: Int32[np.ndarray, "hops questions"]
    top_kept: Float[np.ndarray, "hops questions"]

    @property
    def accuracy_by_task(self) -> dict[int, float]:
        return {int(task): float(self.right[self.tasks == task].mean()) for task in np.unique(self.tasks)}

    @property
    def accuracy(self) -> float:
        """The mean over tasks."""
        return float(np.mean(list(self.accuracy_by_task.values())))


class _Chunk(NamedTuple):
    """Of some questions and some settings."""

    words: Int32[Array, "settings questions"]
    M: Int32[Array, "settings hops questions"]
    C: Int32[Array, "settings hops questions"]
    K: Int32[Array, "settings hops questions"]
    top_kept: Float[Array, "settings hops questions"]


def memory_sizes(training: EncodedQuestions) -> dict[int, int]:
    """By task the number of sentences in its longest story, 50 at most."""
    return {int(task): int(training.story_sizes[training.tasks == task].max()) for task in np.unique(training.tasks)}


def row_counts(
    questions: EncodedQuestions, rows: RowCount, sizes: Mapping[int, int]
) -> Int32[np.ndarray, " questions"]:
    """n of every question; a test story that is longer than its task's memory counts in full."""
    if rows == "story":
        return questions.story_sizes
    if rows == "memory":
        return np.full(len(questions.answers), MEMORY_SIZE, np.int32)
    by_task = np.array([sizes.get(int(task), 0) for task in questions.tasks], np.int32)
    return np.maximum(by_task, questions.story_sizes)


def check_settings(settings: Sequence[Setting]) -> None:
    """ValueError, with what was wanted, for a setting that cannot be."""
    for setting in settings:
        m, t = setting.iterations, setting.threshold_percent
        if m is not None and not 0 < m < math.inf:
            raise ValueError(f"M should be above 0 and finite, got {m}")
        if t is not None and not 0 <= t <= 100:
            raise ValueError(f"T should be from 0 to 100 per cent, got {t}")
        if setting.rows not in ROW_COUNTS:
            raise ValueError(f"rows: wanted one of {', '.join(ROW_COUNTS)}, got {setting.rows!r}")


def iterations_for(iterations: int | float, n: Int32[np.ndarray, " questions"]) -> Int32[np.ndarray, " questions"]:
    """M of every question, for an n each."""
    if isinstance(iterations, int):
        return np.full_like(n, iterations)
    exact = Fraction(iterations).limit_denominator(10**6)  # 0.07 is no float
    return np.maximum(1, -(-n * exact.numerator // exact.denominator)).astype(np.int32)


def evaluate(
    questions: EncodedQuestions,
    network: MemoryNetwork,
    parameters: Parameters,
    settings: Sequence[Setting],
    *,
    sizes: Mapping[int, int],
) -> list[Outcome]:
    """Answers the questions with each of the settings; both selections off is exact attention.

    Args:
      sizes: `memory_sizes` of what was trained on.

    ValueError for settings that `check_settings` refuses. Keys are sorted once for all settings; then each costs a search for every
    hop of every question.
    """
    check_settings(settings)
    outcomes: dict[int, Outcome] = {}
    for searching in (False, True):
        numbers = [place for place, setting in enumerate(settings) if (setting.iterations is not None) == searching]
        if numbers:
            chosen = [settings[number] for number in numbers]
            outcomes |= zip(numbers, _evaluate_alike(questions, network, parameters, chosen, sizes), strict=True)
    return [outcomes[number] for number in range(len(settings))]


def _evaluate_alike(
    questions: EncodedQuestions,
    network: MemoryNetwork,
    parameters: Parameters,
    settings: Sequence[Setting],
    sizes: Mapping[int, int],
) -> list[Outcome]:
    """Of settings that all have a search, or all have none."""
    counts = [row_counts(questions, setting.rows, sizes) for setting in settings]
    wanted = [
        np.zeros_like(n) if setting.iterations is None else iterations_for(setting.iterations, n)
        for setting, n in zip(settings, counts, strict=True)
    ]
    thresholds = [setting.threshold_percent or 0.0 for setting in settings]  # 0 keeps every candidate
    most = None if settings[0].iterations is None else int(np.max(wanted))
    order, found = [], []
    for rows, batch in chunks_of(questions):
        iterations = jnp.asarray(np.stack(wanted)[:, rows])
        found.append(_answer_chunk(parameters, batch, iterations, jnp.asarray(thresholds, jnp.float32), network, most))
        order.append(rows)
    # Of a question that is there twice the first one.
    _, places = np.unique(np.concatenate(order), return_index=True)
    words, *counted = (np.concatenate(parts, axis=-1)[..., places] for parts in zip(*found, strict=True))
    return [
        Outcome(setting, questions.tasks, words[row] == questions.answers, n, *(part[row] for part in counted))
        for row, (setting, n) in enumerate(zip(settings, counts, strict=True))
    ]


def chunks_of(questions: EncodedQuestions) -> Iterator[tuple[Int[np.ndarray, " chunk"], MemoryBatch]]:
    """Which questions, and the questions, those with the shortest stories first; the last chunk is filled up with some of its own.

    Stories are cut off behind the longest one of the chunk, or soon after: what is empty is never selected, but sorted and searched.
    """
    sentences = jnp.asarray(questions.sentences)
    order = np.argsort(questions.story_sizes, kind="stable")
    size = min(_CHUNK, len(order))
    for start in range(0, len(order), size):
        rows = np.resize(order[start : start + size], size)
        width = next(width for width in _WIDTHS if width >= questions.story_sizes[rows].max())
        times = np.broadcast_to(np.arange(width, dtype=np.int32), (size, width))
        stories, asked = questions.stories[rows, :width], questions.questions[rows]
        yield rows, MemoryBatch(sentences, *map(jnp.asarray, (stories, times, asked)))


@functools.partial(jax.jit, static_argnames=("network", "most"))
def _answer_chunk(
    parameters: Parameters,
    batch: MemoryBatch,
    iterations: Int32[Array, "settings questions"],
    thresholds: Float[Array, " settings"],
    network: MemoryNetwork,
    most: int | None,
) -> _Chunk:
    """Setting by setting; `most` is the largest of all iterations, None for no search."""
    reading = cast(Reading, network.apply(parameters, batch, method="read"))
    keys = [] if most is None else [jax.vmap(sort_keys)(reading.memories[:, :, hop]) for hop in range(reading.num_hops)]

    def answer(setting: tuple[Array, Array]) -> _Chunk:
        found, said = _look_with_selection(reading, keys, *setting, most)
        logits = cast(Array, network.apply(parameters, found, method="answer"))
        infos, top_kept = zip(*said, strict=True)
        m, c, k = (jnp.stack([getattr(info, name) for info in infos]) for name in ("M", "C", "K"))
        return _Chunk(jnp.argmax(logits, axis=1).astype(jnp.int32), m, c, k, jnp.stack(top_kept))

    return jax.lax.map(answer, (iterations, thresholds))


def _look_with_selection(
    reading: Reading, keys: Sequence[SortedKeys], iterations: Array, threshold: Array, most: int | None
) -> tuple[Array, list[tuple[Info, Array]]]:
    """`look` by approximate attention; says what was selected, and how much of the rows with the largest scores that is."""

    def attend_one(
        query: Array, key: Array, value: Array, mask: Array, sorted_keys: SortedKeys | None, m: Array
    ) -> tuple:
        output, info = approx_attention(
            query,
            key,
            value,
            sorted_keys,
            num_iterations=None if most is None else m,
            max_iterations=most,
            threshold_percent=threshold,
            mask=mask,
        )
        return output, (info, top_k_recall(score_rows(query, key), info.kept, k=_TOP, mask=mask))

    def attend(hop: int, query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, tuple[Info, Array]]:
        return jax.vmap(attend_one)(query, key, value, mask, keys[hop] if keys else None, iterations)

    return look(reading, attend)
