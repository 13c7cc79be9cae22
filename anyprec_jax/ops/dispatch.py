"""`matmul` and `matmul_mixed`: the any-precision product, whichever implementation computes it."""

import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Shaped

from anyprec_jax.array import Matrix, PreparedArray, check_precision
from anyprec_jax.ops import cpu, operations
from anyprec_jax.ops.branches import StackPrecision, at_own_precision, check_stack_precision
from anyprec_jax.ops.transforms import Operation

Implementation = Literal["xla", "cpu", "pallas_tpu", "pallas_gpu"]


def matmul(
    x: Shaped[Array, "*batch k"],
    array: Matrix,
    *,
    precision: StackPrecision,
    layer: Int[Array, ""] | int | None = None,
    implementation: Implementation | None = None,
    arithmetic: cpu.Arithmetic | None = None,
    isa: cpu.Isa | None = None,
) -> Float[Array, "*batch n"]:
    """`x @ dequantize(array, precision=precision).T`, summed in float32, result in the dtype of `x`.

    Reads the first `precision` planes and the codebook of that precision, nothing else. Works under `jax.jit`,
    `jax.vmap` (over `x`, `array` and `layer`) and `jax.grad` (with respect to `x` and the codebooks, whose gradients are exact).

    Args:
      x: floating point.
      array: one matrix, or with `layer` a stack of them; as it is, or prepared.
      precision: bits per weight, seed <= precision <= parent; or a tuple of one for each matrix of a stack, of which that of `layer`
        is read (`branches.at_own_precision`).
      layer: which matrix of the stack, 0 <= layer < number of matrices; may be traced, as in a `jax.lax.scan`.
      implementation: "xla" runs everywhere; "cpu" is the native one; "pallas_tpu" and "pallas_gpu" are kernels for what their names
        say, and exact; None picks the best that works on the platforms that are here and for this number of rows, and never fails. All
        but "xla" take float32 and bfloat16.
      arithmetic: what the native product may round, "exact", "int16" or "int8", with the error bounds of `ops.cpu.matmul`; None is
        "int16" up to 16 rows of x; above, exact products of decoded weights, or where the processor has Intel AMX and k >= 128,
        bfloat16 products with relative errors up to 5e-3 (`ops.cpu.prefill`). Naming one asks for implementation "cpu".
      isa: the instruction set of the native product, "portable", "avx2" or "avx512"; None is the best of this processor. Naming one
        asks for implementation "cpu".

    Raises:
      ValueError: if `x` is not floating point or its last axis is not `k`, if `array` has no such `precision`, if
        `layer` is missing for a stack or given for one matrix, or if a named implementation cannot take the dtype of `x`.
      RuntimeError: if a named implementation is not available; the message says why.
      jax.errors.JaxRuntimeError: when it runs, if this processor lacks `isa`, or a traced `layer` is outside the stack.
    """
    _check(x, array, layer)
    _check_precisions(array, precision, layer)
    operation = _select(implementation, x.dtype, arithmetic, isa)

    def product(w: int) -> Array:
        planes, codebook, index = _as_stack(array, array.codebooks[w], layer)
        return _multiply(x, planes, codebook, index, operation=operation)

    return at_own_precision(precision, layer, product)


def matmul_mixed(
    x: Shaped[Array, "batch k"],
    array: Matrix,
    precisions: Int[Array | np.ndarray, " rows"],
    *,
    layer: Int[Array, ""] | int | None = None,
    implementation: Implementation | None = None,
    arithmetic: cpu.Arithmetic | None = None,
    isa: cpu.Isa | None = None,
) -> Float[Array, "batch n"]:
    """`matmul` with a precision for each row of x.

    The native product passes over the planes once, and gives each row the bits that it has alone at its precision under the same
    `arithmetic`. Works under `jax.jit` with traced `precisions`. XLA computes every precision of the array and selects.

    Args:
      precisions: one for each row of x, each a precision of `array`. Traced ones that are not give an exception when the native product
        runs, and rows of NaN in XLA.
      x, array, layer, implementation, arithmetic, isa: as for `matmul`; None as arithmetic is "int16".

    Raises:
      ValueError, RuntimeError, jax.errors.JaxRuntimeError: as `matmul`; also if `precisions` are not one integer per row of x.
    """
    _check(x, array, layer)
    if x.ndim != 2 or precisions.shape != x.shape[:1] or not jnp.issubdtype(precisions.dtype, jnp.integer):
        raise ValueError(
            f"precisions must be integers, one per row of x [batch, k], got {precisions.dtype} {precisions.shape} for x {x.shape}"
        )
    if not isinstance(precisions, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        for precision in np.unique(np.asarray(precisions)):
            check_precision(array, int(precision))
    if implementation not in (None, "xla", "cpu"):
        raise ValueError(f"implementation of mixed precisions must be 'xla', 'cpu' or None, got {implementation!r}")
    _select(implementation, x.dtype, arithmetic, isa)
    is_native = implementation == "cpu" or arithmetic is not None or isa is not None
    has_native = cpu.why_unavailable() is None and x.dtype in cpu.DTYPES and implementation != "xla"
    return _multiply_mixed(
        x,
        array,
        jnp.asarray(precisions, jnp.int32),
        None if layer is None else jnp.asarray(layer, jnp.int32),
        options=(arithmetic, isa),
        where="cpu" if is_native else "platform" if has_native else "xla",
    )


def dequantize_layer(
    stack: Matrix, layer: Int[Array, ""] | int, *, precision: StackPrecision
) -> Float32[Array, "*experts n k"]:
    """The weights of one layer of a stack, as `precision` bits represent them; exact, and native where that is built.

    Args:
      stack: [layers, n, k], or [layers, experts, n, k], of which all experts of the layer are wanted.
      layer: its number.
      precision: bits per weight, or a tuple of one for each layer.

    Raises:
      ValueError: if `stack` is one matrix, or cannot be read at `precision`.
    """
    if len(stack.shape) not in (3, 4):
        raise ValueError(f"expected a stack [layers, n, k], got a matrix of shape {stack.shape}: use dequantize")
    _check_precisions(stack, precision, layer)
    return at_own_precision(precision, layer, functools.partial(_dequantize_layer, stack, layer))


def _dequantize_layer(stack: Matrix, layer: Array | int, precision: int) -> Array:
    if len(stack.shape) == 4:
        experts = stack.shape[1]
        first = jnp.asarray(layer, jnp.int32) * experts
        one = functools.partial(_dequantize_layer, flat_stack(stack), precision=precision)
        return jax.lax.map(one, first + jnp.arange(experts, dtype=jnp.int32))
    planes, codebook, index = _as_stack(stack, stack.codebooks[precision], layer)
    return operations.weights(planes, codebook, index, k=stack.k)


def flat_stack(stack: Matrix) -> Matrix:
    """A stack [layers, experts, n, k] seen as one of layers * experts matrices; nothing is copied under `jax.jit`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stack)


def _check(x: Array, array: Matrix, layer: Array | int | None) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != array.k:
        raise ValueError(f"x must be [*batch, {array.k}] for a matrix with k = {array.k}, got {x.shape}")
    is_stack = len(array.shape) == 3
    if layer is None and is_stack:
        raise ValueError(f"an array of shape {array.shape} is a stack: say which matrix with layer=")
    if layer is not None and not is_stack:
        raise ValueError(f"layer is for a stack [layers, n, k] of matrices, got an array of shape {array.shape}")
    if isinstance(layer, int) and not 0 <= layer < array.shape[0]:
        raise ValueError(f"layer must be in [0, {array.shape[0]}), got {layer}")


def _check_precisions(array: Matrix, precision: StackPrecision, layer: Array | int | None) -> None:
    check_stack_precision(precision, size=array.shape[0], layer=layer)
    for w in sorted(set(precision)) if isinstance(precision, tuple) else (precision,):
        check_precision(array, w)


def _as_stack(array: Matrix, codebook: Array, layer: Array | int | None) -> tuple[Array, Array, Array]:
    """Planes and codebook of a stack, of one matrix if need be, and which matrix of it."""
    planes = array.planes if isinstance(array, PreparedArray) else array.bitplanes
    if layer is None:
        return planes[None], codebook[None], jnp.int32(0)
    return planes, codebook, jnp.asarray(layer, jnp.int32)


def _select(
    implementation: Implementation | None, dtype: np.dtype, arithmetic: cpu.Arithmetic | None, isa: cpu.Isa | None
) -> Operation:
    for name, value, choices in (
        ("implementation", implementation, get_args(Implementation)),
        ("arithmetic", arithmetic, get_args(cpu.Arithmetic)),
        ("isa", isa, get_args(cpu.Isa)),
    ):
        if value is not None and value not in choices:
            raise ValueError(f"{name} must be one of {choices} or None, got {value!r}")
    if arithmetic is not None or isa is not None:
        if implementation not in (None, "cpu"):
            raise ValueError(
                f"arithmetic and isa are those of implementation 'cpu', but implementation is {implementation!r}"
            )
        implementation = "cpu"
    if implementation is None:
        return operations.best() if dtype in cpu.DTYPES else operations.xla
    if implementation == "xla":
        return operations.xla
    reason = {
        "cpu": cpu.why_unavailable,
        "pallas_tpu": functools.partial(operations.why_pallas_unavailable, "tpu"),
        "pallas_gpu": functools.partial(operations.why_pallas_unavailable, "gpu"),
    }[implementation]()
    if reason is not None:
        raise RuntimeError(f"implementation {implementation!r} is not available: {reason}")
    if dtype not in cpu.DTYPES:
        raise ValueError(
            f"implementation {implementation!r} takes x of {' or '.join(map(str, cpu.DTYPES))}, got {dtype}"
        )
    if implementation == "cpu":
        return operations.native(arithmetic, isa)
    return operations.pallas("tpu" if implementation == "pallas_tpu" else "gpu")


@functools.partial(jax.jit, static_argnames="operation")  # a call outside `jit` then copies no planes
def _multiply(x: Array, planes: Array, codebook: Array, layer: Array, *, operation: Operation) -> Array:
    *batch, k = x.shape
    product = operation(x.reshape(math.prod(batch), k), planes, codebook, layer)
    return product.reshape(*batch, codebook.shape[1])


@functools.partial(jax.jit, static_argnames=("options", "where"))
def _multiply_mixed(
    x: Array,
    array: Matrix,
    precisions: Array,
    layer: Array | None,
    *,
    options: tuple[cpu.Arithmetic | None, cpu.Isa | None],
    where: Literal["cpu", "platform", "xla"],
) -> Array:
    def native(x: Array, precisions: Array) -> Array:
        stacks = {w: _as_stack(array, codebook, layer) for w, codebook in array.codebooks.items()}
        planes, _, index = next(iter(stacks.values()))
        codebooks = {w: codebook for w, (_, codebook, _) in stacks.items()}
        arithmetic, isa = options
        return cpu.matmul_mixed(x, planes, codebooks, precisions, index, arithmetic=arithmetic, isa=isa)

    def xla(x: Array, precisions: Array) -> Array:
        product = jnp.full((x.shape[0], array.n), jnp.nan, x.dtype)
        for precision, codebook in array.codebooks.items():
            this = operations.xla(x, *_as_stack(array, codebook, layer))
            product = jnp.where((precisions == precision)[:, None], this, product)
        return product

    if where == "platform":
        return jax.lax.platform_dependent(x, precisions, cpu=native, default=xla)
    return native(x, precisions) if where == "cpu" else xla(x, precisions)
