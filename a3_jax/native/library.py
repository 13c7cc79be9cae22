"""The C++ library beside this file, and whether it can be called."""

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

_HANDLERS = {
    "a3_candidates": "A3Candidates",
    "a3_attention": "A3Attention",
    "a3_exact": "A3Exact",
    "a3_sort": "A3Sort",
    "a3_append": "A3Append",
}
LIBRARY = Path(__file__).parent / "a3_native.so"


def why_native_unavailable() -> str | None:
    """None where the native functions can be called, otherwise the reason, in one line. The first call loads the library."""
    return _load(LIBRARY)


def call_native(
    target: str, results: Any, *operands: jax.Array, in_place: Mapping[int, int] | None = None, **attributes: Any
) -> Any:
    """Calls a handler. Under `jax.vmap` operands that are not mapped are passed once, with an axis of 1.

    Args:
      in_place: operands, by number, whose memory a result may have.

    Raises:
      RuntimeError: if the library cannot be used; nothing else is done in its place.
    """
    reason = why_native_unavailable()
    if reason is not None:
        raise RuntimeError(f"the native functions of a3_jax cannot be called: {reason}")
    aliases = dict(in_place or {})
    call = jax.ffi.ffi_call(target, results, vmap_method="expand_dims", input_output_aliases=aliases)
    return call(*operands, **attributes)


@functools.cache
def _load(library: Path) -> str | None:
    """Registers the handlers of `library` with XLA, once. Returns why that is not possible, or None."""
    if not library.is_file():
        return f"{library} does not exist: reinstall bandwise where a C++17 compiler is found"
    try:
        loaded = ctypes.CDLL(str(library))
        for target, symbol in _HANDLERS.items():
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(loaded, symbol)), platform="cpu")
    except (OSError, AttributeError, RuntimeError) as error:
        return f"{library} cannot be used ({error}): reinstall bandwise"
    return None
