"""Claim: random rows are gathered from disk about as fast as C can.
Beside: a pool of C threads in `pread` at the same depth, sorted and not; TensorStore; np.memmap.

Random feature rows from disk, cold: this package's stores, a pool of threads in C, TensorStore alone and np.memmap, in turns.

    python -m benchmarks.ginex_gather --rows 20000000

writes an array of 10 GB below `--scratch`, reads 200,000 random rows of it with each in turn, and removes it again. The bound is the C
pool, which has as many requests on their way and nothing else to do.
"""

import argparse
import ctypes
import itertools
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from ginex_jax.store.direct_features import DirectFeatures
from ginex_jax.store.layout import ArrayLayout
from ginex_jax.store.tensorstore_features import TensorStoreFeatures
from ginex_jax.store.writer import ArrayWriter

WIDTH = 128
PIECE_ROWS = 1 << 18
C_SOURCE = Path(__file__).with_name("gather_pool.c")


def values_of(rows: np.ndarray) -> np.ndarray:
    """What rows hold: a hash of row and column, so that every byte that comes back can be checked."""
    words = (rows.astype(np.uint32) * np.uint32(2654435761))[:, None] ^ (
        np.arange(WIDTH, dtype=np.uint32) * np.uint32(0x9E3779B1)
    )
    return (words & np.uint32(0x3FFFFFFF)).view(np.float32)  # finite


def written(folder: Path, num_rows: int) -> Path:
    writer = ArrayWriter(folder, "features", (num_rows, WIDTH), np.dtype(np.float32))
    for start in range(0, num_rows, PIECE_ROWS):
        writer.append(values_of(np.arange(start, min(start + PIECE_ROWS, num_rows))))
    writer.close()
    os.sync()
    return folder / "features"


def shard_paths(array: Path, num_rows: int) -> list[Path]:
    layout = ArrayLayout(shape=(num_rows, WIDTH), dtype=np.dtype(np.float32))
    return [array / layout.shard_name(shard) for shard in range(layout.num_shards)]


def evict(paths: list[Path]) -> None:
    """Out of the page cache."""
    for path in paths:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class CPool:
    """Reads rows with `gather_pool.c`, built here."""

    def __init__(self, library: Path, paths: list[Path], num_threads: int) -> None:
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-pthread", str(C_SOURCE), "-o", str(library)], check=True)
        self._gather = ctypes.CDLL(str(library.absolute())).gather
        self._gather.restype = ctypes.c_long
        self._files = np.array([os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths], np.int32)
        self._num_threads = num_threads

    def read(self, rows: np.ndarray, places: np.ndarray, out: np.ndarray, rows_a_file: int) -> None:
        inputs = [ctypes.c_void_p(array.ctypes.data) for array in (self._files, rows, places)]
        sizes = [ctypes.c_int64(number) for number in (len(rows), rows_a_file, out.strides[0])]
        failed = self._gather(*inputs, *sizes, ctypes.c_void_p(out.ctypes.data), self._num_threads)
        if failed:
            raise OSError(f"{failed} reads failed")


def memmap_reader(paths: list[Path], num_rows: int, rows_a_file: int) -> Callable[[np.ndarray], np.ndarray]:
    """Maps every shard and tells the system that reads are random."""
    maps = []
    for shard, path in enumerate(paths):
        rows = min(rows_a_file, num_rows - shard * rows_a_file)
        maps.append(np.memmap(path, np.float32, "r", shape=(rows, WIDTH)))
        maps[-1]._mmap.madvise(1)  # MADV_RANDOM

    def read(rows: np.ndarray) -> np.ndarray:
        order = np.argsort(rows)
        borders = np.searchsorted(rows[order], np.arange(len(maps) + 1) * rows_a_file)
        out = np.empty((len(rows), WIDTH), np.float32)
        for shard, (start, stop) in enumerate(itertools.pairwise(borders)):
            part = order[start:stop]
            out[part] = maps[shard][rows[part] - shard * rows_a_file]
        return out

    return read


def direct_tensorstore(array: Path, num_threads: int) -> TensorStoreFeatures:
    """TensorStore with its own direct I/O."""
    context: dict[str, Any] = {"file_io_mode": {"mode": "direct"}}
    spec = {"kvstore": {"driver": "file", "path": f"{array.absolute()}/"}, "context": context}
    return TensorStoreFeatures(spec, num_requests=num_threads)


class Contest:
    """Gathers of the same rows, which are others in every round."""

    def __init__(self, array: Path, scratch: Path, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._rng = np.random.default_rng(arguments.seed)
        self._paths = shard_paths(array, arguments.rows)
        store = DirectFeatures(array, num_threads=arguments.threads)
        self.note = store.note
        pool = CPool(scratch / "gather_pool.so", self._paths, arguments.threads)
        shard_rows = ArrayLayout(shape=(arguments.rows, WIDTH), dtype=np.dtype(np.float32)).shard_rows
        out = store.empty(arguments.gather)
        out[:] = 0  # its pages are there before the clock starts

        def c_pool(ids: np.ndarray) -> np.ndarray:
            pool.read(ids, np.arange(len(ids)), out, shard_rows)
            return out

        def c_pool_sorted(ids: np.ndarray) -> np.ndarray:
            order = np.argsort(ids)
            pool.read(ids[order], order, out, shard_rows)
            return out

        self.gathers: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "direct": lambda ids: store.read_rows(ids, out=out),
            "C pool": c_pool,
            "C pool, sorted": c_pool_sorted,
            "TensorStore": TensorStoreFeatures(array, num_requests=arguments.threads).read_rows,
            "TensorStore, direct": direct_tensorstore(array, arguments.threads).read_rows,
            "np.memmap": memmap_reader(self._paths, arguments.rows, shard_rows),
        }

    def run(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Seconds, and seconds of processor, of each in every round but the first."""
        seconds: dict[str, list[float]] = {name: [] for name in self.gathers}
        processor: dict[str, list[float]] = {name: [] for name in self.gathers}
        for round_number in range(self._arguments.repeats + 1):
            ids = self._rng.choice(self._arguments.rows, self._arguments.gather, replace=False).astype(np.int64)
            expected = values_of(ids)
            for name, gather in self.gathers.items():
                evict(self._paths)
                before, start = cpu_seconds(), time.perf_counter()
                rows = gather(ids)
                elapsed, used = time.perf_counter() - start, cpu_seconds() - before
                if not np.array_equal(rows, expected):
                    raise SystemExit(f"{name} read other rows than were written")
                if round_number:
                    seconds[name].append(elapsed)
                    processor[name].append(used)
        return seconds, processor


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def report(contest: Contest, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    seconds, processor = contest.run()
    medians, used = timing.medians(seconds), timing.medians(processor)
    results = []
    print(f"{'':22}{'rows/s':>10}{'/ C pool':>10}{'/ sorted':>10}{'CPU us/row':>12}")
    for name, median in medians.items():
        result = {
            "name": name,
            "rows_per_s": arguments.gather / median,
            "ratio_to_c_pool": medians["C pool"] / median,
            "ratio_to_sorted_c_pool": medians["C pool, sorted"] / median,
            "cpu_us_per_row": used[name] / arguments.gather * 1e6,
        }
        print(
            "{name:22}{rows_per_s:10,.0f}{ratio_to_c_pool:10.2f}{ratio_to_sorted_c_pool:10.2f}{cpu_us_per_row:12.1f}".format(
                **result
            )
        )
        results.append(result)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000, help="of the array, of 512 bytes each")
    parser.add_argument("--gather", type=int, default=200_000, help="rows read at a time")
    parser.add_argument("--threads", type=int, default=64, help="requests on their way")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, default=Path(".cache/ginex_gather"))
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        folder, start = Path(name), time.perf_counter()
        array = written(folder, arguments.rows)
        elapsed = time.perf_counter() - start
        print(
            f"wrote {arguments.rows * 512 / 1e9:.2f} GB at {arguments.rows * 512 / elapsed / 1e9:.2f} GB/s", flush=True
        )
        start = time.perf_counter()
        contest = Contest(array, folder, arguments)
        print(f"opened all in {time.perf_counter() - start:.2f} s; note: {contest.note}", flush=True)
        results = report(contest, arguments)
    print(timing.record("ginex_gather", {**vars(arguments), "note": contest.note}, results))


if __name__ == "__main__":
    main()
