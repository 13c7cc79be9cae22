"""Many small reads at once: a pool of threads that call `pread` outside the interpreter, past the page cache where the system allows it.

A disk reads random rows at its full rate only with dozens of requests waiting. Importing this module imports numba.
"""

import concurrent.futures
import contextlib
import errno
import inspect
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8
from numba import types
from numba.extending import intrinsic

from ginex_jax.compilation import compiled

# What is at most this far from the last request is read along with it: about as fast as a request of its own on a disk that takes 7 us a
# request and 1 us a KiB, and easier on the processor. Neighbour lists among 80 M edges took 15 % less time than with 4 KiB, and a quarter
# less of the processor's; 16 KiB gained nothing more.
_GAP_BYTES = 8192
_MAX_BYTES = 64 << 10  # of a request that was merged of several
_REQUESTS_A_THREAD = 4  # fewer are not worth waking another one
_UNITS = (512, 4096)
_PAGE_BYTES = 4096
_ATTEMPTS = 3
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_FILE, _START, _STOP, _END, _FIRST = range(
    5
)  # columns of requests: file, bytes read, end of what is needed, first piece

# By name and not by address, so that compiled code is good for other processes. Pointers are int64 here.
_pread = types.ExternalFunction("pread", types.int64(types.int32, types.int64, types.int64, types.int64))
_memcpy = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))


def _taken(typing_context: Any, counter: Any) -> Any:
    """Adds one to `counter[0]` atomically and returns what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(counter), generate


_take = intrinsic(inspect.unwrap(_taken))


@compiled
def _merge(files, offsets, sizes, order, unit, requests):
    """Rounds pieces to whole units and merges what is close; returns how many requests that makes."""
    count = 0
    for i in range(len(order)):
        piece = order[i]
        end = offsets[piece] + sizes[piece]
        start, stop = offsets[piece] // unit * unit, (end + unit - 1) // unit * unit
        if count > 0 and requests[count - 1, _FILE] == files[piece]:
            last = requests[count - 1]
            longer = max(stop, last[_STOP])
            if longer == last[_STOP] or (start <= last[_STOP] + _GAP_BYTES and longer - last[_START] <= _MAX_BYTES):
                last[_STOP] = longer
                last[_END] = max(end, last[_END])
                continue
        request = requests[count]
        request[_FILE], request[_START], request[_STOP] = files[piece], start, stop
        request[_END], request[_FIRST] = end, i
        count += 1
    requests[count, _FIRST] = len(order)
    return count


@compiled
def _read(descriptors, requests, order, offsets, sizes, places, unit, out, room, bounce, counter):
    """Takes requests until none is left. Returns -1, or the number of the first that failed."""
    while True:
        number = _take(counter)
        if number >= len(requests) - 1:
            return -1
        file, start = requests[number, _FILE], requests[number, _START]
        size, needed = requests[number, _STOP] - start, requests[number, _END] - start
        first, stop = requests[number, _FIRST], requests[number + 1, _FIRST]
        target = out + places[order[first]]
        straight = size <= room and target % unit == 0
        for i in range(first, stop):
            straight = straight and offsets[order[i]] == start
        if not straight:
            target = bounce
        if _pread(descriptors[file], target, size, start) < needed:
            return number
        for i in range(first + 1 if straight else first, stop):
            piece = order[i]
            _memcpy(out + places[piece], target + offsets[piece] - start, sizes[piece])


class PieceReader:
    """Reads pieces of files into memory. Thread-safe.

    Attributes:
      unit: reads start and end at multiples of this: 512 or 4096 bytes, or 1 where reads go through the page cache.
      note: why they do; None where they go past it.
    """

    def __init__(self, paths: Sequence[Path], *, max_piece_bytes: int, num_threads: int = 64) -> None:
        """Opens the files; they stay open.

        Args:
          paths: the files; pieces name them by number.
          max_piece_bytes: no piece is larger. Every thread has a buffer of about this size, 64 KiB at least.
          num_threads: requests on their way at the same time.

        Raises:
          OSError: a file cannot be opened.
        """
        if num_threads < 1:
            raise ValueError(f"num_threads should be at least 1, got {num_threads}")
        self.paths = tuple(paths)
        descriptors, self.unit, self.note = _opened(self.paths)
        self._descriptors = np.array(descriptors, np.int32)
        self._bounce_bytes = max(_MAX_BYTES, max_piece_bytes) + 2 * self.unit
        self._num_threads = num_threads
        self._local = threading.local()
        self._executor = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="direct-read")
        self._finalizer = weakref.finalize(self, _close, descriptors, self._executor)

    def close(self) -> None:
        """Closes the files and ends the threads; no other thread may be reading."""
        self._finalizer()

    def read(
        self,
        files: Int64[np.ndarray, " pieces"],
        offsets: Int64[np.ndarray, " pieces"],
        sizes: Int64[np.ndarray, " pieces"],
        places: Int64[np.ndarray, " pieces"],
        *,
        out: Shaped[np.ndarray, "..."],
        room: int = 0,
    ) -> tuple[int, int]:
        """Reads piece i to byte `places[i]` of `out`. Pieces may repeat and overlap in the files, not in memory.

        Nobody checks that `out` reaches that far: this is as careful as C.

        Args:
          files: numbers of files.
          offsets: where the pieces start.
          sizes: their bytes, at least 1.
          places: where they go, in bytes from the first element of `out`, which may be a view: whose strides are of no concern here.
          room: bytes from each place on that may be overwritten; where a whole request fits in, it is read without a copy.

        Returns:
          Requests made, and bytes asked for.

        Raises:
          ValueError: after `close`.
          OSError: a read failed or came short; the message names file and offset.

        Time O(pieces * log) besides the reads.
        """
        if not self._finalizer.alive:
            raise ValueError("the files are closed")
        order = _sorted(files, offsets)
        requests = np.empty((len(files) + 1, 5), np.int64)
        requests = requests[: _merge(files, offsets, sizes, order, self.unit, requests) + 1]
        arguments = (self._descriptors, requests, order, offsets, sizes, places, self.unit, out.ctypes.data, room)
        for _ in range(_ATTEMPTS):
            failed = self._run(arguments, len(requests) - 1, out)
            if not failed:
                return len(requests) - 1, int((requests[:-1, _STOP] - requests[:-1, _START]).sum())
            for number in failed:
                self._repeat(requests[number])
        file, start = requests[failed[0], :2]
        raise OSError(errno.EIO, f"reads at offset {start} keep failing", str(self.paths[file]))

    def _run(self, arguments: tuple[Any, ...], num_requests: int, out: np.ndarray) -> list[int]:
        """Reads with as many threads as there is work for, this one among them; returns the requests that failed."""
        counter = np.zeros(1, np.int64)

        def work(out: np.ndarray = out) -> int:  # a thread that still writes keeps the memory alive
            return _read(*arguments, self._bounce(), counter)

        others = min(self._num_threads, num_requests // _REQUESTS_A_THREAD) - 1
        futures: list[concurrent.futures.Future[int]] = []
        try:
            for _ in range(others):
                futures.append(self._executor.submit(work))
            results = [work()]
        finally:  # also when interrupted: they write to the caller's memory
            running = [future for future in futures if not future.cancel()]
            concurrent.futures.wait(running)
        results += [future.result() for future in running]
        return [number for number in results if number >= 0]

    def _bounce(self) -> int:
        """Address of this thread's buffer."""
        if not hasattr(self._local, "bounce"):
            self._local.bounce = aligned_bytes(self._bounce_bytes)
        return self._local.bounce.ctypes.data

    def _repeat(self, request: Int64[np.ndarray, "5"]) -> None:
        """Reads what failed once more, for the sake of the system's reason. Returns if it works this time."""
        path, start = self.paths[request[_FILE]], int(request[_START])
        buffer = aligned_bytes(int(request[_STOP]) - start)
        try:
            count = os.preadv(int(self._descriptors[request[_FILE]]), [buffer.data], start)
        except OSError as error:
            message = f"cannot read {len(buffer)} bytes at offset {start}: {error.strerror}"
            raise OSError(error.errno, message, str(path)) from error
        needed = int(request[_END]) - start
        if count < needed:
            raise OSError(errno.EIO, f"truncated: {count} of {needed} bytes at offset {start} are there", str(path))


def _sorted(files: Int64[np.ndarray, " pieces"], offsets: Int64[np.ndarray, " pieces"]) -> Int64[np.ndarray, " pieces"]:
    """The order by file, then offset."""
    if len(files) == 0:
        return np.empty(0, np.int64)
    bits = int(offsets.max()).bit_length()
    if (int(files.max()) + 1) << bits >= 1 << 63:
        return np.lexsort((offsets, files))
    return np.argsort((files << bits) | offsets)  # one number for both sorts twice as fast


def aligned_bytes(num_bytes: int) -> UInt8[np.ndarray, " bytes"]:
    """Memory that starts at a page, as direct reads want it; not initialized."""
    memory = np.empty(num_bytes + _PAGE_BYTES, np.uint8)
    start = -memory.ctypes.data % _PAGE_BYTES
    return memory[start : start + num_bytes]


def _opened(paths: Sequence[Path]) -> tuple[list[int], int, str | None]:
    """Descriptors, unit and note."""
    descriptors = _open_all(paths, _O_DIRECT) if _O_DIRECT else None
    if descriptors is not None:
        units = [_unit(descriptor) for descriptor in _one_a_device(descriptors)]
        if None not in units:
            return descriptors, max((unit for unit in units if unit), default=1), None
        _close(descriptors, None)
    descriptors = _open_all(paths, 0)
    assert descriptors is not None, "without a flag nothing is refused"
    for descriptor in descriptors:
        if hasattr(os, "posix_fadvise"):  # or the system reads far ahead of every row
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptors, 1, f"the file system of {paths[0].parent} takes no direct reads: they go through the page cache"


def _open_all(paths: Sequence[Path], flag: int) -> list[int] | None:
    """None where the file system does not know the flag."""
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(os.open(path, os.O_RDONLY | flag))
    except OSError as error:
        _close(descriptors, None)
        if flag and error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        if error.errno == errno.EMFILE:
            message = f"all {len(paths)} shards are kept open, and the process may not open as many: raise `ulimit -n`"
            raise OSError(error.errno, message, str(paths[0])) from error
        raise
    return descriptors


def _one_a_device(descriptors: Sequence[int]) -> list[int]:
    return list({os.fstat(descriptor).st_dev: descriptor for descriptor in descriptors}.values())


def _unit(descriptor: int) -> int | None:
    """The smallest unit of direct reads that works for file and memory alike; None where none does."""
    buffer = aligned_bytes(2 * _PAGE_BYTES)
    for unit in _UNITS:
        with contextlib.suppress(OSError):
            os.preadv(descriptor, [buffer[unit : 2 * unit].data], unit)
            return unit
    return None


def _close(descriptors: Sequence[int], executor: concurrent.futures.ThreadPoolExecutor | None) -> None:
    if executor is not None:
        executor.shutdown(wait=False)  # its threads are idle, and this may be one of them
    for descriptor in descriptors:
        os.close(descriptor)
