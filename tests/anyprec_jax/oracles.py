"""Slow, obvious NumPy versions of what `anyprec_jax` computes, written from the paper's rules and not from the code."""

import itertools
import math

import numpy as np


def masses(sensitivity: np.ndarray) -> np.ndarray:
    """One row's masses: sensitivities times the power of two that brings their sum to [2**45, 2**46), whole, at least 1."""
    total = math.fsum(sensitivity.tolist())
    if total == 0:
        return np.ones(len(sensitivity))
    scale = 1.0
    while total * scale < 2.0**45:
        scale *= 2
    while total * scale >= 2.0**46:
        scale /= 2
    return np.maximum(1, np.floor(sensitivity.astype(np.float64) * scale + 0.5))  # halves up


def distinct(weights: np.ndarray, sensitivity: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row's distinct values in ascending order, the mass of each, and the rank of every column."""
    values, ranks = np.unique(weights.astype(np.float64), return_inverse=True)
    return values, np.bincount(ranks, masses(sensitivity)), ranks


def error(values: np.ndarray, mass: np.ndarray) -> float:
    """Weighted squared error of one cluster around its weighted mean."""
    if len(values) == 0:
        return 0.0
    return float(np.sum(mass * (values - np.average(values, weights=mass)) ** 2))


def partition_error(values: np.ndarray, mass: np.ndarray, borders: np.ndarray) -> float:
    return sum(error(values[a:b], mass[a:b]) for a, b in itertools.pairwise(borders))


def least_error(values: np.ndarray, mass: np.ndarray, clusters: int) -> float:
    """The least error of any partition of ascending values into intervals; O(clusters * n**2) evaluations."""
    n = len(values)
    interval = np.array([[error(values[a:b], mass[a:b]) if a < b else 0.0 for b in range(n + 1)] for a in range(n + 1)])
    best = interval[0]
    for _ in range(clusters - 1):
        best = np.array([min(best[a] + interval[a, b] for a in range(b + 1)) for b in range(n + 1)])
    return float(best[n])


def seed_borders(values: np.ndarray, mass: np.ndarray, clusters: int) -> np.ndarray:
    """Borders of the best partition, by trying every one: for a handful of values."""
    n = len(values)
    if n <= clusters:
        return np.minimum(np.arange(clusters + 1), n)
    inner = itertools.combinations(range(1, n), clusters - 1)
    return min((np.array([0, *c, n]) for c in inner), key=lambda borders: partition_error(values, mass, borders))


def split(values: np.ndarray, mass: np.ndarray) -> int:
    """How many values go left in the best two-way split, by trying every one; all of them when there is nothing to split."""
    if len(values) < 2:
        return len(values)
    return min(range(1, len(values)), key=lambda i: partition_error(values, mass, np.array([0, i, len(values)])))


def quantize_row(
    weights: np.ndarray, sensitivity: np.ndarray, seed: int, parent: int
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Codes at the parent precision and float64 codebooks of one row, for a handful of weights."""
    values, mass, ranks = distinct(weights, sensitivity)
    borders = seed_borders(values, mass, 2**seed)
    centroids = _centroids(values, mass, borders, np.full(2**seed, values[-1]))
    codebooks = {seed: centroids}
    for w in range(seed + 1, parent + 1):
        halves = [split(values[a:b], mass[a:b]) for a, b in itertools.pairwise(borders)]
        inner = [[a, a + half] for a, half in zip(borders[:-1], halves, strict=True)]
        borders = np.array([*itertools.chain(*inner), len(values)])
        centroids = _centroids(values, mass, borders, np.repeat(centroids, 2))
        codebooks[w] = centroids
    codes = np.repeat(np.arange(2**parent), np.diff(borders))[ranks]
    return codes.astype(np.uint8), codebooks


def _centroids(values: np.ndarray, mass: np.ndarray, borders: np.ndarray, inherited: np.ndarray) -> np.ndarray:
    return np.array(
        [
            np.average(values[a:b], weights=mass[a:b]) if a < b else old
            for (a, b), old in zip(itertools.pairwise(borders), inherited, strict=True)
        ]
    )


def pack(codes: np.ndarray, precision: int) -> np.ndarray:
    """Bitplanes, bit by bit: plane 0 is the most significant, column 32 * j + i is bit i of word j."""
    n, k = codes.shape
    planes = np.zeros((precision, n, math.ceil(k / 32)), np.uint32)
    for plane, row, column in np.ndindex(precision, n, k):
        bit = int(codes[row, column]) >> (precision - 1 - plane) & 1
        planes[plane, row, column // 32] |= np.uint32(bit << (column % 32))
    return planes


def dequantize(codes: np.ndarray, codebook: np.ndarray, precision: int, parent: int) -> np.ndarray:
    """The weights that parent codes stand for at a precision, one by one."""
    n, k = codes.shape
    result = np.empty((n, k), np.float32)
    for row, column in np.ndindex(n, k):
        result[row, column] = codebook[row, int(codes[row, column]) >> (parent - precision)]
    return result
