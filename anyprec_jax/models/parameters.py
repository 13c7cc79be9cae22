"""The parameter tree of a model, filled tensor by tensor from whatever holds the weights."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import LAYERS, parameter_shapes

_ALIGNMENT = (
    64  # bytes; JAX on CPU uses a NumPy buffer in place if it starts at such an address, and copies it otherwise
)


def assemble(
    config: ModelConfig,
    read: Callable[[str, int | None], np.ndarray | Iterator[np.ndarray]],
    *,
    dtype: DTypeLike,
) -> dict[str, Any]:
    """Builds the tree that `decoder` takes.

    Args:
      config: says which parameters there are; their sizes are believed, so check them against the file first.
      read: (parameter, layer) -> values of the shape that `families.tensors` gives, of any float dtype; or one after the other along
        their first axis.
      dtype: of the result.

    Memory: the weights once, and what `read` returns.
    """
    params: dict[str, Any] = {"layers": {}}
    for parameter, shape in parameter_shapes(config).items():
        if parameter.startswith(LAYERS):
            stack = aligned_empty(shape, np.dtype(dtype))
            for layer in range(config.num_layers):
                values = read(parameter, layer)
                if isinstance(values, np.ndarray):
                    stack[layer] = values
                    continue
                for index, part in enumerate(values):
                    stack[layer, index] = part
            params["layers"][parameter.removeprefix(LAYERS)] = jax.device_put(stack)
        else:
            leaf = aligned_empty(shape, np.dtype(dtype))
            leaf[...] = read(parameter, None)
            params[parameter] = jax.device_put(leaf)
    return params


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that `jax.device_put` takes over instead of copying it: leave it alone afterwards."""
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + nbytes].view(dtype).reshape(shape)
