"""Incremental upscaling: codes of w bits become codes of w + 1 bits, and nothing else changes.

Any-Precision LLM section 3.2. Importing this module imports numba.
"""

import numpy as np

from anyprec_jax.kmeans1d import Clusters, SortedRows, centroids, compiled


def upscale(rows: SortedRows, clusters: Clusters) -> Clusters:
    """Splits every cluster in two where that lowers the weighted squared error most: cluster c into 2 * c and 2 * c + 1.

    The split is the optimum over all positions (upstream: a fixed point of Lloyd's iteration), of equally good ones the leftmost,
    and the centroids are those of the split taken. A cluster of one distinct value keeps it in the left half; an empty half
    inherits the centroid. Centroids of a row stay in non-decreasing order.

    Time O(k) a row.
    """
    n, parents = clusters.centroids.shape
    borders = np.empty((n, 2 * parents + 1), np.int32)
    borders[:, 0::2] = clusters.borders
    _split_rows(rows.values, rows.cumulative, borders)
    return Clusters(borders, centroids(rows, borders, np.repeat(clusters.centroids, 2, axis=1)))


@compiled
def _split_rows(values, cumulative, borders):
    for row in range(len(borders)):
        _split_row(values[row], cumulative[row], borders[row])


@compiled
def _split_row(values, cumulative, borders):
    """Fills in every second border."""
    for c in range(1, len(borders), 2):
        borders[c] = _best_split(values, cumulative, borders[c - 1], borders[c + 1])


@compiled
def _best_split(values, cumulative, start, stop):
    """Where the right half of values[start:stop] starts.

    With masses a and b and moments A and B of the halves, the error falls by (A * b - B * a)**2 / (a * b * (a + b)). Of these
    fractions a + b is common, the rest is compared by cross multiplication.
    """
    if stop - start < 2:
        return stop
    first = np.float64(values[start])
    mass = cumulative[stop] - cumulative[start]
    moment = 0.0
    for i in range(start, stop):
        moment += (cumulative[i + 1] - cumulative[i]) * (values[i] - first)
    left_moment = 0.0
    best, best_numerator, best_denominator = start + 1, -1.0, 1.0
    for i in range(start + 1, stop):
        left_mass = cumulative[i] - cumulative[start]
        numerator = (left_moment * mass - moment * left_mass) ** 2
        denominator = left_mass * (mass - left_mass)
        if numerator * best_denominator > best_numerator * denominator:
            best, best_numerator, best_denominator = i, numerator, denominator
        left_moment += (cumulative[i + 1] - cumulative[i]) * (values[i] - first)
    return best
