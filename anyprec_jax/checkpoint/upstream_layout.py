"""The order of bits in the paper authors' packed planes, and ours.

Both hold a plane as rows of 32-bit words, and they differ in which bit of which word a column is. Here column `32 * j + i` is bit `i`
of word `j`. Theirs deals the columns of a chunk of 1024 (the last chunk of a row may be shorter, of T words) to the T threads of a
warp, eight at a time: column `8 * T * j + 8 * t + m` of a chunk, with j < 4, t < T and m < 8, is bit `31 - 8 * j - m` of word `t`.

In bytes, that is the bytes of a chunk transposed and each byte's bits reversed.
"""

import numpy as np
from jaxtyping import Int32, UInt32

_CHUNK_WORDS = 32
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1)[:, 0]


def to_upstream(planes: UInt32[np.ndarray, "*lead words"]) -> Int32[np.ndarray, "*lead words"]:
    """Planes in the authors' order, int32 as their files have them. Cost: a pass over the bytes, and a copy."""
    result = np.empty(planes.shape, "<u4")
    for columns in _chunks(planes.shape[-1]):
        ours = np.ascontiguousarray(planes[..., columns], "<u4").view(np.uint8)  # [..., (j, t)]
        by_thread = ours.reshape(*ours.shape[:-1], 4, -1).swapaxes(-1, -2)[..., ::-1]  # [..., t, 3 - j]
        result[..., columns] = np.ascontiguousarray(_REVERSED[by_thread]).view("<u4")[..., 0]
    return result.view(np.int32)


def from_upstream(planes: Int32[np.ndarray, "*lead words"]) -> UInt32[np.ndarray, "*lead words"]:
    """The inverse of `to_upstream`."""
    result = np.empty(planes.shape, "<u4")
    for columns in _chunks(planes.shape[-1]):
        theirs = np.ascontiguousarray(planes[..., columns], "<i4").view(np.uint8)  # [..., (t, 3 - j)]
        by_column = theirs.reshape(*theirs.shape[:-1], -1, 4)[..., ::-1].swapaxes(-1, -2)  # [..., j, t]
        ours = np.ascontiguousarray(_REVERSED[by_column])
        result[..., columns] = ours.reshape(*theirs.shape[:-1], -1).view("<u4")
    return result.view(np.uint32)


def _chunks(words: int) -> list[slice]:
    """The words of every chunk of a row."""
    return [slice(start, min(start + _CHUNK_WORDS, words)) for start in range(0, words, _CHUNK_WORDS)]
