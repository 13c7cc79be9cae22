"""The product on CPU: a custom call into the C++ of `anyprec_jax/native`, which reads each used plane once."""

import ctypes
import functools
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Int32, UInt32

TARGET = "anyprec_matmul"
LIBRARY = Path(__file__).parent.parent / "native" / "anyprec_native.so"
Isa = Literal["portable", "avx2"]
DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))  # of x, and so of the result


def why_unavailable() -> str | None:
    """None when `matmul` can be called, otherwise the reason, in one line. The first call loads the library."""
    return _load(LIBRARY)


def matmul(
    x: Float[Array, "m k"],
    bitplanes: UInt32[Array, "layers parent n words"],
    codebook: Float16[Array, "layers n entries"],
    layer: Int32[Array, ""],
    *,
    precision: int,
    isa: Isa | None = None,
) -> Float[Array, "m n"]:
    """The product of `x` with one matrix of a stack, in fp32, rounded to the dtype of `x` at the end.

    The stack is passed whole and by address, whatever its size: inside a loop over layers, slicing the matrix out
    before the call would copy it. Neither differentiable nor batched by itself: `ops.matmul` adds both.

    Args:
      x: float32 or bfloat16; meant for few rows, right for any number.
      bitplanes: plane 0 is the most significant; only the first `precision` are read.
      codebook: the one of `precision`, 2**precision entries a row.
      layer: which matrix, 0 <= layer < layers.
      precision: 1..8.
      isa: the instruction set to use, or None for the best that this processor has. Results differ between them in the
        order of summation only.

    Raises:
      ValueError or jax.errors.JaxRuntimeError: when it runs, with the values, if the buffers do not fit together or
        `layer` is outside the stack, or if this processor lacks `isa`.

    Time O(n * k * (1 + m / 8)) up to a constant; memory 4 * m * k bytes besides the operands.
    """
    result = jax.ShapeDtypeStruct((x.shape[0], bitplanes.shape[2]), x.dtype)
    return jax.ffi.ffi_call(TARGET, result)(x, bitplanes, codebook, layer, precision=np.int64(precision), isa=isa or "")


@functools.cache
def _load(library: Path) -> str | None:
    """Registers the handler of `library` with XLA, once. Returns why that is not possible, or None."""
    if not library.is_file():
        return f"{library} does not exist: reinstall bandwise where a C++17 compiler is found"
    try:
        handler = ctypes.CDLL(str(library)).AnyPrecMatmul
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")
    except (OSError, AttributeError, RuntimeError) as error:
        return f"{library} cannot be used ({error}): reinstall bandwise"
    return None
