"""How this package compiles: numba, with the same options everywhere. Importing this module imports numba."""

import inspect
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

PREFETCHED = 32  # entries ahead: some 100 ns of a memory's latency at a few ns an entry


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


def _prefetched(typing_context: Any, array: Any, index: Any) -> Any:
    """Compiled code: asks for the memory of an entry of a vector, which should be contiguous, to be written soon. Waits for nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = context.make_array(signature.args[0])(context, builder, arguments[0])
        entry = builder.gep(vector.data, [arguments[1]])
        address = builder.bitcast(entry, ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        # To be written, to stay in the caches, data.
        builder.call(
            cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"),
            [address, flag(1), flag(3), flag(1)],
        )
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch = intrinsic(inspect.unwrap(_prefetched))
