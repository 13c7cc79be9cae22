"""Codes to packed bitplanes and back.

A code of `p` bits becomes `p` planes of one bit each, plane 0 the most significant; column `32 * j + i` of a row is bit `i` of
its word `j`. Four 2-bit codes in one row (k = 4, so one word and 28 columns of padding):

    codes      0    1    2    3          column 3 2 1 0
    plane 0    0    0    1    1    ->    word 0b1 1 0 0 = 12
    plane 1    0    1    0    1    ->    word 0b1 0 1 0 = 10

The first `w` planes are therefore the codes of precision `w`: `code_w == code_p >> (p - w)`.
"""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8, UInt32

WORD_BITS = 32

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


def num_words(k: int) -> int:
    """Words in a row of `k` columns: ceil(k / 32)."""
    return -(-k // WORD_BITS)


@functools.partial(jax.jit, static_argnames="precision")
def pack(codes: UInt8[Array, "n k"], *, precision: int) -> UInt32[Array, "{precision} n words"]:
    """Packs codes below `2**precision` into bitplanes; the columns after `k` that fill the last word are code 0."""
    n, k = codes.shape
    words = num_words(k)
    padded = jnp.pad(codes, ((0, 0), (0, words * WORD_BITS - k))).astype(jnp.uint32)
    bits = (padded.reshape(1, n, words, WORD_BITS) >> _plane_shift(precision)) & jnp.uint32(1)
    return jnp.sum(bits << _column(), axis=-1, dtype=jnp.uint32)


@functools.partial(jax.jit, static_argnames="k")
def unpack(bitplanes: UInt32[Array, "planes n words"], *, k: int) -> UInt8[Array, "n {k}"]:
    """The codes of as many bits as there are planes; the inverse of `pack`.

    A prefix of the planes gives the codes of that precision: `unpack(bitplanes[:w], k=k)`.
    """
    planes, n, words = bitplanes.shape
    bits = (bitplanes[..., None] >> _column()) & jnp.uint32(1)
    codes = jnp.sum(bits << _plane_shift(planes), axis=0, dtype=jnp.uint32)
    return codes.astype(jnp.uint8).reshape(n, words * WORD_BITS)[:, :k]


def unpadded(planes: AnyArray, *, n: int, k: int) -> AnyArray:
    """The rows of planes that have padding at their ends: `[..., planes, padded]` to `[..., planes, n, words]`."""
    words = num_words(k)
    return planes[..., : n * words].reshape(*planes.shape[:-1], n, words)


def row_codes(planes: UInt32[np.ndarray, "w rows words"], k: int) -> UInt8[np.ndarray, "rows k"]:
    """`unpack` in NumPy: nothing is compiled, nothing goes to a device."""
    codes = np.zeros((planes.shape[1], k), np.uint8)
    for plane in np.ascontiguousarray(planes, "<u4").view(np.uint8):
        codes = (codes << 1) | np.unpackbits(plane, axis=-1, count=k, bitorder="little")
    return codes


def row_planes(codes: UInt8[np.ndarray, "rows k"], precision: int) -> UInt32[np.ndarray, "{precision} rows words"]:
    """`pack` in NumPy."""
    k = codes.shape[1]
    padded = np.pad(codes, ((0, 0), (0, num_words(k) * WORD_BITS - k)))
    bits = (padded[None] >> np.arange(precision - 1, -1, -1, dtype=np.uint8)[:, None, None]) & 1
    return np.packbits(bits, axis=-1, bitorder="little").view("<u4").astype(np.uint32, copy=False)


def _column() -> UInt32[Array, "1 1 1 32"]:
    return jnp.arange(WORD_BITS, dtype=jnp.uint32).reshape(1, 1, 1, WORD_BITS)


def _plane_shift(planes: int) -> UInt32[Array, "{planes} 1 1 1"]:
    return jnp.arange(planes, dtype=jnp.uint32)[::-1].reshape(planes, 1, 1, 1)
