"""The product on GPU: a Pallas kernel for Triton that rebuilds codes from the planes and gathers centroids through the cache.

Each program takes a few rows of the matrix and walks along them, a tile of words at a time; each used plane is read once, in
order. All products are ordinary fused multiply-adds in float32: at few rows of x they are not what takes the time.

**Pallas for Triton is deprecated from JAX 0.11 on and will be removed.** What replaces it is Mosaic GPU, the default of
`pallas_call` on CUDA since JAX 0.10. There, a naive port of this kernel's prototype failed on layouts with lane semantics, and with
warpgroup semantics it did not finish compiling. All that is specific to Triton comes through `_triton`; where that finds none,
`why_unavailable` says so.
"""

import functools
import types

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Float16, Int32, UInt32

from anyprec_jax.bitplanes import WORD_BITS
from anyprec_jax.ops.tuning import GpuTiles, gpu_tiles

NAME = "anyprec_matmul_gpu"
DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))  # of x, and so of the result

_UNROLLED = 8  # columns of a word


def why_unavailable() -> str | None:
    """None when `matmul` can be lowered for CUDA, otherwise the reason, in one line. Whether there is a GPU is for
    `jax.lax.platform_dependent` to know."""
    if isinstance(triton := _triton(), str):
        return triton
    return None


def matmul(
    x: Float[Array, "m k"],
    bitplanes: UInt32[Array, "layers parent n words"],
    codebook: Float16[Array, "layers n entries"],
    layer: Int32[Array, ""],
    *,
    tiles: GpuTiles | None = None,
    interpret: bool = False,
) -> Float[Array, "m n"]:
    """The product of `x` with one matrix of a stack, in float32, rounded to the dtype of `x` at the end.

    Off by at most `k * 2**-24 * (abs(x) @ abs(w).T)`, as a sum of k rounded products in any order is, plus the rounding of the
    result to bfloat16 where that is its dtype. Only the first `precision` planes are read. Neither differentiable nor batched by
    itself.

    Args:
      x: float32 or bfloat16; meant for few rows.
      bitplanes: plane 0 is the most significant.
      codebook: 2**precision centroids a row, finite.
      layer: which matrix, 0 <= layer < layers; not checked.
      tiles: None for those of `tuning.gpu_tiles`.
      interpret: run on the host.

    Raises:
      RuntimeError: if the installed JAX has no Pallas for Triton; the message says so.
    """
    triton = _triton()
    if isinstance(triton, str):
        raise RuntimeError(f"implementation 'pallas_gpu' is not available: {triton}")
    m, k = x.shape
    n, words = bitplanes.shape[2:]
    if m == 0:
        return jnp.zeros((m, n), x.dtype)
    if tiles is None:
        tiles = gpu_tiles(m, n, k)
    padded_m = pl.cdiv(m, tiles.batch) * tiles.batch
    padded = jnp.pad(x, ((0, padded_m - m), (0, words * WORD_BITS - k)))
    by_column = padded.reshape(padded_m, words, WORD_BITS).transpose(2, 0, 1)
    product = pl.pallas_call(
        functools.partial(_kernel, triton=triton, tiles=tiles),
        out_shape=jax.ShapeDtypeStruct((padded_m, n), x.dtype),
        grid=(pl.cdiv(n, tiles.rows), padded_m // tiles.batch),
        compiler_params=triton.CompilerParams(num_warps=tiles.num_warps, num_stages=2),
        interpret=interpret,
        name=NAME,
    )(layer.reshape(1), by_column, bitplanes, codebook)
    return product[:m]


def _triton() -> types.ModuleType | str:
    """Pallas for Triton, the one place that knows it, or why there is none."""
    try:
        from jax.experimental.pallas import triton
    except ImportError as error:
        return f"JAX {jax.__version__} has no Pallas for Triton ({error})"
    return triton


def _kernel(layer_ref, x_ref, planes_ref, codebook_ref, out_ref, *, triton, tiles: GpuTiles) -> None:
    """Grid: tiles of rows, tiles of x. The operands are whole; their memory is only touched where it is loaded."""
    n, words = planes_ref.shape[2:]
    precision = codebook_ref.shape[-1].bit_length() - 1
    layer = layer_ref[0]
    first_row, first_x = pl.program_id(0) * tiles.rows, pl.program_id(1) * tiles.batch
    row = first_row + jax.lax.broadcasted_iota(jnp.int32, (tiles.rows, tiles.words), 0)

    def step(tile: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        first_word = tile * tiles.words
        word = first_word + jax.lax.broadcasted_iota(jnp.int32, (tiles.rows, tiles.words), 1)
        is_inside = (row < n) & (word < words)
        planes = [
            triton.load(
                planes_ref.at[layer, jnp.int32(plane), pl.ds(first_row, tiles.rows), pl.ds(first_word, tiles.words)],
                mask=is_inside,
                other=jnp.uint32(0),
            )
            for plane in range(precision)
        ]

        def columns(group: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            for member in range(_UNROLLED):
                column = group * _UNROLLED + member
                code = _code(planes, column)
                centroids = triton.load(codebook_ref.at[layer, row, code], mask=is_inside, other=jnp.float16(0)).astype(
                    jnp.float32
                )
                sums = tuple(
                    total + centroids * _row_of_x(triton, x_ref, column, first_x + i, first_word, tiles, words)
                    for i, total in enumerate(sums)
                )
            return sums

        return jax.lax.fori_loop(0, WORD_BITS // _UNROLLED, columns, sums)

    zero = jnp.zeros((tiles.rows, tiles.words), jnp.float32)
    sums = jax.lax.fori_loop(0, pl.cdiv(words, tiles.words), step, (zero,) * tiles.batch)
    is_row = first_row + jnp.arange(tiles.rows) < n
    for i, total in enumerate(sums):
        target = out_ref.at[first_x + jnp.int32(i), pl.ds(first_row, tiles.rows)]
        triton.store(target, jnp.sum(total, axis=1).astype(out_ref.dtype), mask=is_row)


def _code(planes: list[Array], column: Array) -> Int32[Array, "rows words"]:
    code = jnp.zeros(planes[0].shape, jnp.uint32)
    for plane in planes:
        code = (code << jnp.uint32(1)) | ((plane >> column.astype(jnp.uint32)) & jnp.uint32(1))
    return code.astype(jnp.int32)


def _row_of_x(triton, x_ref, column, row, first_word, tiles: GpuTiles, words: int) -> Float[Array, "1 words"]:
    is_word = first_word + jnp.arange(tiles.words) < words
    x = triton.load(
        x_ref.at[column, row, pl.ds(first_word, tiles.words)], mask=is_word, other=jnp.zeros((), x_ref.dtype)
    )
    return x.astype(jnp.float32)[None, :]
