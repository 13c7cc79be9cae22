"""The products on CPU: custom calls into the C++ of `anyprec_jax/native`, which read each used plane once."""

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Float32, Int32, UInt8, UInt32

TARGET = "anyprec_matmul"
_HANDLERS = {
    TARGET: "AnyPrecMatmul",
    "anyprec_prefill": "AnyPrecPrefill",
    "anyprec_matmul_mixed": "AnyPrecMatmulMixed",
    "anyprec_dequantize": "AnyPrecDequantize",
    "anyprec_affine_matmul": "AnyPrecAffineMatmul",
    "anyprec_attention": "AnyPrecAttention",
}
LIBRARY = Path(__file__).parent.parent / "native" / "anyprec_native.so"
Isa = Literal["portable", "avx2", "avx512"]
Arithmetic = Literal["exact", "int16", "int8"]
DEFAULT_ARITHMETIC: Arithmetic = "int16"
DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))  # of x, and so of the result


def why_unavailable() -> str | None:
    """None when the products can be called, otherwise the reason, in one line. The first call loads the library."""
    return _load(LIBRARY)


def has_matrix_unit() -> bool:
    """Whether `prefill` can be called: the library is there, and this processor has Intel AMX for bfloat16 and the AVX-512 beside it."""
    if why_unavailable() is not None:
        return False
    ask = ctypes.CDLL(str(LIBRARY)).AnyPrecHasMatrixUnit
    ask.restype = ctypes.c_bool
    return ask()


def matmul(
    x: Float[Array, "m k"],
    bitplanes: UInt32[Array, "layers parent ..."],
    codebook: Float16[Array, "layers n entries"],
    layer: Int32[Array, ""],
    *,
    precision: int,
    arithmetic: Arithmetic | None = None,
    isa: Isa | None = None,
) -> Float[Array, "m n"]:
    """The product of `x` with one matrix of a stack, summed in fp32, rounded to the dtype of `x` at the end.

    The stack is passed whole and by address, whatever its size: inside a loop over layers, slicing the matrix out
    before the call would copy it. Neither differentiable nor batched by itself: `ops.matmul` adds both. What comes out for a row of `x`
    does not depend on the other rows, nor on the number of threads.

    Args:
      x: float32 or bfloat16; one pass over the planes for every 16 rows.
      bitplanes: plane 0 is the most significant; only the first `precision` are read. `[layers, parent, n, words]`, or prepared:
        `[layers, parent, words of a padded plane]`.
      codebook: the one of `precision`, 2**precision entries a row.
      layer: which matrix, 0 <= layer < layers.
      precision: 1..8.
      arithmetic: what may be rounded; relative L2 errors of the result against float64, for activations with outlier channels of 12 times
        the others: "exact" (fp16 centroids, fp32 products and sums) 2e-6; "int16" (centroids and activations in 14 to 16 bits, a scale
        for every 32 activations, integer sums) 5e-4; "int8" 3e-2. None is "int16". Matrices with k < 128 are always exact.
      isa: the instruction set to use, or None for the best that this processor has. "portable" is exact whatever is asked for.

    Raises:
      ValueError or jax.errors.JaxRuntimeError: when it runs, with the values, if the buffers do not fit together or
        `layer` is outside the stack, or if this processor lacks `isa`.

    Time: that of reading `nbytes(array, precision=precision)` bytes where look-ups are fast (docs/benchmarks.md); memory O(m * k).
    """
    result = jax.ShapeDtypeStruct((x.shape[0], codebook.shape[1]), x.dtype)
    attributes = {"precision": np.int64(precision), "arithmetic": arithmetic or DEFAULT_ARITHMETIC, "isa": isa or ""}
    return jax.ffi.ffi_call(TARGET, result)(x, bitplanes, codebook, layer, **attributes)


def prefill(
    x: Float[Array, "m k"],
    bitplanes: UInt32[Array, "layers parent ..."],
    codebook: Float16[Array, "layers n entries"],
    layer: Int32[Array, ""],
    *,
    precision: int,
) -> Float[Array, "m n"]:
    """The product with many rows of `x` on the processor's matrix unit: `x` and weights rounded to bfloat16, summed in fp32.

    Weights are decoded once for every 512 rows. Relative L2 error against float64, for activations with outlier channels of 12 times the
    others: 5e-3. What comes out for a row of `x` does not depend on the other rows, nor on the number of threads.
    Arguments as for `matmul`.

    Raises:
      ValueError or jax.errors.JaxRuntimeError: as `matmul`, and if not `has_matrix_unit()`.

    Memory: O(m * (k + n)).
    """
    result = jax.ShapeDtypeStruct((x.shape[0], codebook.shape[1]), x.dtype)
    call = jax.ffi.ffi_call("anyprec_prefill", result)
    return call(x, bitplanes, codebook, layer, precision=np.int64(precision))


def matmul_mixed(
    x: Float[Array, "m k"],
    bitplanes: UInt32[Array, "layers parent ..."],
    codebooks: Mapping[int, Float16[Array, "layers n entries"]],
    precisions: Int32[Array, " m"],
    layer: Int32[Array, ""],
    *,
    arithmetic: Arithmetic | None = None,
    isa: Isa | None = None,
) -> Float[Array, "m n"]:
    """`matmul` with a precision for each row of `x`, in one pass over the planes; each row as `matmul` computes it, bit for bit.

    Args:
      codebooks: one for every precision that may be asked for.
      precisions: which of them, for each row.
      x, bitplanes, layer, arithmetic, isa: as for `matmul`.

    Raises:
      ValueError or jax.errors.JaxRuntimeError: as `matmul`, and if a row asks for a precision without a codebook.
    """
    n = next(iter(codebooks.values())).shape[1]
    result = jax.ShapeDtypeStruct((x.shape[0], n), x.dtype)
    attributes = {"arithmetic": arithmetic or DEFAULT_ARITHMETIC, "isa": isa or ""}
    ordered = [codebooks[precision] for precision in sorted(codebooks)]
    call = jax.ffi.ffi_call("anyprec_matmul_mixed", result)
    return call(x, bitplanes, precisions, layer, *ordered, **attributes)


def dequantize(
    bitplanes: UInt32[Array, "layers parent ..."],
    codebook: Float16[Array, "layers n entries"],
    layer: Int32[Array, ""],
    *,
    k: int,
    precision: int,
) -> Float32[Array, "n {k}"]:
    """The weights of one matrix of a stack, for products with many rows. Arguments and errors as for `matmul`."""
    result = jax.ShapeDtypeStruct((codebook.shape[1], k), jnp.float32)
    call = jax.ffi.ffi_call("anyprec_dequantize", result)
    return call(bitplanes, codebook, layer, precision=np.int64(precision))


def affine_matmul(
    x: Float[Array, "m k"],
    codes: UInt8[Array, "n k"],
    scale: Float32[Array, " n"],
    offset: Float32[Array, " n"],
    *,
    isa: Isa | None = None,
) -> Float[Array, "m n"]:
    """`x @ (scale[:, None] * codes + offset[:, None]).T`, activations in 16 bits with a scale for every 32 or 64, sums in fp32.

    Relative L2 error against float64 at most 5e-4. "portable" rounds nothing but the sums.

    Raises:
      ValueError or jax.errors.JaxRuntimeError: when it runs, if the buffers do not fit together, or if this processor lacks `isa`.
    """
    result = jax.ShapeDtypeStruct((x.shape[0], codes.shape[0]), x.dtype)
    return jax.ffi.ffi_call("anyprec_affine_matmul", result)(x, codes, scale, offset, isa=isa or "")


def attention(
    query: Float32[Array, "batch heads head_dim"],
    keys: Float32[Array, "layers batch kv_heads head_dim room"],
    values: Float32[Array, "layers batch kv_heads room head_dim"],
    layer: Int32[Array, ""],
    lengths: Int32[Array, " batch"],
) -> Float32[Array, "batch heads head_dim"]:
    """Exact attention of one new position per row to the first `lengths` positions that one layer's cache holds.

    The cache is passed whole and by address: XLA would copy the layer out of it. Query head h reads key head `h // (heads / kv_heads)`; the
    query is scaled already. Softmax and sums in float32.

    Raises:
      ValueError or jax.errors.JaxRuntimeError: when it runs, with the values, if shapes do not fit together, or `layer` or a length is
        out of range.

    Time: that of reading the positions once.
    """
    result = jax.ShapeDtypeStruct(query.shape, jnp.float32)
    return jax.ffi.ffi_call("anyprec_attention", result)(query, keys, values, layer, lengths)


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
