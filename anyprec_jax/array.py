"""A weight matrix that can be read at several precisions."""

import dataclasses
import functools
import math
import typing
from collections.abc import Collection, Mapping
from typing import TypeAlias, TypeVar

import jax
import numpy as np

from anyprec_jax.bitplanes import WORD_BITS, num_words, unpadded
from anyprec_jax.compact_codebooks import CompactCodebooks, decode, validate_leaves
from anyprec_jax.config import MAX_PRECISION


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("bitplanes", "codebooks"),
    meta_fields=("seed_precision", "parent_precision", "k"),
)
@dataclasses.dataclass(frozen=True)
@typing.no_type_check  # JAX rebuilds pytrees with whatever leaves a transformation puts there
class AnyPrecArray:
    """A weight matrix `[n, k]` (outputs, inputs), readable at any precision w with seed <= w <= parent.

    The following hold (see `validate`):
      * `bitplanes[p]` holds bit `parent - 1 - p` of every code: plane 0 is the most significant.
        Column `32 * j + i` is bit `i` of word `j`; columns from `k` on are code 0.
      * `code_w == code_parent >> (parent - w)`: reading w bits touches the first w planes only.
      * `dequantized_w[r, c] == codebooks[w][r, code_w[r, c]]`.
      * `codebooks[w]` is finite.

    Codebooks are a dict of float16 arrays, or `CompactCodebooks`, which decode one when it is asked for: `expand` does that once, for as
    many products as there will be.

    The order of a row's centroids means nothing, nor do equal weights have equal codes: `quantize` makes intervals of the sorted row, and
    `quantize_jointly` whatever makes the row's outputs best.

    A stack of matrices of one shape (the layers of a model) is the same type with one leading axis on every leaf, which is what
    `jax.vmap` and `jax.lax.scan` slice off; the experts of all layers have two, [layers, experts, ...]. Leaves may also be
    `jax.ShapeDtypeStruct`: everything here but `validate` needs shapes only.
    """

    bitplanes: jax.Array  # uint32 [parent, n, ceil(k / 32)]
    codebooks: Mapping[int, jax.Array]  # w -> float16 [n, 2**w], for every precision that it can be read at
    seed_precision: int
    parent_precision: int
    k: int

    @property
    def n(self) -> int:
        """Outputs: rows of one matrix."""
        return self.bitplanes.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights it stands for: `(n, k)`, or `(layers, n, k)` for a stack, or `(layers, experts, n, k)`."""
        return (*self.bitplanes.shape[:-3], self.n, self.k)

    @property
    def precisions(self) -> tuple[int, ...]:
        """Every precision it can be read at, ascending: seed..parent, unless only some of them were loaded."""
        return tuple(sorted(self.codebooks))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("planes", "codebooks"),
    meta_fields=("seed_precision", "parent_precision", "n", "k"),
)
@dataclasses.dataclass(frozen=True)
@typing.no_type_check  # JAX rebuilds pytrees with whatever leaves a transformation puts there
class PreparedArray:
    """An `AnyPrecArray`, or a stack of them, in the layout that the native CPU product reads fastest.

    The same bits in the same order, but for padding at the end of every plane: `natural` takes it away again. On Linux the planes lie in
    huge pages (`layout`).
    """

    planes: jax.Array  # uint32 [parent, words], or [layers, parent, words] for a stack
    codebooks: Mapping[int, jax.Array]  # w -> float16 [n, 2**w], or [layers, n, 2**w]
    seed_precision: int
    parent_precision: int
    n: int
    k: int

    @property
    def bitplanes(self) -> jax.Array:
        """The planes as `AnyPrecArray` has them: a copy of each, without its padding."""
        return unpadded(self.planes, n=self.n, k=self.k)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights it stands for: `(n, k)`, or `(layers, n, k)` for a stack."""
        return (*self.planes.shape[:-2], self.n, self.k)

    @property
    def precisions(self) -> tuple[int, ...]:
        """Every precision it can be read at, ascending."""
        return tuple(sorted(self.codebooks))


Matrix: TypeAlias = AnyPrecArray | PreparedArray
SomeMatrix = TypeVar("SomeMatrix", bound=Matrix)


def check_precision(array: Matrix, precision: int) -> None:
    """Raises ValueError unless `array` can be read at `precision`."""
    if isinstance(precision, bool) or not isinstance(precision, int) or precision not in array.precisions:
        readable = ", ".join(map(str, array.precisions))
        raise ValueError(f"precision must be one of {readable}, the ones this array can be read at, got {precision!r}")


def expand(array: SomeMatrix, precisions: int | Collection[int]) -> SomeMatrix:
    """The same planes with the float16 codebooks of some precisions, decoded; an array that has float16 codebooks is returned as it is.

    Args:
      array: a matrix or a stack.
      precisions: what it will be read at.

    Raises:
      ValueError: it cannot be read at one of them.

    Works under `jax.jit` and `jax.vmap`. Memory for the codebooks: 2 * 2**w bytes a row for w bits.
    """
    precisions = (precisions,) if isinstance(precisions, int) else precisions
    for precision in precisions:
        check_precision(array, precision)
    if not isinstance(array.codebooks, CompactCodebooks):
        return array
    return dataclasses.replace(array, codebooks={w: decode(array.codebooks, w) for w in sorted(precisions)})


def nbytes(array: Matrix, *, precision: int | None = None) -> int:
    """Bytes resident (every plane and codebook), or the bytes read at `precision`: its planes and its one codebook, in float16.

    The padding of a prepared matrix, which is never read, is not counted.
    """
    rows = math.prod(array.shape[:-1])
    if precision is None:
        codebooks = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(array.codebooks))
        planes = array.parent_precision
    else:
        check_precision(array, precision)
        planes, codebooks = precision, rows * 2**precision * 2
    return planes * rows * num_words(array.k) * 4 + codebooks


def bits_per_weight(array: Matrix, *, precision: int | None = None) -> float:
    """`nbytes` in bits, per weight: `parent * ceil(k/32) * 32/k + 16/k * sum_w 2**w` when resident.

    On narrow rows float16 codebooks weigh more than the planes: for 3..8 bits they are 14.0 of 22.0 bits at k = 576, and 2.0 of 10.0
    at k = 4096. Compact ones are 1.2 and 0.2 bits.
    """
    return 8 * nbytes(array, precision=precision) / math.prod(array.shape)


def validate(array: Matrix) -> None:
    """Checks the invariants of `AnyPrecArray` on one matrix or a stack, natural or prepared; call it where data enters.

    Raises:
      ValueError: naming the invariant that does not hold, and where.

    Cost: one pass over the last words of the planes and over the codebooks, on the host.
    """
    _validate_structure(array)
    every_plane = np.asarray(array.bitplanes)
    stack = array.shape[:-2]
    for index in np.ndindex(*stack):
        where = f" of matrix {', '.join(map(str, index))} of the stack" if stack else ""
        _validate_padding(every_plane[index], array.k, where)
        if isinstance(array.codebooks, CompactCodebooks):
            continue  # finite as soon as its leaves are
        for precision, codebook in array.codebooks.items():
            _validate_codebook(np.asarray(codebook[index]), precision, where)


def _validate_structure(array: Matrix) -> None:
    seed, parent = array.seed_precision, array.parent_precision
    if not 1 <= seed <= parent <= MAX_PRECISION:
        raise ValueError(f"precisions must satisfy 1 <= seed <= parent <= {MAX_PRECISION}, got {seed} and {parent}")
    if array.k < 1:
        raise ValueError(f"k must be at least 1, got {array.k}")
    planes = array.bitplanes
    if planes.dtype != np.uint32 or planes.ndim not in (3, 4, 5):
        raise ValueError(
            f"bitplanes must be uint32 [parent, n, words], or [layers, parent, n, words] for a stack, got {planes.dtype} "
            f"{planes.shape}"
        )
    if planes.shape[-3] != parent or planes.shape[-1] != num_words(array.k):
        raise ValueError(
            f"bitplanes of parent_precision {parent} and k {array.k} must be [{parent}, n, {num_words(array.k)}], got "
            f"{planes.shape[-3:]}"
        )
    if not set(array.codebooks) <= set(range(seed, parent + 1)) or not array.codebooks:
        raise ValueError(
            f"codebooks must have precisions from {seed} to {parent}, at least one, got {sorted(array.codebooks)}"
        )
    if isinstance(array.codebooks, CompactCodebooks):
        validate_leaves(array.codebooks, array.shape[:-2], array.n, max(array.codebooks.scales, default=0))
        if max(array.precisions) > max(array.codebooks.scales):
            raise ValueError(
                f"compact codebooks up to {max(array.codebooks.scales)} bits cannot be read at {max(array.precisions)}"
            )
        return
    for precision, codebook in array.codebooks.items():
        wanted = (*array.shape[:-1], 2**precision)
        if codebook.dtype != np.float16 or codebook.shape != wanted:
            raise ValueError(f"codebook {precision} must be float16 {wanted}, got {codebook.dtype} {codebook.shape}")


def _validate_padding(planes: np.ndarray, k: int, where: str) -> None:
    used = k % WORD_BITS
    if used and np.any(planes[:, :, -1] >> np.uint32(used)):
        plane, row = np.argwhere(planes[:, :, -1] >> np.uint32(used))[0]
        raise ValueError(
            f"columns from k = {k} on must be code 0, but row {row}{where} has a bit set there in plane {plane}"
        )


def _validate_codebook(codebook: np.ndarray, precision: int, where: str) -> None:
    if not np.all(np.isfinite(codebook)):
        row = np.argwhere(~np.isfinite(codebook))[0, 0]
        raise ValueError(f"codebook {precision} must be finite, but row {row}{where} is not")
