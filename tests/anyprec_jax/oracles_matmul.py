"""Any-precision matrices built code by code, and their products in float64, written from the invariants of the type."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax.array import AnyPrecArray

FLOAT32_ROUNDING = 2.0**-24
BFLOAT16_ROUNDING = 2.0**-8


class Example(NamedTuple):
    """An array of random codes and codebooks, and the weights it stands for."""

    array: AnyPrecArray
    weights: dict[int, np.ndarray]  # precision -> float64 [n, k], or [layers, n, k]


def example(
    rng: np.random.Generator, n: int, k: int, *, layers: int | None = None, seed: int = 1, parent: int = 8
) -> Example:
    """A matrix, or with `layers` a stack, with random codes and random ascending codebooks at every precision."""
    shape = (n, k) if layers is None else (layers, n, k)
    codes = rng.integers(0, 2**parent, shape)
    codebooks = {
        w: np.sort(rng.normal(size=(*shape[:-1], 2**w)), axis=-1).astype(np.float16) for w in range(seed, parent + 1)
    }
    weights = {
        w: np.take_along_axis(codebook.astype(np.float64), codes >> (parent - w), axis=-1)
        for w, codebook in codebooks.items()
    }
    bitplanes = np.zeros((*shape[:-2], parent, n, -(-k // 32)), np.uint32)
    for column in range(k):
        for plane in range(parent):
            bit = (codes[..., column] >> (parent - 1 - plane)) & 1
            bitplanes[..., plane, :, column // 32] |= bit.astype(np.uint32) << np.uint32(column % 32)
    array = AnyPrecArray(
        bitplanes=jax.device_put(bitplanes),
        codebooks={w: jax.device_put(codebook) for w, codebook in codebooks.items()},
        seed_precision=seed,
        parent_precision=parent,
        k=k,
    )
    return Example(array, weights)


def normal(*shape: int, dtype=jnp.float32, seed: int = 0) -> jnp.ndarray:
    """Standard normal; from NumPy, and put on the device as it is: nothing is compiled for every shape."""
    return jax.device_put(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


# What `ops.cpu.matmul` and `prefill` ("bfloat16") promise: the relative L2 error of the product against float64.
RELATIVE_ERRORS = {"exact": 2e-6, "int16": 5e-4, "int8": 3e-2, "bfloat16": 5e-3}


def with_outliers(*shape: int, dtype=jnp.float32, seed: int = 0) -> jnp.ndarray:
    """Standard normal, one channel in 97 twelve times as large: what activations of language models look like."""
    channels = np.where(np.arange(shape[-1]) % 97 == 5, 12.0, 1.0)
    return jax.device_put((np.random.default_rng(seed).standard_normal(shape) * channels).astype(dtype))


def relative_error(actual, x, weights: np.ndarray) -> float:
    """L2 norm of the error of `x @ weights.T` over that of the product in float64."""
    wanted = np.asarray(x, np.float64) @ weights.T
    return float(np.linalg.norm(np.asarray(actual, np.float64) - wanted) / np.linalg.norm(wanted))


def assert_close_product(actual, x, weights: np.ndarray, *, arithmetic: str | None) -> None:
    """`actual` is `x @ weights.T` as nearly as the arithmetic promises; None is the default, "int16".

    Matrices with k < 128 are exact, whatever the arithmetic. A single output has no norm over which errors average out: there, the
    error is compared with that of all products adding up.
    """
    if arithmetic == "exact" or weights.shape[-1] < 128:
        return assert_product(actual, x, weights)
    allowed = RELATIVE_ERRORS[arithmetic or "int16"]
    if actual.dtype == jnp.bfloat16:
        allowed += BFLOAT16_ROUNDING
    if actual.size >= 32:
        assert relative_error(actual, x, weights) <= allowed
    x64 = np.asarray(x, np.float64)
    norms = np.linalg.norm(x64, axis=-1)[..., None] * np.linalg.norm(weights, axis=-1)
    assert np.all(np.abs(np.asarray(actual, np.float64) - x64 @ weights.T) <= allowed * norms)
    return None


def assert_product(actual, x, weights: np.ndarray) -> None:
    """`actual` is `x @ weights.T` up to what fp32 sums and the rounding of the result to its dtype can do.

    The bound holds for fp32 sums in any order: a sum of k rounded products is off by at most k roundings, each relative
    to at most the sum of the absolute products (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    assert actual.dtype == x.dtype
    x64 = np.asarray(x, np.float64)
    wanted = x64 @ weights.T
    bound = weights.shape[1] * FLOAT32_ROUNDING * (np.abs(x64) @ np.abs(weights).T) * 1.001
    if actual.dtype == jnp.bfloat16:
        bound += BFLOAT16_ROUNDING * (np.abs(wanted) + bound)
    error = np.abs(np.asarray(actual, np.float64) - wanted)
    worst = np.unravel_index(np.argmax(error - bound), error.shape) if error.size else None
    assert np.all(error <= bound), f"at {worst}: off by {error[worst]}, at most {bound[worst]} allowed"
