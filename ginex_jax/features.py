"""Random access to feature rows, wherever they lie; and the twin that holds them in memory."""

import threading
import time
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Integer, Shaped


class ReadStats(NamedTuple):
    """What a store has read so far. Additive; differences of two are what happened in between."""

    rows: int = 0
    bytes: int = 0  # asked of the disk or the network, padding and what was read along with a row included
    requests: int = 0
    seconds: float = 0.0  # inside `read_rows`, summed over the threads that called it


@runtime_checkable
class FeatureStore(Protocol):
    """Random access to the rows of a feature matrix [nodes, width]. Thread-safe and deterministic.

    All implementations return the same bytes for the same ids.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def stats(self) -> ReadStats: ...

    def read_rows(
        self,
        ids: Int64[np.ndarray, " rows"],
        *,
        out: Shaped[np.ndarray, "places width"] | None = None,
        slots: Integer[np.ndarray, " rows"] | None = None,
    ) -> Shaped[np.ndarray, "places width"]:
        """Reads the rows `ids`, in that order and with repetitions.

        Args:
          ids: nodes, in [0, nodes).
          out: where to put them, of the store's dtype; a new array [rows, width] if not given.
          slots: row i goes to `out[slots[i]]`, distinct; to `out[i]` if not given. The other rows of `out` are left alone.

        Returns:
          `out`, or the new array.

        Raises:
          ValueError: an id or a slot is out of range, or `out` has another width or dtype.
          OSError: the disk or the network failed; the message names file and offset.
        """
        ...


class ArrayFeatures:
    """Features in memory: the twin that everything else is compared with."""

    def __init__(self, features: Shaped[np.ndarray, "nodes width"]) -> None:
        self._features = features
        self._counter = ReadCounter()

    @property
    def shape(self) -> tuple[int, int]:
        return self._features.shape[0], self._features.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._features.dtype

    @property
    def stats(self) -> ReadStats:
        return self._counter.stats

    def read_rows(
        self,
        ids: Int64[np.ndarray, " rows"],
        *,
        out: Shaped[np.ndarray, "places width"] | None = None,
        slots: Integer[np.ndarray, " rows"] | None = None,
    ) -> Shaped[np.ndarray, "places width"]:
        start = time.perf_counter()
        out = destination(self, ids, out, slots)
        if slots is None:
            np.take(self._features, ids, axis=0, out=out[: len(ids)])
        else:
            out[slots] = self._features[ids]
        row_bytes = self._features.dtype.itemsize * self.shape[1]
        self._counter.add(rows=len(ids), num_bytes=len(ids) * row_bytes, requests=0, start=start)
        return out


class ReadCounter:
    """Counts reads of several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stats = ReadStats()

    @property
    def stats(self) -> ReadStats:
        return self._stats

    def add(self, *, rows: int, num_bytes: int, requests: int, start: float) -> None:
        """Adds one call of `read_rows` that began at `start`, of `time.perf_counter()`."""
        seconds = time.perf_counter() - start
        with self._lock:
            old = self._stats
            self._stats = ReadStats(
                old.rows + rows, old.bytes + num_bytes, old.requests + requests, old.seconds + seconds
            )


def destination(
    store: FeatureStore,
    ids: Int64[np.ndarray, " rows"],
    out: Shaped[np.ndarray, "places width"] | None,
    slots: Integer[np.ndarray, " rows"] | None,
) -> Shaped[np.ndarray, "places width"]:
    """The checks at the door of every `read_rows`: `out`, or a new array, once all arguments fit together."""
    num_nodes, width = store.shape
    require_within(ids, num_nodes, "node ids")
    if out is None:
        if slots is not None:
            raise ValueError("slots are places in out, and no out was given")
        return np.empty((len(ids), width), store.dtype)
    if out.ndim != 2 or out.shape[1] != width or out.dtype != store.dtype:
        raise ValueError(f"out should be {store.dtype} [places, {width}], got {out.dtype} {out.shape}")
    if slots is None:
        if len(out) < len(ids):
            raise ValueError(f"out has {len(out)} rows, and {len(ids)} are read")
    else:
        if len(slots) != len(ids):
            raise ValueError(f"slots should be one for each of {len(ids)} ids, got {len(slots)}")
        require_within(slots, len(out), "slots")
    return out


def require_within(numbers: Integer[np.ndarray, " numbers"], stop: int, what: str) -> None:
    """Raises ValueError, with the first offender, unless it is a vector of integers in [0, stop)."""
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        kind = f"{numbers.dtype} {list(numbers.shape)}" if isinstance(numbers, np.ndarray) else type(numbers).__name__
        raise ValueError(f"{what} should be an array of integers with one axis, got {kind}")
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= stop):
        first = int(np.flatnonzero((numbers < 0) | (numbers >= stop))[0])
        raise ValueError(f"{what} should be in [0, {stop}), got {numbers[first]} at {first}")
