"""Binary search among sorted texts. Importing this module imports numba."""

from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from ginex_jax.compilation import compiled


def positions(wanted: Any, sorted_texts: Any) -> Int64[np.ndarray, " wanted"]:
    """Where `sorted_texts` has each of the texts that are wanted, -1 where it has not; both `pyarrow.LargeStringArray`s without gaps.

    Sorted by UTF-8 bytes, distinct. Time O(wanted * log texts), nothing is allocated but the result.
    """
    result = np.empty(len(wanted), np.int64)
    _search(*_buffers(wanted), *_buffers(sorted_texts), result)
    return result


def _buffers(texts: Any) -> tuple[Int64[np.ndarray, " texts_plus_one"], UInt8[np.ndarray, " bytes"]]:
    """Where each text begins in the bytes of all of them."""
    _, offsets, data = texts.buffers()
    if offsets is None or not len(texts):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return starts, np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)


@compiled
def _search(wanted_starts, wanted_bytes, starts, data, result):
    for i in range(len(result)):
        begin, length = wanted_starts[i], wanted_starts[i + 1] - wanted_starts[i]
        low, high, place = 0, len(starts) - 1, -1
        while low < high and place < 0:
            middle = (low + high) // 2
            other, other_length = starts[middle], starts[middle + 1] - starts[middle]
            order = 0
            for k in range(min(length, other_length)):
                order = np.int64(wanted_bytes[begin + k]) - np.int64(data[other + k])
                if order != 0:
                    break
            if order == 0:
                order = length - other_length
            if order == 0:
                place = middle
            elif order < 0:
                high = middle
            else:
                low = middle + 1
        result[i] = place
