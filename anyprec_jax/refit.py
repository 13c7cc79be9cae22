"""Codebooks by least squares: with the codes fixed, the centroids that make the error of a row's outputs least.

The mean of a cluster is the best centroid where errors of different columns do not meet. Under the second moment G of the inputs they
do, and the best codebook of a row solves (P.T @ G @ P) v = P.T @ G @ w, P[c, code] = 1 where column c has that code: the codebook
step of LNQ (GuidedQuant, Kim et al., ICML 2025), here for every precision of nested codes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from anyprec_jax.row_threads import for_rows

DAMPING = 0.2
_ROWS_AT_ONCE = 4


class NestedCodes(NamedTuple):
    """A matrix as codes of the parent precision and one codebook for each precision: `codebooks[w][r, codes[r, c] >> (parent - w)]`
    is what w bits read column c of row r as."""

    codes: UInt8[np.ndarray, "n k"]
    codebooks: dict[int, Float32[np.ndarray, "n _"]]  # every precision from the seed to the parent
    errors: dict[int, Float64[np.ndarray, " n"]]  # (w - q) @ G @ (w - q) of every row, G damped and scaled by `damped`


def refit(
    weights: Float32[np.ndarray, "n k"],
    codes: UInt8[np.ndarray, "n k"],
    codebooks: Mapping[int, Float[np.ndarray, "n _"]],
    moment: Float32[np.ndarray, "k k"],
    *,
    damping: float = DAMPING,
) -> NestedCodes:
    """Refits the codebooks of every precision; the codes stay.

    Codebooks of up to 64 centroids become the optimum, by Cholesky's factorisation; each centroid of a larger one is moved once to where it
    is best while the others stay. Neither raises the error. A centroid that no column has keeps its value. Deterministic, whatever the
    number of threads.

    Args:
      weights: finite.
      codes: of the parent precision.
      codebooks: to start from, of every precision from the seed to the parent.
      moment: G, symmetric, as `sensitivity` measures it.
      damping: see `damped`.

    Raises:
      ValueError: shapes or precisions that do not fit, or as `damped`.

    Time O(k**2) a row and 64**3, on all cores.
    """
    return descend(weights, codes, codebooks, damped(moment, damping), importance=None, rounds=0, sweeps=0)


def damped(moment: Float32[np.ndarray, "k k"], damping: float) -> Float32[np.ndarray, "k k"]:
    """The moment scaled to a mean diagonal of 1, its off-diagonal shrunk by 1 - damping.

    What the calibration text says about pairs of columns another text will not repeat exactly. The diagonal gets 1e-6 more, so that
    no column is free of charge; a moment of zeros becomes the identity: all weights matter alike.

    Raises:
      ValueError: not square, not finite, negative on the diagonal; a damping outside [0, 1].
    """
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        raise ValueError(f"the second moment of k inputs must be [k, k], got {moment.shape}")
    if not 0.0 <= damping <= 1.0:
        raise ValueError(f"damping must be between 0 and 1, got {damping}")
    diagonal = np.diag(moment).astype(np.float64)
    if not np.isfinite(moment).all() or (diagonal < 0).any():
        raise ValueError("the second moment must be finite, and at least 0 on its diagonal")
    mean = np.mean(diagonal)
    if mean == 0.0:
        return np.eye(len(moment), dtype=np.float32)
    result = (moment * ((1.0 - damping) / mean)).astype(np.float32)
    np.fill_diagonal(result, diagonal / mean + 1e-6)
    return result


def descend(
    weights: Float32[np.ndarray, "n k"],
    codes: UInt8[np.ndarray, "n k"],
    codebooks: Mapping[int, Float[np.ndarray, "n _"]],
    moment: Float32[np.ndarray, "k k"],
    *,
    importance: Mapping[int, float] | None,
    rounds: int,
    sweeps: int,
) -> NestedCodes:
    """`nested_rows.descend_rows` over a whole matrix: `rounds` of a refit and `sweeps` over the codes, and a last refit.

    Args:
      weights, codes, codebooks: as for `refit`.
      moment: damped.
      importance: weight of every precision's error; None weighs them alike.
      rounds, sweeps: at least 0.

    Raises:
      ValueError: shapes or precisions that do not fit.
    """
    from anyprec_jax import nested_rows

    _check(weights, codes, codebooks, moment)
    precisions = sorted(codebooks)
    seed, parent = precisions[0], precisions[-1]
    weighted = np.array([1.0 if importance is None else importance[w] for w in precisions], np.float32)
    order = np.argsort(-np.diag(moment), kind="stable")
    weights, codes, moment = np.ascontiguousarray(weights), codes.copy(), np.ascontiguousarray(moment)
    books = np.concatenate([np.asarray(codebooks[w], np.float32) for w in precisions], axis=1)
    errors = np.empty((len(weights), len(precisions)))

    def work(rows: slice) -> None:
        nested_rows.descend_rows(
            weights[rows], moment, seed, parent, weighted, order, rounds, sweeps, codes[rows], books[rows], errors[rows]
        )

    for_rows(work, num_rows=len(weights), rows_at_once=_ROWS_AT_ONCE)
    edges = np.cumsum([2**w for w in precisions])[:-1]
    return NestedCodes(
        codes=codes,
        codebooks=dict(zip(precisions, np.split(books, edges, axis=1), strict=True)),
        errors=dict(zip(precisions, errors.T, strict=True)),
    )


def _check(
    weights: np.ndarray,
    codes: np.ndarray,
    codebooks: Mapping[int, np.ndarray],
    moment: np.ndarray,
) -> None:
    if weights.ndim != 2 or weights.size == 0 or codes.shape != weights.shape:
        raise ValueError(
            f"weights and codes must be matrices of one shape [n, k], got {weights.shape} and {codes.shape}"
        )
    n, k = weights.shape
    if moment.shape != (k, k):
        raise ValueError(f"the second moment of {k} inputs must be [{k}, {k}], got {moment.shape}")
    precisions = sorted(codebooks)
    if not precisions or precisions != list(range(precisions[0], precisions[-1] + 1)) or precisions[-1] > 8:
        raise ValueError(f"codebooks must be of consecutive precisions up to 8, got {precisions}")
    for w, book in codebooks.items():
        if book.shape != (n, 2**w):
            raise ValueError(f"codebook {w} must be {(n, 2**w)}, got {book.shape}")
    if codes.max() >= 2 ** precisions[-1]:
        raise ValueError(f"codes of {precisions[-1]} bits are below {2 ** precisions[-1]}, got {codes.max()}")
