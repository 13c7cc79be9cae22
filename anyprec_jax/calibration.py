"""Calibration windows: which tokens the sensitivity of the weights is measured on."""

from collections.abc import Sequence
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


def mixed_windows(
    texts: Sequence[Int32[np.ndarray, " _"]], *, num_sequences: int, sequence_length: int, seed: int
) -> Int32[np.ndarray, "num_sequences sequence_length"]:
    """`calibration_windows` of several texts, as many of each as of any other.

    A text too short for its share gives the windows that it has room for, and the others share what is missing; what does not divide
    goes to the first. Of one text the windows are those of `calibration_windows`.

    Raises:
      ValueError: as `calibration_windows`, and if there is no text.
    """
    if not texts:
        raise ValueError("calibration needs at least one text")
    room = [len(tokens) // max(sequence_length, 1) for tokens in texts]
    if len(texts) == 1 or num_sequences < 1 or sequence_length < 2 or sum(room) < num_sequences:
        whole = np.concatenate(texts)  # one text, or one error for all of them
        return calibration_windows(whole, num_sequences=num_sequences, sequence_length=sequence_length, seed=seed)
    windows = [
        calibration_windows(tokens, num_sequences=share, sequence_length=sequence_length, seed=seed)
        for tokens, share in zip(texts, _shares(room, num_sequences), strict=True)
        if share
    ]
    return np.concatenate(windows)


def _shares(room: Sequence[int], total: int) -> list[int]:
    """Splits `total`, at most the sum of the room, as evenly as the room of each allows: one at a time to whoever has least."""
    shares = [0] * len(room)
    for _ in range(total):
        poorest = min((i for i in range(len(room)) if shares[i] < room[i]), key=shares.__getitem__)
        shares[poorest] += 1
    return shares


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
