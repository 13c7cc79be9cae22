"""What memory delivers: the bound of everything that reads weights once."""

import os
import statistics
import threading
import time

import numba
import numpy as np

from anyprec_jax.layout import huge_pages_empty

_BYTES = 2 << 30  # far beyond any cache
_BLOCK_WORDS = 1 << 20


@numba.njit(nogil=True)
def _read(words: np.ndarray) -> np.uint64:
    """Four streams side by side, as planes are read."""
    quarter = words.size // 4
    a = b = c = d = np.uint64(0)
    for i in range(quarter):
        a ^= words[i]
        b ^= words[quarter + i]
        c ^= words[2 * quarter + i]
        d ^= words[3 * quarter + i]
    return a ^ b ^ c ^ d


class Bandwidth:
    """Reads 2 GiB in huge pages, with as many threads as XLA uses."""

    def __init__(self) -> None:
        self._words = huge_pages_empty((_BYTES // 8,), np.dtype(np.uint64))
        self._words[:] = np.arange(self._words.size, dtype=np.uint64)
        _read(self._words[:4])
        self._threads = num_threads()

    def run(self) -> None:
        blocks, lock = iter(range(0, self._words.size, _BLOCK_WORDS)), threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    start = next(blocks, None)
                if start is None:
                    return
                _read(self._words[start : start + _BLOCK_WORDS])

        threads = [threading.Thread(target=work) for _ in range(self._threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def measure(self, repeats: int = 5) -> float:
        """Bytes per second, the median of a few passes."""
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.run()
            seconds.append(time.perf_counter() - start)
        return self.bytes_per_s(statistics.median(seconds))

    @staticmethod
    def bytes_per_s(seconds: float) -> float:
        return _BYTES / seconds


def num_threads() -> int:
    """Of XLA's pool on CPU: one for each processor that this process may use."""
    return len(os.sched_getaffinity(0))
