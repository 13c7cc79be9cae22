"""Feature rows through a memory map of the shard files, as most people read them; the copying is in C (mapped_rows.c)."""

import ctypes
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ginex_jax.features import ReadCounter, ReadStats, destination
from ginex_jax.store.shards import ShardedArray

_SOURCE = Path(__file__).with_name("mapped_rows.c")


class MappedFeatures:
    """A `FeatureStore`. The system is told that reads are random; one call reads at a time, with `num_threads` threads."""

    def __init__(self, array: ShardedArray, library: Path, *, num_threads: int) -> None:
        if array.offsets is not None or array.stride != array.row_bytes:
            raise ValueError(f"rows of {array.path} do not lie one behind the other")
        self._array, self._num_threads = array, num_threads
        self._lock, self._counter = threading.Lock(), ReadCounter()
        self._gather = compiled_library(_SOURCE, library).gather_mapped
        self._gather.restype = None
        self._maps = [_mapped(path) for path in array.paths]
        self._addresses = np.array([np.frombuffer(one, np.uint8).ctypes.data for one in self._maps], np.uint64)

    @property
    def shape(self) -> tuple[int, int]:
        return self._array.shape[0], self._array.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def stats(self) -> ReadStats:
        return self._counter.stats

    def read_rows(
        self, ids: np.ndarray, *, out: np.ndarray | None = None, slots: np.ndarray | None = None
    ) -> np.ndarray:
        start = time.perf_counter()
        out = destination(self, ids, out, slots)
        rows = np.ascontiguousarray(ids, np.int64)
        places = np.arange(len(ids)) if slots is None else np.ascontiguousarray(slots, np.int64)
        pointers = [ctypes.c_void_p(each.ctypes.data) for each in (self._addresses, rows, places)]
        sizes = [ctypes.c_int64(size) for size in (len(rows), self._array.shard_rows, self._array.stride)]
        with self._lock:
            self._gather(*pointers, *sizes, ctypes.c_void_p(out.ctypes.data), self._num_threads)
        self._counter.add(rows=len(rows), num_bytes=rows.size * self._array.row_bytes, requests=0, start=start)
        return out

    def resident_bytes(self) -> int:
        """Pages of the files that are in memory, whoever brought them there."""
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        total = 0
        for one, address in zip(self._maps, self._addresses.tolist(), strict=True):
            pages = np.zeros(-(-len(one) // mmap.PAGESIZE), np.uint8)
            if mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(one)), ctypes.c_void_p(pages.ctypes.data)):
                raise OSError(ctypes.get_errno(), "mincore failed")
            total += int((pages & 1).sum()) * mmap.PAGESIZE
        return total


def evict(paths: Sequence[Path]) -> None:
    """Out of the page cache."""
    for path in paths:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compiled_library(source: Path, library: Path) -> ctypes.CDLL:
    """Compiles a C file, here and now."""
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-pthread", str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library.absolute()))


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        one = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    one.madvise(mmap.MADV_RANDOM)
    return one
