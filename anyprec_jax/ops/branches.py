"""A precision for each matrix of a stack: what is compiled for all of them, and run for one."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

StackPrecision: TypeAlias = int | tuple[int, ...]  # of all matrices of a stack, or of each


def check_stack_precision(precision: StackPrecision, *, size: int, layer: Array | int | None) -> None:
    """Raises ValueError unless there is one precision for each of `size` matrices, and the number of one of these."""
    if not isinstance(precision, tuple):
        return
    if layer is None:
        raise ValueError("a precision for each layer is for a stack [layers, n, k]: give one int for one matrix")
    if len(precision) != size:
        raise ValueError(f"a stack of {size} layers needs as many precisions or one int, got {len(precision)}")


def at_own_precision(
    precision: StackPrecision, layer: Int[Array, ""] | int | None, read: Callable[[int], Array]
) -> Array:
    """`read(w)` with w the precision of one matrix of a stack.

    Where `layer` is traced and the precisions differ, `read` is compiled once for each of them, and runs for the matrix's own alone: they
    are the branches of a `jax.lax.switch`, to which planes and codebooks pass by address. Under `jax.vmap` over `layer` all branches run.
    """
    if not isinstance(precision, tuple):
        return read(precision)
    if isinstance(layer, int):
        return read(precision[layer])
    different = sorted(set(precision))
    if len(different) == 1:
        return read(different[0])
    branch = np.searchsorted(different, precision).astype(np.int32)
    return jax.lax.switch(jnp.asarray(branch)[layer], [lambda w=w: read(w) for w in different])
