"""Rows that many blocks read, kept in memory; the others come from the store."""

import numpy as np
from jaxtyping import Int64, Shaped

from ginex_jax.features import FeatureStore

HOT_ROW_BYTES = 16  # of a row besides its values: its id, and what choosing it takes
_POSITIONS_AT_ONCE = 1 << 20
_ROWS_AT_ONCE = 1 << 12


class HotRows:
    """A store with some of its rows in memory.

    Attributes:
      misses: rows read from the store since it was opened.
    """

    def __init__(self, store: FeatureStore, hot_ids: Int64[np.ndarray, " hot"]) -> None:
        """Reads the rows `hot_ids`, which ascend."""
        self._store, self._ids = store, hot_ids
        self._rows = np.empty((len(hot_ids), store.shape[1]), store.dtype)
        for start in range(0, len(hot_ids), _POSITIONS_AT_ONCE):
            piece = slice(start, start + _POSITIONS_AT_ONCE)
            store.read_rows(hot_ids[piece], out=self._rows[piece])
        self.misses = 0

    def read(self, ids: Int64[np.ndarray, " rows"], out: Shaped[np.ndarray, "places width"]) -> None:
        """Row i of `ids` goes to `out[i]`."""
        if len(self._ids) == 0:
            self._store.read_rows(ids, out=out)
            self.misses += len(ids)
            return
        slots = np.searchsorted(self._ids, ids)
        slots[self._ids[np.minimum(slots, len(self._ids) - 1)] != ids] = -1
        hits, misses = np.flatnonzero(slots >= 0), np.flatnonzero(slots < 0)
        for start in range(0, len(hits), _ROWS_AT_ONCE):
            piece = hits[start : start + _ROWS_AT_ONCE]
            out[piece] = self._rows[slots[piece]]
        if len(misses):
            self._store.read_rows(ids[misses], out=out, slots=misses)
        self.misses += len(misses)
