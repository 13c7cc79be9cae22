"""Checks of what enters, on the host: inside a compiled function nothing can raise."""

import numpy as np
from jaxtyping import ArrayLike


def validate(query: ArrayLike, key: ArrayLike, value: ArrayLike, *, mask: ArrayLike | None = None) -> None:
    """Checks the arguments of `approx_attention`, or many of them: axes before the last ones are free.

    Args:
      query: `[..., d]`.
      key: `[..., n, d]`.
      value: `[..., n, dv]`.
      mask: `[..., n]`, boolean.

    Raises:
      ValueError: if the sizes do not fit, one of n, d and dv is 0, the mask is not boolean, or a number is not finite (the first one is
        named); call it outside `jax.jit`.
    """
    arrays = {"query": np.asarray(query), "key": np.asarray(key), "value": np.asarray(value)}
    for name, array, axes in zip(arrays, arrays.values(), (1, 2, 2), strict=True):
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
