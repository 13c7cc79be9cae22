"""The implementations of the product as operations (see `transforms`): in XLA, native, and native where that is best."""

import functools
import importlib
import types
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.bitplanes import unpadded
from anyprec_jax.ops import cpu
from anyprec_jax.ops.reference import dequantize, matmul_xla
from anyprec_jax.ops.transforms import Operation, precision_of, with_gradient, with_vmap

# Above this many rows of x most of the work is in the product: decode the matrix once, for the matrix unit or for XLA's dense product.
MAX_DECODE_ROWS = 16
# On shorter rows roundings to bfloat16 do not average out, and there is nothing to gain.
MIN_MATRIX_UNIT_COLUMNS = 128


def xla(x: Array, planes: Array, codebook: Array, layer: Array) -> Array:
    """Plain JAX: runs everywhere, exact, differentiable."""
    matrix = _matrix(planes, codebook, layer, k=x.shape[-1])
    return matmul_xla(x, matrix, precision=precision_of(codebook))


@functools.cache
def native(arithmetic: cpu.Arithmetic | None, isa: cpu.Isa | None) -> Operation:
    """The native product; without a named arithmetic, many rows go through the matrix unit or a dense product of decoded weights."""
    may_use_unit = isa in (None, "avx512")  # it decodes with AVX-512

    def forward(x: Array, planes: Array, codebook: Array, layer: Array) -> Array:
        precision = precision_of(codebook)
        if x.shape[0] > MAX_DECODE_ROWS and arithmetic is None:  # asked here because vmap adds rows
            if may_use_unit and x.shape[1] >= MIN_MATRIX_UNIT_COLUMNS and cpu.has_matrix_unit():
                return cpu.prefill(x, planes, codebook, layer, precision=precision)
            return _decode_then_multiply(x, planes, codebook, layer)
        return cpu.matmul(x, planes, codebook, layer, precision=precision, arithmetic=arithmetic, isa=isa)

    return with_gradient(with_vmap(forward), xla)


@functools.cache
def pallas(platform: Literal["tpu", "gpu"]) -> Operation:
    """The Pallas kernel for a platform."""
    return with_gradient(with_vmap(functools.partial(_pallas, platform)), xla)


@functools.cache
def best() -> Operation:
    """Whatever is fastest on the platform that the program is compiled for, and always works."""

    def forward(x: Array, planes: Array, codebook: Array, layer: Array) -> Array:
        branches: dict[str, Operation] = {}
        if cpu.why_unavailable() is None:
            branches["cpu"] = native(None, None)
        # Every branch is traced, and the Pallas kernels take seconds: only where there is a device that could run them. Rows are counted
        # here because vmap adds some.
        here = jax.default_backend() if x.shape[0] <= MAX_DECODE_ROWS else None
        if here == "tpu" and why_pallas_unavailable("tpu") is None:
            branches["tpu"] = functools.partial(_pallas, "tpu")
        if here == "gpu" and why_pallas_unavailable("gpu") is None:
            branches["cuda"] = functools.partial(_pallas, "gpu")
        return jax.lax.platform_dependent(x, planes, codebook, layer, **branches, default=xla)

    return with_gradient(with_vmap(forward), xla)


def weights(planes: Array, codebook: Array, layer: Array, *, k: int) -> Array:
    """float32 [n, k]: one matrix of a stack, decoded; native where it can be."""

    def decode(planes: Array, codebook: Array, layer: Array) -> Array:
        return cpu.dequantize(planes, codebook, layer, k=k, precision=precision_of(codebook))

    def plain(planes: Array, codebook: Array, layer: Array) -> Array:
        return dequantize(_matrix(planes, codebook, layer, k=k), precision=precision_of(codebook))

    if cpu.why_unavailable() is not None:
        return plain(planes, codebook, layer)
    return jax.lax.platform_dependent(planes, codebook, layer, cpu=decode, default=plain)


def why_pallas_unavailable(platform: Literal["tpu", "gpu"]) -> str | None:
    """None where the kernel can be lowered for a platform, otherwise the reason, in one line."""
    return _pallas_kernels(platform).why_unavailable()


def _pallas_kernels(platform: Literal["tpu", "gpu"]) -> types.ModuleType:
    """The module with the kernel for a platform. Imported late: a CPU needs nothing of Pallas."""
    return importlib.import_module(f"anyprec_jax.ops.pallas_{platform}")


# Traced once for all programs: the kernels are long.
@functools.partial(jax.jit, static_argnums=0)
def _pallas(platform: Literal["tpu", "gpu"], x: Array, planes: Array, codebook: Array, layer: Array) -> Array:
    if planes.ndim == 3:
        planes = unpadded(planes, n=codebook.shape[1], k=x.shape[-1])
    return _pallas_kernels(platform).matmul(x, planes, codebook, layer)


def _decode_then_multiply(x: Array, planes: Array, codebook: Array, layer: Array) -> Array:
    dense = cpu.dequantize(planes, codebook, layer, k=x.shape[-1], precision=precision_of(codebook))
    product = jnp.matmul(x.astype(jnp.float32), dense.T, precision=jax.lax.Precision.HIGHEST)
    return product.astype(x.dtype)


def _matrix(planes: Array, codebook: Array, layer: Array, *, k: int) -> AnyPrecArray:
    """One matrix of a stack, of which only the planes and the codebook of one precision are there."""
    precision, n = precision_of(codebook), codebook.shape[1]
    matrix = jax.lax.dynamic_index_in_dim(planes, layer, keepdims=False)[:precision]
    if matrix.ndim == 2:
        matrix = unpadded(matrix, n=n, k=k)
    codebooks = {precision: jax.lax.dynamic_index_in_dim(codebook, layer, keepdims=False)}
    return AnyPrecArray(matrix, codebooks, seed_precision=precision, parent_precision=precision, k=k)
