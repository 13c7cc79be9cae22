"""The paper's bAbI evaluation from a folder to numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a3_jax.cost.hardware import Hardware
from a3_jax.workloads.babi import EncodedQuestions, encode, read_folder, vocabulary_of
from a3_jax.workloads.memory_evaluation import ROW_COUNTS, Setting, check_settings, evaluate, memory_sizes, row_counts
from a3_jax.workloads.memory_report import report_rows
from a3_jax.workloads.memory_training import Epoch, TrainingConfig
from a3_jax.workloads.stories import generated_questions
from a3_jax.workloads.trained_network import train_or_load


def run(
    folder: Path | None,
    settings: Sequence[Setting],
    config: TrainingConfig,
    hardware: Hardware,
    *,
    seed: int,
    file: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> dict[str, Any]:
    """Trains or loads a network, evaluates it, and says what came out, ready for JSON.

    Args:
      folder: of bAbI; None for made-up stories.
      settings: the first one with both selections off.
      seed: of training and of made-up stories.
      file: of the trained network.

    Errors are those of `read_folder`, `train_or_load`, and `check_settings`, which comes first.
    """
    check_settings(settings)
    questions = generated_questions(seed=seed) if folder is None else read_folder(folder)
    vocabulary = vocabulary_of(questions.training)
    training, test = encode(questions.training, vocabulary), encode(questions.test, vocabulary)
    trained = train_or_load(file, training, len(vocabulary), config, seed=seed, on_epoch=on_epoch)
    sizes = memory_sizes(training)
    outcomes = evaluate(test, trained.network, trained.parameters, settings, sizes=sizes)
    return {
        "workload": "babi",
        "data": "made-up stories" if folder is None else folder.name,
        "seed": seed,
        "hops": config.num_hops,
        "questions": {"training": len(training.answers), "test": len(test.answers)},
        "training_seconds": trained.seconds,
        "config": trained.identity["config"],
        "n": {rows: _distribution(row_counts(test, rows, sizes)) for rows in ROW_COUNTS},
        "memory_size_by_task": sizes,
        "sentences_by_task": _by_task(test),
        "settings": report_rows(outcomes, hardware, dim=config.dim),
    }


def _distribution(n: np.ndarray) -> dict[str, float]:
    """Of n over questions."""
    least, low, median, high, most = np.quantile(n, (0, 0.1, 0.5, 0.9, 1))
    return {
        "mean": float(n.mean()),
        "min": float(least),
        "10 %": float(low),
        "median": float(median),
        "90 %": float(high),
        "max": float(most),
    }


def _by_task(questions: EncodedQuestions) -> dict[int, float]:
    """Mean sentences before a question."""
    return {
        int(task): float(questions.story_sizes[questions.tasks == task].mean()) for task in np.unique(questions.tasks)
    }
