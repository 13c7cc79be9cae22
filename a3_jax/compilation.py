"""How this package compiles loops that JAX is not made for: numba. Importing this module imports numba, which takes a second."""

import inspect
from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """`numba.njit` with IEEE arithmetic and without the lock, kept on disk between runs where numba finds a folder it may write to."""
    source = inspect.unwrap(function)  # a type checker may have wrapped it
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(source)
    except RuntimeError:  # there is no such folder
        return numba.njit(nogil=True, error_model="numpy")(source)
