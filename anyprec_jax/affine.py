"""A matrix of 8-bit codes with a scale and an offset for every row: the embedding and the output head.

They are not any-precision: whatever the linears are read at, the head is read whole, once a token. In float32 it alone would be 1 GB
of a model of 1 B parameters.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

BITS = 8
_MAX_CODE = 2**BITS - 1
_WEIGHTS_AT_ONCE = 1 << 20


@functools.partial(jax.tree_util.register_dataclass, data_fields=("codes", "scale", "offset"), meta_fields=())
@dataclasses.dataclass(frozen=True)
@typing.no_type_check  # JAX rebuilds pytrees with whatever leaves a transformation puts there
class AffineArray:
    """A weight matrix `[n, k]` with `weights[r, c] == scale[r] * codes[r, c] + offset[r]`, in float32 (see `validate`)."""

    codes: jax.Array  # uint8 [n, k]
    scale: jax.Array  # float32 [n], finite, at least 0
    offset: jax.Array  # float32 [n], finite

    @property
    def n(self) -> int:
        """Rows: tokens of the vocabulary."""
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        """Columns: width of the hidden states."""
        return self.codes.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weights it stands for."""
        return (self.n, self.k)


def quantize_affine(weights: Float[np.ndarray | jax.Array, "n k"]) -> AffineArray:
    """Rounds every weight to the nearest of 256 values evenly spaced from the least to the largest of its row.

    Deterministic. Each weight is within `scale / 2` of what it is read as, and what two float32 operations round.

    Raises:
      ValueError: not a matrix, or a weight is NaN or infinite (row and column are named).

    Cost: some passes over the weights on the host; 20 MB besides arguments and result.
    """
    weights = np.asarray(weights)
    if weights.ndim != 2 or weights.size == 0:
        raise ValueError(f"weights must be a matrix [n, k], got shape {weights.shape}")
    n, k = weights.shape
    codes = np.empty((n, k), np.uint8)
    scale, offset = np.empty(n, np.float32), np.empty(n, np.float32)
    step = max(1, _WEIGHTS_AT_ONCE // k)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        codes[rows], scale[rows], offset[rows] = _quantize_rows(weights[rows].astype(np.float64), start)
    return AffineArray(jnp.asarray(codes), jnp.asarray(scale), jnp.asarray(offset))


def _quantize_rows(weights: np.ndarray, first_row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not np.isfinite(weights).all():
        row, column = np.argwhere(~np.isfinite(weights))[0]
        raise ValueError(
            f"weights must be finite, got {weights[row, column]} at row {first_row + row}, column {column}"
        )
    low = weights.min(axis=1)
    offset = low.astype(np.float32)
    offset = np.where(offset > low, np.nextafter(offset, np.float32(-np.inf)), offset)
    # Both round outwards, so that every weight lies between the first and the last of the 256 values.
    exact = (weights.max(axis=1) - offset) / _MAX_CODE
    scale = exact.astype(np.float32)
    scale = np.where(scale < exact, np.nextafter(scale, np.float32(np.inf)), scale)
    steps = np.where(scale > 0, scale, 1).astype(np.float64)
    codes = np.rint((weights - offset.astype(np.float64)[:, None]) / steps[:, None])
    return codes.astype(np.uint8), scale, offset


def dequantize_affine(array: AffineArray) -> Float32[Array, "n k"]:
    """The whole matrix in float32: four times the bytes."""
    return dequantize_rows(array, jnp.arange(array.n))


def dequantize_rows(array: AffineArray, ids: Int[Array, "*batch"]) -> Float32[Array, "*batch k"]:
    """The rows `ids`, 0 <= id < n; no others are read."""
    codes, scale, offset = (jnp.asarray(leaf)[ids] for leaf in (array.codes, array.scale, array.offset))
    return codes.astype(jnp.float32) * scale[..., None] + offset[..., None]


def nbytes(array: AffineArray) -> int:
    """Bytes resident, which are also those that a product reads."""
    return math.prod(array.shape) + 8 * array.n


def bits_per_weight(array: AffineArray) -> float:
    """`nbytes` in bits, per weight: `8 + 64 / k`."""
    return 8 * nbytes(array) / math.prod(array.shape)


def validate(array: AffineArray) -> None:
    """Checks the invariants of `AffineArray`; call it where data enters.

    Raises:
      ValueError: naming the invariant that does not hold, and where.
    """
    if array.codes.dtype != np.uint8 or array.codes.ndim != 2 or 0 in array.codes.shape:
        raise ValueError(f"codes must be uint8 [n, k], got {array.codes.dtype} {array.codes.shape}")
    for name in ("scale", "offset"):
        leaf = getattr(array, name)
        if leaf.dtype != np.float32 or leaf.shape != (array.n,):
            raise ValueError(f"{name} must be float32 [{array.n}], one per row, got {leaf.dtype} {leaf.shape}")
    scale, offset = np.asarray(array.scale), np.asarray(array.offset)
    for name, wrong in (("scale", ~(np.isfinite(scale) & (scale >= 0))), ("offset", ~np.isfinite(offset))):
        if wrong.any():
            row = int(np.argmax(wrong))
            least = " and at least 0" if name == "scale" else ""
            raise ValueError(f"{name} must be finite{least}, but is {getattr(array, name)[row]} in row {row}")
