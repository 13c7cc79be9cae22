"""How many random rows a second the disk gives, measured on an array that is there. Importing this module imports numba."""

import time

import numpy as np

from ginex_jax.store.direct_reads import PieceReader, aligned_bytes
from ginex_jax.store.shards import ShardedArray

_PIECES_AT_ONCE = 4096
_SECTOR_BYTES = 512


def measure_disk_rate(
    array: ShardedArray, *, row_bytes: int, seconds: float = 1.0, num_threads: int = 64
) -> tuple[float, str | None]:
    """Reads random pieces of the size of a row from the array's files, as rows are read, for about so many seconds.

    Pieces start at whole sectors. Where the files are small, pieces that lie close together come in one request, and the rate is that of
    the device's or the system's cache.

    Returns:
      Pieces a second, and why they went through the page cache, or None where they did not.

    Raises:
      ValueError: no file has as many bytes as a row.
      OSError: the disk failed.
    """
    places = [(path.stat().st_size - row_bytes) // _SECTOR_BYTES + 1 for path in array.paths]
    files = np.flatnonzero(np.array(places) > 0)
    if len(files) == 0:
        raise ValueError(f"{array.path} is too small to measure reads of {row_bytes} bytes")
    choices, rng = np.array(places)[files], np.random.default_rng(0)
    reader = PieceReader(array.paths, max_piece_bytes=row_bytes, num_threads=num_threads)
    try:
        pitch = -(-row_bytes // reader.unit) * reader.unit
        out = aligned_bytes(_PIECES_AT_ONCE * pitch)
        sizes, targets = np.full(_PIECES_AT_ONCE, row_bytes), np.arange(_PIECES_AT_ONCE) * pitch

        def read() -> None:
            chosen = rng.choice(len(files), _PIECES_AT_ONCE, p=choices / choices.sum())
            offsets = rng.integers(0, choices[chosen]) * _SECTOR_BYTES
            reader.read(files[chosen], offsets, sizes, targets, out=out, room=pitch)

        read()  # compiles, and starts the threads
        count, start = 0, time.perf_counter()
        while True:
            read()
            count += _PIECES_AT_ONCE
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return count / elapsed, reader.note
    finally:
        reader.close()
