"""The authors' algorithm for one matrix, after their `quantize.py`, on the clustering library they use: the benchmarks' peer.

flash1dkmeans 0.2.5: greedy k-means++ and at most 50 rounds of Lloyd's iteration for the seed, a binary search for every split.
A row on which the library fails is left at zero and reported.
"""

import flash1dkmeans
import jax.numpy as jnp
import numba
import numpy as np

from anyprec_jax import AnyPrecArray, QuantizeConfig
from anyprec_jax.bitplanes import pack

_MAX_LLOYD_ROUNDS = 50
_seed = flash1dkmeans.numba_kmeans_1d_k_cluster
_split = flash1dkmeans.numba_kmeans_1d_two_cluster


def quantize_upstream(
    weights: np.ndarray, sensitivity: np.ndarray, config: QuantizeConfig, *, seed: int = 0
) -> tuple[AnyPrecArray, list[int]]:
    """Quantizes `weights` [n, k] weighted by `sensitivity` [n, k]; returns the array and the rows that the library fails on."""
    n, k = weights.shape
    codes = np.zeros((n, k), np.uint8)
    width = sum(2**w for w in config.precisions)
    books = np.zeros((n, width), np.float32)
    failed = np.zeros(n, np.bool_)
    _quantize_rows(weights, sensitivity, config.seed_precision, config.parent_precision, seed, codes, books, failed)
    edges = np.cumsum([2**w for w in config.precisions])[:-1]
    codebooks = dict(zip(config.precisions, np.split(books.astype(np.float16), edges, axis=1), strict=True))
    array = AnyPrecArray(
        bitplanes=pack(jnp.asarray(codes), precision=config.parent_precision),
        codebooks={w: jnp.asarray(book) for w, book in codebooks.items()},
        seed_precision=config.seed_precision,
        parent_precision=config.parent_precision,
        k=k,
    )
    return array, np.flatnonzero(failed).tolist()


@numba.njit(parallel=True)
def _quantize_rows(weights, sensitivity, seed_precision, parent_precision, seed, codes, books, failed):
    for row in numba.prange(len(weights)):
        failed[row] = not _quantize_row(
            weights[row], sensitivity[row], seed_precision, parent_precision, seed, codes[row], books[row]
        )


@numba.njit
def _quantize_row(weights, sensitivity, seed_precision, parent_precision, seed, codes, books):
    order = np.argsort(weights)
    x = weights[order]
    mass = sensitivity[order].astype(np.float64)
    mass[x == 0] = 0.0  # exact zeros have no say
    if mass.sum() == 0:
        mass[:] = 1.0
    wide = x.astype(np.float64)
    masses, moments, seconds = np.cumsum(mass), np.cumsum(mass * wide), np.cumsum(mass * wide * wide)
    try:
        centroids, borders = _seed(x, 2**seed_precision, _MAX_LLOYD_ROUNDS, masses, moments, seconds, 0, len(x), seed)
    except Exception:
        return False
    offset = len(centroids)
    books[:offset] = centroids
    for _ in range(seed_precision, parent_precision):
        clusters = len(centroids)
        finer, finer_borders = np.empty(2 * clusters, np.float32), np.empty(2 * clusters + 1, borders.dtype)
        finer_borders[2 * clusters] = len(x)
        for c in range(clusters):
            start, stop = borders[c], borders[c + 1]
            finer_borders[2 * c] = start
            if start == stop:
                finer[2 * c], finer[2 * c + 1], finer_borders[2 * c + 1] = centroids[c], centroids[c], start
                continue
            pair, ends = _split(x, masses, moments, start, stop)
            finer[2 * c], finer[2 * c + 1], finer_borders[2 * c + 1] = pair[0], pair[1], ends[1]
        centroids, borders = finer, finer_borders
        books[offset : offset + 2 * clusters] = centroids
        offset += 2 * clusters
    for c in range(len(centroids)):
        for i in range(borders[c], borders[c + 1]):
            codes[order[i]] = c
    return True
