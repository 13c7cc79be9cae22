"""Edges on disk, in files by some bits of their keys: as many files as a radix partition makes. Importing this module imports numba."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt64

from ginex_jax.compilation import compiled

EDGES_AT_ONCE = 1 << 20


class SpilledEdges(NamedTuple):
    """A file of edges whose keys agree in all but the last `bits` bits."""

    path: Path
    bits: int
    num_edges: int


class SpillFolder:
    """Edges in files by `split` bits of their keys, the highest of the last `bits`; buffered, in the order they came."""

    def __init__(self, folder: Path, bits: int, split: int, memory_bytes: int, weighted: bool) -> None:
        folder.mkdir(parents=True)
        self._folder, self._bits, self._split = folder, bits, split
        self._memory_bytes = memory_bytes
        self._weighted = weighted
        self._counts = np.zeros(1 << split, np.int64)
        self._buffers: dict[int, list[tuple[np.ndarray, np.ndarray | None]]] = {}
        self._buffered_bytes = 0

    def append(self, keys: UInt64[np.ndarray, " edges"], weights: Float32[np.ndarray, " edges"] | None) -> None:
        shift = np.uint64(self._bits - self._split)
        mask = np.uint64((1 << self._split) - 1)
        ordered = np.empty_like(keys)
        ordered_weights = None if weights is None else np.empty_like(weights)
        starts = _partition(keys, _NO_WEIGHTS if weights is None else weights, shift, mask, ordered,
                            _NO_WEIGHTS if ordered_weights is None else ordered_weights)  # fmt: skip
        for bucket in np.flatnonzero(np.diff(starts)).tolist():
            part = slice(starts[bucket], starts[bucket + 1])
            self._buffers.setdefault(bucket, []).append(
                (ordered[part], None if ordered_weights is None else ordered_weights[part])
            )
        self._counts += np.diff(starts)
        self._buffered_bytes += ordered.nbytes + (0 if ordered_weights is None else ordered_weights.nbytes)
        if self._buffered_bytes >= self._memory_bytes:
            self._flush()

    def closed(self) -> list[SpilledEdges]:
        """The files, in the order of their keys."""
        self._flush()
        return [
            SpilledEdges(self._path(bucket), self._bits - self._split, int(self._counts[bucket]))
            for bucket in np.flatnonzero(self._counts).tolist()
        ]

    def _flush(self) -> None:
        for bucket, parts in self._buffers.items():
            with self._path(bucket).open("ab") as stream:
                for keys, _ in parts:
                    stream.write(keys.data)
            if self._weighted:
                with _weights_path(self._path(bucket)).open("ab") as stream:
                    for _, weights in parts:
                        assert weights is not None
                        stream.write(weights.data)
        self._buffers.clear()
        self._buffered_bytes = 0

    def _path(self, bucket: int) -> Path:
        return self._folder / str(bucket)


_NO_WEIGHTS = np.empty(0, np.float32)


@compiled
def _partition(keys, weights, shift, mask, ordered, ordered_weights):
    """Puts keys, and weights where there are any, in the order of their buckets; returns where each bucket starts."""
    starts = np.zeros(np.int64(mask) + 2, np.int64)
    for key in keys:
        starts[np.int64((key >> shift) & mask) + 1] += 1
    for bucket in range(len(starts) - 1):
        starts[bucket + 1] += starts[bucket]
    places = starts[:-1].copy()
    for i in range(len(keys)):
        bucket = np.int64((keys[i] >> shift) & mask)
        place = places[bucket]
        places[bucket] = place + 1
        ordered[place] = keys[i]
        if len(weights):
            ordered_weights[place] = weights[i]
    return starts


def pieces(
    file: SpilledEdges, weighted: bool, edges_at_once: int = EDGES_AT_ONCE
) -> Iterator[tuple[UInt64[np.ndarray, " edges"], Float32[np.ndarray, " edges"] | None]]:
    for start in range(0, file.num_edges, edges_at_once):
        count = min(edges_at_once, file.num_edges - start)
        yield (
            np.fromfile(file.path, np.uint64, count, offset=start * 8),
            np.fromfile(_weights_path(file.path), np.float32, count, offset=start * 4) if weighted else None,
        )


def split_evenly(file: SpilledEdges, most_edges: int, weighted: bool) -> Iterator[SpilledEdges]:
    """One edge repeated more often than fits in memory: nothing is left to sort."""
    for number, (keys, weights) in enumerate(pieces(file, weighted, most_edges)):
        path = file.path.with_name(f"{file.path.name}.{number}")
        keys.tofile(path)
        if weights is not None:
            weights.tofile(_weights_path(path))
        yield SpilledEdges(path, 0, len(keys))
    remove(file.path)


def _weights_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.weights")


def remove(path: Path) -> None:
    path.unlink()
    _weights_path(path).unlink(missing_ok=True)
