"""Short texts as vectors: the singular value decomposition of their bags of words, with NumPy alone."""

import collections
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WORD = re.compile(r"[a-z]+")
_VALUES_AT_ONCE = 1 << 22
_NUM_ITERATIONS = 5
_NUM_EXTRA = 8  # directions beyond those wanted: the last ones converge slowly


class SparseMatrix(NamedTuple):
    """Row r has `data[indptr[r] : indptr[r + 1]]` in the columns `indices[...]`."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    num_columns: int

    @property
    def num_rows(self) -> int:
        return len(self.indptr) - 1


def word_vectors(texts: Sequence[str], *, width: int = 64, vocabulary: int = 20_000, seed: int = 0) -> np.ndarray:
    """float32 [texts, width]: each text's words, the rarer the heavier and of length 1 in all, along the first singular directions.

    Subspace iteration from a random start (Halko, Martinsson, Tropp, 2011); the sign of each direction makes its largest weight positive.
    """
    matrix = bag_of_words(texts, vocabulary=vocabulary)
    transposed = transpose(matrix)
    width = min(width, matrix.num_rows, matrix.num_columns)
    count = min(width + _NUM_EXTRA, matrix.num_rows, matrix.num_columns)
    basis = np.random.default_rng(seed).standard_normal((matrix.num_columns, count)).astype(np.float32)
    for _ in range(_NUM_ITERATIONS):
        basis, _ = np.linalg.qr(product(transposed, product(matrix, basis)))
    projected = product(matrix, basis)
    _, directions = np.linalg.eigh(projected.T @ projected)  # ascending
    directions = directions[:, ::-1][:, :width]
    largest = np.abs(basis @ directions).argmax(axis=0)
    directions = directions * np.sign((basis @ directions)[largest, np.arange(width)])
    return (projected @ directions).astype(np.float32)


def bag_of_words(texts: Sequence[str], *, vocabulary: int) -> SparseMatrix:
    """How often each of the commonest words is in each text, times log(texts / texts with the word), rows of length 1."""
    words = [collections.Counter(WORD.findall(text.lower())) for text in texts]
    frequency = collections.Counter(word for counts in words for word in counts)
    known = sorted(frequency, key=lambda word: (-frequency[word], word))[:vocabulary]
    column_of = {word: column for column, word in enumerate(known)}
    rarity = np.log(len(texts) / np.array([frequency[word] for word in known]))
    entries = [[(column_of[word], count) for word, count in counts.items() if word in column_of] for counts in words]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in entries])])
    columns, counts = np.array([entry for row in entries for entry in row], np.int64).reshape(-1, 2).T
    data = counts * rarity[columns]
    lengths = np.sqrt(np.bincount(row_numbers(indptr), data**2, minlength=len(texts)))
    data = data / np.maximum(lengths, 1e-9)[row_numbers(indptr)]
    return SparseMatrix(indptr, columns, data.astype(np.float32), len(known))


def row_numbers(indptr: np.ndarray) -> np.ndarray:
    """The row of each entry."""
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))


def transpose(matrix: SparseMatrix) -> SparseMatrix:
    order = np.argsort(matrix.indices, kind="stable")
    counts = np.bincount(matrix.indices, minlength=matrix.num_columns)
    rows = row_numbers(matrix.indptr)[order]
    return SparseMatrix(np.concatenate([[0], np.cumsum(counts)]), rows, matrix.data[order], matrix.num_rows)


def product(matrix: SparseMatrix, dense: np.ndarray) -> np.ndarray:
    """Sparse times dense [columns, width]; float32, some rows at a time."""
    result = np.zeros((matrix.num_rows, dense.shape[1]), np.float32)
    filled = np.flatnonzero(np.diff(matrix.indptr))
    step = max(1, _VALUES_AT_ONCE // dense.shape[1])
    borders = np.searchsorted(matrix.indptr[filled], np.arange(0, len(matrix.data), step))
    for rows in np.split(filled, np.unique(borders[borders > 0])):
        if len(rows):
            start, stop = matrix.indptr[rows[0]], matrix.indptr[rows[-1] + 1]
            terms = dense[matrix.indices[start:stop]] * matrix.data[start:stop, None]
            result[rows] = np.add.reduceat(terms, matrix.indptr[rows] - start, axis=0)
    return result
