"""Synthetic graphs of any size: Graph500's R-MAT edges, and features that are worth learning from.

Chakrabarti, Zhan, Faloutsos, "R-MAT: a recursive model for graph mining" (SDM 2004), with the parameters and the edge factor of the
Graph500 benchmark. Everything is a pure function of the seed and of an edge's or a node's number: any slice can be made alone, in any
order, by any number of threads. Importing this module imports numba.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from ginex_jax.compilation import compiled, inlined
from ginex_jax.random_numbers import bounded, hashed
from ginex_jax.store.publishing import require_free

MAX_SCALE = 40
# Out of 2**32: an edge falls into the quadrants (source bit, target bit) = 00, 01, 10, 11 with .57, .19, .19 and .05.
_TO_A, _TO_B, _TO_C = (np.uint64(round(share * 2**32)) for share in (0.57, 0.57 + 0.19, 0.57 + 0.19 + 0.19))
_0, _1, _32 = np.uint64(0), np.uint64(1), np.uint64(32)
_LOW_WORD, _LOW_HALF = np.uint64(0xFFFF_FFFF), np.uint64(0xFFFF)
_16, _48 = np.uint64(16), np.uint64(48)
_EDGES, _SCRAMBLE, CLASSES, _CENTROIDS, _NOISE, SPLITS = (np.uint64(number) for number in range(6))  # a stream each
_NUM_ROUNDS = 4
_EDGES_AT_ONCE = 512
_FOUR_UNIFORMS = ((2**32 - 1) / 3) ** 0.5  # the standard deviation of the sum of four uniform integers in [0, 2**16)


def rmat_edges(
    scale: int, edge_factor: int, *, seed: int, start: int, stop: int
) -> tuple[Int64[np.ndarray, " edges"], Int64[np.ndarray, " edges"]]:
    """Edges number `start` up to, not including, `stop`, of the `edge_factor * 2**scale` of the graph, with their vertices scrambled.

    The graph is directed, and has self loops and repeated edges, as Graph500's has. Vertices are renumbered by a bijection that
    depends on the seed, so that a vertex's number says nothing about its degree.

    Args:
      scale: there are 2**scale vertices; 1 to 40.
      edge_factor: edges per vertex, at least 1.
      seed: in [0, 2**64).

    Returns:
      Sources and targets.

    Raises:
      ValueError: a number is out of range.

    Time O((stop - start) * scale).
    """
    _require_scale(scale, seed)
    if edge_factor < 1 or not 0 <= start <= stop <= edge_factor << scale:
        raise ValueError(
            f"edges {start} to {stop} should be within the {edge_factor} * 2**{scale} of the graph, edge factor at least 1"
        )
    sources, targets = np.empty(stop - start, np.int64), np.empty(stop - start, np.int64)
    _fill_edges(stream(seed, _EDGES), np.int64(scale), np.int64(start), sources, targets)
    keys = _scramble_keys(seed)
    _scramble(keys, np.int64(scale), sources)
    _scramble(keys, np.int64(scale), targets)
    return sources, targets


def scrambled(scale: int, vertices: Int64[np.ndarray, " vertices"], *, seed: int) -> Int64[np.ndarray, " vertices"]:
    """The bijection on [0, 2**scale) that renumbers the vertices."""
    _require_scale(scale, seed)
    if len(vertices) and (vertices.min() < 0 or vertices.max() >= 1 << scale):
        raise ValueError(f"vertices should be in [0, 2**{scale}), got {vertices.min()} to {vertices.max()}")
    result = vertices.copy()
    _scramble(_scramble_keys(seed), np.int64(scale), result)
    return result


def latent_class(seed: int, nodes: Int64[np.ndarray, " nodes"], num_classes: int) -> Int64[np.ndarray, " nodes"]:
    """The class in [0, num_classes) behind each node's features: a hash of seed and node, so that all are equally likely."""
    if num_classes < 1:
        raise ValueError(f"there should be at least one class, got {num_classes}")
    classes = np.empty(len(nodes), np.int64)
    _fill_classes(stream(seed, CLASSES), nodes, np.int64(num_classes), classes)
    return classes


def stream(seed: int, number: np.uint64) -> np.uint64:
    """The key of a seed's stream."""
    return np.uint64(hashed(np.uint64(seed), number))


def write_edge_list(path: Path, scale: int, edge_factor: int, *, seed: int, edges_per_piece: int = 1 << 20) -> None:
    """Writes the whole graph as a Parquet file with columns `src` and `dst`, which appears complete or not at all.

    A file that an earlier call wrote with the same arguments is left as it is, so that a command that was killed can be repeated.

    Raises:
      FileExistsError: something else is at `path`.

    Memory O(edges_per_piece).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _require_scale(scale, seed)
    made_with = {b"bandwise.rmat": f"scale {scale}, edge factor {edge_factor}, seed {seed}".encode()}
    if path.is_file() and _metadata(path) == made_with:
        return
    require_free(path)
    partial = path.with_name(f".{path.name}.partial")
    dtype = np.int32 if scale < 32 else np.int64
    schema = pa.schema([(name, pa.from_numpy_dtype(dtype)) for name in ("src", "dst")], made_with)
    num_edges = edge_factor << scale
    try:
        # The numbers look random: neither a dictionary nor compression would make them shorter.
        with pq.ParquetWriter(partial, schema, use_dictionary=False, compression="none") as writer:
            for start in range(0, num_edges, edges_per_piece):
                stop = min(start + edges_per_piece, num_edges)
                columns = rmat_edges(scale, edge_factor, seed=seed, start=start, stop=stop)
                writer.write_table(pa.table([pa.array(ids.astype(dtype)) for ids in columns], schema))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _metadata(path: Path) -> dict[bytes, bytes] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).metadata
    except pa.ArrowInvalid:
        return None


class LatentFeatures:
    """Features of 2**scale nodes, never all in memory: the centroid of the node's latent class plus noise, float32 [nodes, width].

    Every centroid and all noise is a sum of four uniform numbers, close to normal, with mean 0. A centroid's coordinates have
    standard deviation 1, the noise's are `noise` as large. A row depends on the seed and its node alone. A source of rows like a file.
    """

    def __init__(self, num_nodes: int, width: int, *, seed: int, num_classes: int, noise: float = 1.0) -> None:
        if num_nodes < 0 or width < 1 or num_classes < 1 or not 0 <= noise < np.inf:
            raise ValueError(
                f"{num_nodes} nodes of width {width} in {num_classes} classes with noise {noise}: width and classes should be "
                "at least 1, the noise finite and at least 0"
            )
        self.num_rows, self.width, self.dtype, self.name = num_nodes, width, np.dtype(np.float32), "features"
        self._seed, self._num_classes, self._noise = seed, num_classes, noise
        self._centroids = np.zeros((num_classes, width), np.float32)
        numbers = np.arange(num_classes)
        _add_noise(stream(seed, _CENTROIDS), numbers, np.float32(1.0), self._centroids)

    def rows(self, start: int, stop: int) -> Float32[np.ndarray, "rows width"]:
        """Rows `start` up to, not including, `stop`."""
        nodes = np.arange(start, stop)
        values = self._centroids[latent_class(self._seed, nodes, self._num_classes)]
        _add_noise(stream(self._seed, _NOISE), nodes, np.float32(self._noise), values)
        return values

    def blocks(self, rows_per_block: int) -> Iterator[Float32[np.ndarray, "rows width"]]:
        """All rows in order."""
        for start in range(0, self.num_rows, rows_per_block):
            yield self.rows(start, min(start + rows_per_block, self.num_rows))


def _require_scale(scale: int, seed: int) -> None:
    if not 1 <= scale <= MAX_SCALE or not 0 <= seed < 1 << 64:
        raise ValueError(f"scale should be 1 to {MAX_SCALE} and the seed in [0, 2**64), got {scale} and {seed}")


def _scramble_keys(seed: int) -> Any:
    key = stream(seed, _SCRAMBLE)
    return np.array([hashed(key, np.uint64(number)) for number in range(2 * _NUM_ROUNDS)], np.uint64)


@inlined
def _level(draw):
    """Source and target bit of one level from 32 random bits."""
    lower = np.int64(draw >= _TO_B)
    right = np.int64(draw >= _TO_A) - lower + np.int64(draw >= _TO_C)
    return lower, right


@compiled
def _fill_edges(key, scale, start, sources, targets):
    """Level by level over a few hundred edges at a time, which the compiler turns into vector instructions."""
    edges = np.empty(_EDGES_AT_ONCE, np.uint64)
    for first in range(0, len(sources), _EDGES_AT_ONCE):
        count = min(_EDGES_AT_ONCE, len(sources) - first)
        source, target = sources[first : first + count], targets[first : first + count]
        for i in range(count):
            edges[i] = hashed(key, np.uint64(start + first + i))
            source[i] = target[i] = 0
        for pair in range(scale // 2):  # a 64-bit number serves two levels
            for i in range(count):
                number = hashed(edges[i], np.uint64(pair))
                lower, right = _level(number >> _32)
                lower_2, right_2 = _level(number & _LOW_WORD)
                source[i] = (source[i] << 2) | (lower << 1) | lower_2
                target[i] = (target[i] << 2) | (right << 1) | right_2
        if scale % 2:
            for i in range(count):
                lower, right = _level(hashed(edges[i], np.uint64(scale // 2)) >> _32)
                source[i] = (source[i] << 1) | lower
                target[i] = (target[i] << 1) | right


@compiled
def _scramble(keys, scale, vertices):
    """Each step undoes: adding, multiplying by an odd number, and mixing high bits into low ones, all modulo 2**scale."""
    mask = (_1 << np.uint64(scale)) - _1
    shift = np.uint64((scale + 1) // 2)
    for i in range(len(vertices)):
        x = np.uint64(vertices[i])
        for step in range(_NUM_ROUNDS):
            x = (x + keys[2 * step]) & mask
            x = (x * (keys[2 * step + 1] | _1)) & mask
            x ^= x >> shift
        vertices[i] = np.int64(x)


@compiled
def _fill_classes(key, nodes, num_classes, classes):
    for i in range(len(nodes)):
        classes[i] = bounded(key, np.uint64(nodes[i]), num_classes)


@compiled
def _add_noise(key, nodes, scale, values):
    for i in range(len(nodes)):
        row = hashed(key, np.uint64(nodes[i]))
        for column in range(values.shape[1]):
            number = hashed(row, np.uint64(column))
            total = (number & _LOW_HALF) + ((number >> _16) & _LOW_HALF)
            total += ((number >> _32) & _LOW_HALF) + (number >> _48)
            values[i, column] += np.float32((np.float64(total) - 131070.0) / _FOUR_UNIFORMS) * scale
