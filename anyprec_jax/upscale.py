"""Incremental upscaling: codes of w bits become codes of w + 1 bits, and no other bit changes.

Any-Precision LLM, section 3.2. Like `kmeans1d`, compiled by numba and free of the interpreter lock.
"""

import numpy as np

from anyprec_jax.kmeans1d import Clusters, SortedRows, centroids, compiled


def upscale(rows: SortedRows, clusters: Clusters) -> Clusters:
    """Splits every cluster in two where that lowers the weighted squared error most: cluster c into 2 * c and 2 * c + 1.

    The split is the best of all positions (upstream: a fixed point of Lloyd's iteration), the leftmost of equals, and the centroids
    are those of the split taken. A cluster of one distinct value keeps it in the left half; an empty half inherits the
    centroid. The centroids of a row stay in non-decreasing order.

    Time O(k) a row.
    """
    n, parents = clusters.centroids.shape
    borders = np.empty((n, 2 * parents + 1), np.int32)
    borders[:, 0::2] = clusters.borders
    _split_rows(rows.values, rows.cumulative, borders)
    return Clusters(borders, centroids(rows, borders, np.repeat(clusters.centroids, 2, axis=1)))


@compiled
def _split_rows(values, cumulative, borders):
    """Fills in every second border."""
    scratch = np.empty(values.shape[1] + 1)
    for row in range(len(borders)):
        _split_row(values[row], cumulative[row], borders[row], scratch)


@compiled
def _split_row(values, cumulative, borders, scratch):
    for c in range(1, len(borders), 2):
        borders[c] = _best_split(values, cumulative, borders[c - 1], borders[c + 1], scratch)


@compiled
def _best_split(values, cumulative, start, stop, gains):
    """Where the right half of values[start:stop] starts. `gains` is scratch.

    With masses a and b and moments A and B of the halves, the error falls by (A * b - B * a)**2 / (a * b * (a + b)).
    """
    if stop - start < 2:
        return stop
    first = np.float64(values[start])
    moment = 0.0  # about the first value, so that nothing cancels
    for i in range(start + 1, stop):
        gains[i] = moment
        moment += (cumulative[i + 1] - cumulative[i]) * (values[i] - first)
    mass = cumulative[stop] - cumulative[start]
    for i in range(np.uint64(start + 1), np.uint64(stop)):  # no branches, no negative indices: vectorised
        left = cumulative[i] - cumulative[start]
        gains[i] = (gains[i] * mass - moment * left) ** 2 / (left * (mass - left))
    best = start + 1
    for i in range(start + 2, stop):
        if gains[i] > gains[best]:
            best = i
    return best
