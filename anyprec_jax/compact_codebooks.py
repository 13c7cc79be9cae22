"""Codebooks in a small part of the bytes: each centroid by where it lies from its parent, the entry whose cluster its own was split from.

    precisions      stored for one row                                        a centroid is
    seed            a byte for each entry; scale and offset                   offset + scale * byte
    up to 6         a byte for each parent: span and place; one scale         left or right of its parent, together `span` apart
    6               one more bit for each parent: a finer span                the same
    the next        a bit for each parent; one factor                         its parent, or a step from it
    the one after   nothing; two factors                                      its parent, or a step from it

A parent counts as decoded, so errors do not add up from precision to precision. Every product is of so few bits that float32 holds it
exactly: a row decodes to the same float16 values in NumPy and in JAX, compiled or not.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float16

from anyprec_jax.config import MAX_PRECISION

LAST_PAIRED = (
    6  # bits: up to here both children of an entry have places of their own, above one of them is where its parent is
)
# How far apart two children are, in units of a row's scale: steps that grow from 1 to 14 %. Four bits choose among every other one.
SPANS = np.array([*range(21), 22, 24, 27, 30, 35, 40, 45, 50, 57, 64, 73], np.uint8)
# Their parent lies place / PARTS of the span to the right of the left child, -2 / 11 to 13 / 11: where one child has most of the cluster,
# the parent is close to it, and rounding may have left it outside.
PARTS, FIRST_PLACE = 11, -2
SPAN_UNITS = 128.0  # scales of spans and of bytes are stored so many times too large: float16 has few digits below 6e-5
BYTE_UNITS = 128.0
_LARGEST = 65504.0  # of float16
_SEED_SCALES = 2  # scale, offset


@functools.partial(jax.tree_util.register_dataclass, data_fields=("entries", "scales"), meta_fields=("readable",))
@dataclasses.dataclass(frozen=True, eq=False)
@typing.no_type_check  # JAX rebuilds pytrees with whatever leaves a transformation puts there
class CompactCodebooks(Mapping[int, Any]):  # not `jax.Array`: who checks that at run time decodes a codebook for it
    """The codebooks of a matrix or a stack, read like the dict of float16 codebooks that it stands for: `codebooks[w]` is decoded anew.

    `scales` and `entries` have one item for every precision from the seed on, but for the second one after `LAST_PAIRED` or the seed,
    whichever is larger: that one has no entries. With p = 2**(w - 1) parents:

      * seed: `entries` [n, 2**w], `scales` [n, 2], BYTE_UNITS times the scale and the offset.
      * up to LAST_PAIRED: `entries` [n, p], half the number of the span in the upper four bits and the place in the lower four;
        `scales` [n, 1], SPAN_UNITS times the unit of spans. Of LAST_PAIRED itself [n, p + p / 8]: bit i of byte p + j is 1 where the
        number of the span of parent 8 j + i is odd.
      * the next: `entries` [n, p / 8], bit i of byte j is 1 where the step of parent 8 j + i is negative; `scales` [n, 1].
      * the one after: `scales` [n, 2], for parents of even and of odd code.

    A step is the factor times the difference of the parent's pair of siblings (odd code minus even); it makes the child of odd code, and
    the one of even code is its parent. `compaction.compact` makes them. Leaves may be NumPy arrays, JAX arrays or shapes, with any
    leading axes.
    """

    entries: dict[int, jax.Array]  # w -> uint8
    scales: dict[int, jax.Array]  # w -> float16
    readable: tuple[
        int, ...
    ]  # precisions, ascending; those below that are not are there because others are decoded from them

    def __getitem__(self, precision: int) -> Float16[Array | np.ndarray, "*lead n entries"]:
        if precision not in self.readable:
            raise KeyError(precision)
        return decode(self, precision)

    def __iter__(self) -> Iterator[int]:
        return iter(self.readable)

    def __len__(self) -> int:
        return len(self.readable)

    def __contains__(self, precision: object) -> bool:  # that of Mapping would decode
        return precision in self.readable


def leaf_shapes(seed: int, parent: int, n: int) -> dict[str, tuple[int, ...]]:
    """The leaves of one matrix by name, `entries/W` and `scales/W`, for precisions from seed to parent."""
    shapes: dict[str, tuple[int, ...]] = {f"entries/{seed}": (n, 2**seed), f"scales/{seed}": (n, _SEED_SCALES)}
    first_step = max(seed, LAST_PAIRED) + 1
    for w in range(seed + 1, parent + 1):
        if w < first_step:
            shapes[f"entries/{w}"] = (n, 2 ** (w - 1) + (2 ** (w - 1) // 8 if w == LAST_PAIRED else 0))
        elif w == first_step:
            shapes[f"entries/{w}"] = (n, 2 ** (w - 1) // 8)
        shapes[f"scales/{w}"] = (n, 1 if w <= first_step else 2)
    return shapes


def codebooks_of(leaves: Mapping[str, Any], readable: tuple[int, ...]) -> CompactCodebooks:
    """Leaves by name, as `leaf_shapes` has them, put together."""
    parts = {
        part: {int(name.rpartition("/")[2]): leaf for name, leaf in leaves.items() if name.startswith(f"{part}/")}
        for part in ("entries", "scales")
    }
    return CompactCodebooks(parts["entries"], parts["scales"], readable)


def row_bytes(seed: int, parent: int) -> int:
    """Of the codebooks of one row: 92 for 3 to 8 bits, where float16 takes 1,008."""
    shapes = leaf_shapes(seed, parent, 1)
    return sum(math.prod(shape) * (2 if name.startswith("scales") else 1) for name, shape in shapes.items())


def decode(codebooks: CompactCodebooks, precision: int) -> Float16[Array | np.ndarray, "*lead n entries"]:
    """The codebook of one precision: in NumPy where the leaves are NumPy arrays, else in JAX, compiled once for all calls.

    Cost: one pass over the leaves of the precisions up to it, and memory for twice the result in float32.
    """
    if isinstance(codebooks.scales[min(codebooks.scales)], np.ndarray):
        return _decode(codebooks, precision, np)
    return _decode_compiled(codebooks, precision)


@functools.partial(jax.jit, static_argnums=1)
def _decode_compiled(codebooks: CompactCodebooks, precision: int) -> Float16[Array, "*lead n entries"]:
    return _decode(codebooks, precision, jnp)


def _decode(codebooks: CompactCodebooks, precision: int, xp: ModuleType) -> Any:
    seed = min(codebooks.scales)
    scales, entries = codebooks.scales[seed].astype(np.float32), codebooks.entries[seed].astype(np.float32)
    book = to_float16(scales[..., 1:] + entries * (scales[..., :1] / np.float32(BYTE_UNITS)), xp)
    for w in range(seed + 1, precision + 1):
        scales = codebooks.scales[w].astype(np.float32)
        if w > max(seed, LAST_PAIRED):
            book = step_children(book, step_factors(codebooks.entries.get(w), scales, xp), xp)
        else:
            book = paired_children(book, codebooks.entries[w], scales, xp)
    return book


def paired_children(book: Any, entries: Any, scales: Any, xp: ModuleType) -> Any:
    """Children of `book` [*lead, n, p] by `entries`, whose span and place are multiplied by `scales` float32 [*lead, n, 1]."""
    parents = book.shape[-1]
    pairs, number = entries[..., :parents], entries[..., :parents] >> 4 << 1
    if entries.shape[-1] > parents:
        number = number + unpacked_bits(entries[..., parents:], xp)
    unit = xp.asarray(SPANS)[number].astype(np.float32) * (scales / np.float32(SPAN_UNITS))
    place = (pairs & 15).astype(np.float32) + np.float32(FIRST_PLACE)
    offsets = xp.stack([-place * unit, (np.float32(PARTS) - place) * unit], axis=-1)
    return to_float16(book.astype(np.float32)[..., None] + offsets, xp).reshape(*book.shape[:-1], -1)


def unpacked_bits(packed: Any, xp: ModuleType) -> Any:
    """uint8 [*lead, n, 8 * bytes] of uint8 [*lead, n, bytes], the least significant bit of a byte first."""
    bits = (packed[..., None] >> xp.arange(8, dtype=np.uint8).reshape((1,) * packed.ndim + (8,))) & 1
    return bits.reshape(*packed.shape[:-1], -1)


def step_factors(signs: Any, scales: Any, xp: ModuleType) -> Any:
    """What each parent's step is multiplied by, float32 [*lead, n, 1 or pairs, 1 or 2]: `scales`, where there are no signs."""
    if signs is None:
        return scales[..., None, :]
    sign = (1 - 2 * unpacked_bits(signs, xp).astype(np.float32)).reshape(*signs.shape[:-1], -1, 2)
    return scales[..., None] * sign


def step_children(book: Any, factors: Any, xp: ModuleType) -> Any:
    """Children of `book` [*lead, n, p]: each parent itself, and a step from it."""
    parents = book.astype(np.float32).reshape(*book.shape[:-1], -1, 2)
    moved = to_float16(parents + factors * pair_differences(book, xp)[..., None], xp)
    stay = book.reshape(parents.shape)
    return xp.stack([stay, moved], axis=-1).reshape(*book.shape[:-1], -1)


def pair_differences(book: Any, xp: ModuleType) -> Any:
    """Of the entries of odd code from those of even code before them, float32 [*lead, n, p / 2], rounded to float16."""
    pairs = book.astype(np.float32)
    return to_float16(pairs[..., 1::2] - pairs[..., ::2], xp).astype(np.float32)


def to_float16(values: Any, xp: ModuleType) -> Any:
    """Rounded; what float16 cannot hold becomes the largest that it can."""
    return xp.clip(values, -_LARGEST, _LARGEST).astype(np.float16)


def validate_leaves(codebooks: CompactCodebooks, lead: tuple[int, ...], n: int, parent: int) -> None:
    """Checks the leaves of a matrix, or of a stack with axes `lead`, that is read at up to `parent` bits.

    Raises:
      ValueError: naming the leaf.
    """
    seed = min(codebooks.scales, default=0)
    if not 1 <= seed <= parent <= MAX_PRECISION:
        raise ValueError(f"compact codebooks up to precision {parent} have scales of {sorted(codebooks.scales)}")
    wanted = leaf_shapes(seed, parent, n)
    found = {f"entries/{w}": leaf for w, leaf in codebooks.entries.items()}
    found |= {f"scales/{w}": leaf for w, leaf in codebooks.scales.items()}
    if differing := sorted(set(wanted) ^ set(found)):
        raise ValueError(f"compact codebooks {'lack' if differing[0] in wanted else 'have an extra'} {differing[0]}")
    for name, shape in wanted.items():
        leaf, dtype = found[name], np.float16 if name.startswith("scales") else np.uint8
        if leaf.dtype != dtype or leaf.shape != (*lead, *shape):
            raise ValueError(f"{name} must be {np.dtype(dtype)} {(*lead, *shape)}, got {leaf.dtype} {leaf.shape}")
    for w, scales in codebooks.scales.items():
        if not (finite := np.isfinite(np.asarray(scales))).all():
            raise ValueError(f"scales/{w} must be finite, but at {np.argwhere(~finite)[0].tolist()} they are not")
