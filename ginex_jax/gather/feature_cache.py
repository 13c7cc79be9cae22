"""Feature rows kept in memory, in the slots that a plan names. Importing this module imports numba."""

from typing import Any

import numpy as np
from jaxtyping import Int32, Shaped
from numba import types

from ginex_jax.belady.steps import CacheStep
from ginex_jax.compilation import compiled
from ginex_jax.store.direct_reads import aligned_bytes

_memcpy = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))


class FeatureCache:
    """`capacity` rows of memory, and nothing that knows what is in them: that is the plan's business."""

    def __init__(self, capacity: int, width: int, dtype: np.dtype[Any]) -> None:
        self._rows = aligned_bytes(capacity * width * dtype.itemsize).view(dtype).reshape(capacity, width)

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def apply(self, step: CacheStep, rows: Shaped[np.ndarray, "nodes width"]) -> None:
        """One step of a plan: fills in the rows that are hits, and keeps the rows that the plan wants to keep.

        Args:
          step: slots for each of the rows.
          rows: the batch's, contiguous, with the misses read already.

        Raises:
          ValueError: the step is of another batch or another cache.
        """
        _check(step.hit_slots, len(rows), len(self._rows))
        _check(step.write_slots, len(rows), len(self._rows))
        if rows.shape[1:] != self._rows.shape[1:] or rows.dtype != self._rows.dtype or not rows.flags.c_contiguous:
            raise ValueError(f"rows should be contiguous {self._rows.dtype} {self._rows.shape}, got {rows.dtype}")
        memory, size = self._rows.ctypes.data, self._rows.shape[1] * self._rows.itemsize
        _fetch(memory, step.hit_slots, rows.ctypes.data, size)
        _keep(memory, step.write_slots, rows.ctypes.data, size)


def _check(slots: Int32[np.ndarray, " nodes"], num_rows: int, capacity: int) -> None:
    if len(slots) != num_rows:
        raise ValueError(f"the plan should have a slot for each of {num_rows} rows, got {len(slots)}")
    if len(slots) and (slots.max() >= capacity or slots.min() < -1):
        raise ValueError(f"slots should be in [-1, {capacity}), got {slots.min()} to {slots.max()}")


@compiled
def _fetch(memory, slots, rows, size):
    for i in range(len(slots)):
        if slots[i] >= 0:
            _memcpy(rows + i * size, memory + np.int64(slots[i]) * size, size)


@compiled
def _keep(memory, slots, rows, size):
    for i in range(len(slots)):
        if slots[i] >= 0:
            _memcpy(memory + np.int64(slots[i]) * size, rows + i * size, size)
