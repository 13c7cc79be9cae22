"""Calibration windows: which tokens the sensitivity of the weights is measured on."""

from pathlib import Path

import numpy as np
from jaxtyping import Int32


def read_text(path: Path) -> str:
    """The whole of a text file.

    Raises:
      ValueError: it is not UTF-8.
      OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def calibration_windows(
    tokens: Int32[np.ndarray, " tokens"], *, num_sequences: int, sequence_length: int, seed: int
) -> Int32[np.ndarray, "num_sequences sequence_length"]:
    """Cuts `num_sequences` windows that do not overlap, at offsets drawn from `seed`.

    Every placement of the windows is equally likely: the tokens that no window covers are gaps, and choosing which of
    `num_gaps + num_sequences` places are windows chooses the placement. The upstream code takes the first tokens of random
    documents instead, which calibrates on openings only.

    Args:
      tokens: the whole text, without special tokens.
      num_sequences: windows to cut, at least 1.
      sequence_length: tokens in each, at least 2 (the first is never predicted).
      seed: of the offsets; the same arguments give the same windows.

    Raises:
      ValueError: a count out of range, or fewer than `num_sequences * sequence_length` tokens.
    """
    if num_sequences < 1 or sequence_length < 2:
        raise ValueError(
            f"calibration needs at least 1 sequence of at least 2 tokens, got {num_sequences} of {sequence_length}"
        )
    if seed < 0:
        raise ValueError(f"the seed of the calibration windows must be 0 or more, got {seed}")
    wanted = num_sequences * sequence_length
    if len(tokens) < wanted:
        raise ValueError(
            f"the calibration text has {len(tokens):,} tokens, but {num_sequences} sequences of {sequence_length} need "
            f"{wanted:,}: give more text, or fewer or shorter sequences"
        )
    num_gaps = len(tokens) - wanted
    rng = np.random.default_rng(seed)
    places = np.sort(rng.choice(num_gaps + num_sequences, size=num_sequences, replace=False))
    offsets = places + np.arange(num_sequences) * (sequence_length - 1)
    return np.stack([tokens[offset : offset + sequence_length] for offset in offsets])
