"""How this package compiles: numba, with the same options everywhere. Importing this module imports numba."""

import inspect
from collections.abc import Callable
from typing import Any

import numba


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
