"""Memory for the feature rows of the batches on their way, handed out in turn and returned when nobody looks at it any more."""

import collections
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ginex_jax.store.direct_reads import aligned_bytes

_ALIGNMENT = 64  # bytes: what lies at multiples of this, XLA's CPU backend uses where it is


class Region:
    """Rows [start, start + num_rows) of a ring."""

    def __init__(self, start: int, num_rows: int) -> None:
        self.start, self.num_rows = start, num_rows
        self.released = False
        self.delivered = False  # to the reader at the end of the pipeline


class RowRing:
    """`num_rows` rows, of which regions are taken in turn. `take` is for one thread, or under a lock.

    A region of n rows finds room for certain when no other is in use; while h rows are, in a ring of h + 2 n rows.
    """

    def __init__(self, num_rows: int, width: int, dtype: np.dtype[Any]) -> None:
        self.rows: Shaped[np.ndarray, "rows width"] = (
            aligned_bytes(num_rows * width * dtype.itemsize).view(dtype).reshape(num_rows, width)
        )
        self._step = _ALIGNMENT // math.gcd(width * dtype.itemsize, _ALIGNMENT)
        self._taken: collections.deque[Region] = collections.deque()

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    def take(self, num_rows: int) -> Region | None:
        """The next region, or None where there is no room until those taken first are released.

        Raises:
          ValueError: there will never be.
        """
        size = max(1, num_rows)
        if size > len(self.rows):
            raise ValueError(
                f"a batch needs memory for {num_rows} rows, and there is some for {len(self.rows)}: allow more"
            )
        while self._taken and self._taken[0].released:
            self._taken.popleft()
        start = self._next_start(size)
        if start is None:
            return None
        self._taken.append(Region(start, num_rows))
        return self._taken[-1]

    @property
    def is_held(self) -> bool:
        """Whether there will be no more room until the reader at the end releases a region."""
        if not self._taken or self._taken[0].released:
            return False
        return all(region.delivered or region.released for region in self._taken)

    def take_back(self) -> None:
        """Releases what was not delivered, when nobody will."""
        for region in self._taken:
            region.released = region.released or not region.delivered

    def view(self, region: Region, when_dropped: Callable[[], None] = lambda: None) -> Shaped[np.ndarray, "rows width"]:
        """The region's rows. It is released when the last view of it, and of views of these, is gone, JAX's included.

        JAX lets go of what it looked at when the next garbage collection, or the next call of JAX, comes round.
        """
        owner = _Owner(self.rows, region)
        weakref.finalize(owner, _release, region, when_dropped)
        return np.asarray(owner).view(self.rows.dtype).reshape(region.num_rows, self.rows.shape[1])

    def _next_start(self, size: int) -> int | None:
        if not self._taken:
            return 0
        first, last = self._taken[0].start, self._taken[-1]
        end = last.start + max(1, last.num_rows)
        end = -(-end // self._step) * self._step
        if last.start < first:  # what is taken wraps around
            return end if end + size <= first else None
        if end + size <= len(self.rows):
            return end
        return 0 if size <= first else None


class _Owner:
    """Lends memory to NumPy, which keeps it alive for as long as anything looks at it."""

    def __init__(self, rows: Shaped[np.ndarray, "rows width"], region: Region) -> None:
        self._rows = rows
        self.__array_interface__ = {
            "version": 3,
            "shape": (region.num_rows * rows.strides[0],),
            "typestr": "|u1",
            "data": (rows.ctypes.data + region.start * rows.strides[0], False),
        }


def _release(region: Region, when_dropped: Callable[[], None]) -> None:
    region.released = True
    when_dropped()
