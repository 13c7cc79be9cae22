"""How a matrix lies in memory for the products: the planes as they are, or once prepared for the native CPU product.

`AnyPrecArray` is the natural layout. `prepare` copies it once, at load, into the one that memory delivers fastest.
"""

import math
import mmap

import jax
import numpy as np

from anyprec_jax.array import AnyPrecArray, Matrix, PreparedArray
from anyprec_jax.bitplanes import num_words

_HUGE_PAGE_BYTES = 2 << 20
_PAGE_BYTES = 4096
# What a plane is longer than a multiple of a page: planes that are read side by side then begin in different sets of the caches and in
# different banks of memory.
_OFFSET_BYTES = 2112


def prepare(array: AnyPrecArray) -> PreparedArray:
    """Copies a matrix or a stack into the prepared layout. Drop the original afterwards: one of them is enough.

    Cost: one pass over the planes and codebooks on the host; memory for the copy.
    """
    words = array.n * num_words(array.k)
    planes = huge_pages_empty((*array.bitplanes.shape[:-2], _padded_words(words)), np.dtype(np.uint32))
    planes[..., words:] = 0
    natural = np.asarray(array.bitplanes)
    planes[..., :words] = natural.reshape(*natural.shape[:-2], words)

    def copied(leaf: jax.Array) -> jax.Array:
        copy = huge_pages_empty(leaf.shape, np.dtype(leaf.dtype))
        copy[...] = np.asarray(leaf)
        return jax.device_put(copy)

    codebooks = jax.tree.map(copied, array.codebooks)
    return PreparedArray(
        jax.device_put(planes), codebooks, array.seed_precision, array.parent_precision, array.n, array.k
    )


def natural(array: Matrix) -> AnyPrecArray:
    """The inverse of `prepare`; under `jax.jit` a slice of every plane. What is natural stays as it is."""
    if isinstance(array, AnyPrecArray):
        return array
    return AnyPrecArray(array.bitplanes, array.codebooks, array.seed_precision, array.parent_precision, array.k)


def _padded_words(words: int) -> int:
    padded = -(-words // 16) * 16  # whole cache lines
    return padded + _OFFSET_BYTES // 4 if padded * 4 % _PAGE_BYTES == 0 else padded


def huge_pages_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that JAX uses in place, in huge pages where it is large and the system has them."""
    nbytes = math.prod(shape) * dtype.itemsize
    room = mmap.mmap(-1, nbytes + _HUGE_PAGE_BYTES)
    if nbytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        room.madvise(mmap.MADV_HUGEPAGE)
    buffer = np.frombuffer(room, np.uint8)
    start = -buffer.ctypes.data % _HUGE_PAGE_BYTES
    return buffer[start : start + nbytes].view(dtype).reshape(shape)
