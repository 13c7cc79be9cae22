"""Slow derivations of what `refit` and `joint_codes` promise, in float64."""

import itertools

import numpy as np


def read(codes: np.ndarray, books: dict[int, np.ndarray], w: int) -> np.ndarray:
    """The matrix as w bits read it: the prefix of every code, looked up in its row's codebook."""
    prefix = codes.astype(np.int64) >> (max(books) - w)
    return np.take_along_axis(np.asarray(books[w], np.float64), prefix, axis=1)


def row_errors(
    weights: np.ndarray, codes: np.ndarray, books: dict[int, np.ndarray], moment: np.ndarray
) -> dict[int, np.ndarray]:
    """e @ G @ e of every row at every precision."""
    wide = moment.astype(np.float64)
    errors = {}
    for w in books:
        e = weights.astype(np.float64) - read(codes, books, w)
        errors[w] = np.einsum("rk,kl,rl->r", e, wide, e)
    return errors


def least_squares(weights: np.ndarray, codes: np.ndarray, size: int, moment: np.ndarray) -> tuple[np.ndarray, float]:
    """The best codebook of one row for codes below `size`, and its error; of unused codes the centroid is NaN."""
    root = np.linalg.cholesky(moment.astype(np.float64)).T  # root.T @ root = G
    choice = np.zeros((len(weights), size))
    choice[np.arange(len(weights)), codes] = 1.0
    used = np.unique(codes)
    solution, *_ = np.linalg.lstsq(root @ choice[:, used], root @ weights.astype(np.float64), rcond=None)
    book = np.full(size, np.nan)
    book[used] = solution
    residual = root @ (weights - choice[:, used] @ solution)
    return book, float(residual @ residual)


def best_codes(
    weights: np.ndarray, books: dict[int, np.ndarray], importance: dict[int, float], moment: np.ndarray
) -> float:
    """The least weighted sum of errors that any codes of one row reach with these codebooks, by trying all."""
    parent = max(books)
    best = np.inf
    for codes in itertools.product(range(2**parent), repeat=len(weights)):
        trial = np.array([codes], np.uint8)
        errors = row_errors(weights[None], trial, {w: book[None] for w, book in books.items()}, moment)
        best = min(best, sum(importance[w] * float(error[0]) for w, error in errors.items()))
    return best
