"""Random numbers without state: a number is a pure function of where it is used.

SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) read by index: number i of the stream `key` is `mix(key + (i + 1) * GOLDEN)`. A number may
be the key of a stream again, and so (seed, epoch, batch, hop, node, draw) is a path from the root, one hash a step. Nothing depends on the
order in which numbers are asked for, nor on threads or processes. Importing this module imports numba.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from jaxtyping import Int64
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58_476D_1CE4_E5B9), np.uint64(0x94D0_49BB_1331_11EB)
_0, _1, _11, _27, _30, _31 = (np.uint64(number) for number in (0, 1, 11, 27, 30, 31))
_ORDER = 2**64 - 1  # in the place of a batch: the order of an epoch
_NUM_ROUNDS = 8


def compiled(function: Callable[..., Any]) -> Any:
    """`numba.njit` with IEEE arithmetic and without the lock, kept on disk between runs where numba finds a folder it may write to.

    It compiles again when the file of the function changed; after a change of what it calls in another file, touch its file.
    """
    return _compiled(function)


def inlined(function: Callable[..., Any]) -> Any:
    """As `compiled`, for small functions that are copied to where they are called."""
    return _compiled(function, forceinline=True)


def compiled_bare(function: Callable[..., Any]) -> Any:
    """As `compiled`, for functions that make no array: references to arrays are not counted, which costs more than small work on many."""
    return _compiled(function, _nrt=False)


def inlined_bare(function: Callable[..., Any]) -> Any:
    """As `inlined`, for functions that make no array."""
    return _compiled(function, forceinline=True, _nrt=False)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    source = inspect.unwrap(function)  # a type checker may have wrapped it
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", **options)(source)
    except RuntimeError:  # there is no such folder
        return numba.njit(nogil=True, error_model="numpy", **options)(source)


def _product(typing_context: Any, a: Any, b: Any) -> Any:
    """High and low word of a 128-bit product: one instruction, which numba has no word for."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide, word = ir.IntType(128), ir.IntType(64)
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), word)
        return context.make_tuple(builder, signature.return_type, (high, builder.trunc(product, word)))

    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64), generate


product: Any = intrinsic(inspect.unwrap(_product))


@inlined
def hashed(key, word):
    """Number `word` of the stream `key`; uint64 all of them. With `word` an id, the key of a stream of its own."""
    z = np.uint64(key) + (np.uint64(word) + _1) * GOLDEN
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


@inlined
def bounded(key, draw, n):
    """Draw number `draw` of the stream `key`: an int64 in [0, n), every one exactly as likely, for 1 <= n < 2**63.

    The high word of number * n (Lemire, 2019). The few numbers that would favour some results are rejected and hashed again, so that a
    draw never uses up another's number.
    """
    number, n = hashed(key, draw), np.uint64(n)
    high, low = product(number, n)
    if low < n:
        least = (_0 - n) % n
        while low < least:
            number = hashed(number, _0)
            high, low = product(number, n)
    return np.int64(high)


@inlined
def uniform(key, draw):
    """Draw number `draw` of the stream `key`: a float64 strictly between 0 and 1."""
    return (np.float64(hashed(key, draw) >> _11) + 0.5) * 2.0**-53


def batch_key(seed: int, epoch: int, batch: int) -> np.uint64:
    """The stream of one mini-batch; its numbers are the keys of the hops, theirs those of the nodes. All in [0, 2**64)."""
    key = np.uint64(0)
    for word in (seed, epoch, batch):
        key = np.uint64(hashed(key, np.uint64(word)))
    return key


def permuted(
    seed: int, epoch: int, n: int, positions: Int64[np.ndarray, " positions"]
) -> Int64[np.ndarray, " positions"]:
    """What stands at these positions of the epoch's order: a permutation of [0, n), of which nothing is stored.

    A Feistel network over the smallest even number of bits that holds n; what falls outside [0, n) goes through it again, which it does
    at most three times on average (Black and Rogaway, 2002).

    Raises:
      ValueError: a position is not in [0, n).

    Time O(positions).
    """
    if len(positions) and (positions.min() < 0 or positions.max() >= n):
        raise ValueError(f"positions should be in [0, {n}), got {positions.min()} to {positions.max()}")
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    result = np.empty(len(positions), np.int64)
    _permute(batch_key(seed, epoch, _ORDER), n, half_bits, positions, result)
    return result


@compiled
def _permute(key, n, half_bits, positions, result):
    half_bits = np.uint64(half_bits)
    mask = (_1 << half_bits) - _1
    for i in range(len(positions)):
        x = np.uint64(positions[i])
        while True:
            left, right = x >> half_bits, x & mask
            for step in range(_NUM_ROUNDS):
                left, right = right, left ^ (hashed(hashed(key, step), right) & mask)
            x = (left << half_bits) | right
            if x < np.uint64(n):
                break
        result[i] = np.int64(x)
