"""Checks of what enters: of shapes anywhere, of numbers on the host, because inside a compiled function these are not known."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from a3_jax.sorted_keys import SortedKeys


def check_shapes(
    query: np.ndarray | jax.Array,
    key: np.ndarray | jax.Array,
    value: np.ndarray | jax.Array,
    *,
    sorted_keys: SortedKeys | None = None,
    mask: np.ndarray | jax.Array | None = None,
) -> None:
    """ValueError unless these are of one query and fit. Without this an axis of 1 would be stretched, and no array is the wiser."""
    shapes = [list(array.shape) for array in (query, key, value)]
    if [len(shape) for shape in shapes] != [1, 2, 2] or shapes[1] != shapes[2][:1] + shapes[0]:
        wanted = "query [d], key [n, d] and value [n, dv]"
        raise ValueError(f"wanted {wanted}, got {', '.join(map(str, shapes))}; batches are jax.vmap")
    if sorted_keys is not None and list(sorted_keys.rows.shape) != shapes[1][::-1]:
        raise ValueError(
            f"sorted_keys: wanted those of `sort_keys(key)`, {shapes[1][::-1]}, got {list(sorted_keys.rows.shape)}"
        )
    if mask is not None and (mask.dtype != bool or list(mask.shape) != shapes[1][:1]):
        raise ValueError(f"mask: wanted bool {shapes[1][:1]}, got {mask.dtype} {list(mask.shape)}")


def validate(query: ArrayLike, key: ArrayLike, value: ArrayLike, *, mask: ArrayLike | None = None) -> None:
    """Checks the arguments of `approx_attention`, or many of them: axes before the last ones are free.

    Args:
      query: `[..., d]`.
      key: `[..., n, d]`.
      value: `[..., n, dv]`.
      mask: `[..., n]`, boolean.

    Raises:
      ValueError: if the sizes do not fit, one of n, d and dv is 0, the mask is not boolean, these are no real numbers, or one is not finite
        (the first one is named); call it outside `jax.jit`.
    """
    arrays = {"query": np.asarray(query), "key": np.asarray(key), "value": np.asarray(value)}
    for name, array, axes in zip(arrays, arrays.values(), (1, 2, 2), strict=True):
        if not jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.kind not in "iu":
            raise ValueError(f"{name}: wanted floats or integers, got {array.dtype}")
        if array.ndim < axes or 0 in array.shape[-axes:]:
            raise ValueError(
                f"{name}: wanted at least {axes} axes, and none of the last {axes} empty, got {list(array.shape)}"
            )
    dim, (num_rows, key_dim), value_rows = (
        arrays["query"].shape[-1],
        arrays["key"].shape[-2:],
        arrays["value"].shape[-2],
    )
    if dim != key_dim:
        raise ValueError(f"query and key: wanted equal last axes, got {dim} and {key_dim}")
    if num_rows != value_rows:
        raise ValueError(f"key and value: wanted as many rows, got {num_rows} and {value_rows}")
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape[-1:] != (num_rows,):
            raise ValueError(f"mask: wanted bool [..., {num_rows}], got {mask.dtype} {list(mask.shape)}")
    for name, array in arrays.items():
        finite = np.isfinite(array)
        if not finite.all():
            place = tuple(int(index) for index in np.argwhere(~finite)[0])
            raise ValueError(f"{name}: wanted finite numbers, got {array[place]} at {list(place)}")
