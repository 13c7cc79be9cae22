"""The GPU kernel, interpreted, against float64 NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.ops import arg_specs, pallas_gpu
from anyprec_jax.ops.tuning import GpuTiles, gpu_tiles
from tests.anyprec_jax.oracles_matmul import assert_product, example, normal

needs_triton = pytest.mark.skipif(pallas_gpu.why_unavailable() is not None, reason=f"{pallas_gpu.why_unavailable()}")
SHAPES = [(1, 1), (3, 31), (5, 33), (7, 576), (9, 1056), (130, 70)]


def check(precision, n, k, m, dtype, **options):
    stack, weights = example(np.random.default_rng(n + k), n, k, layers=2)
    x = normal(m, k, dtype=dtype)
    product = pallas_gpu.matmul(x, stack.bitplanes, stack.codebooks[precision], jnp.int32(1), interpret=True, **options)
    assert_product(product, x, weights[precision][1])


@needs_triton
class TestProduct:
    @pytest.mark.parametrize(
        ("precision", "n", "k", "m", "dtype"),
        [
            (1, 1, 1, 1, jnp.float32),
            (2, 3, 31, 8, jnp.bfloat16),
            (3, 5, 33, 1, jnp.bfloat16),
            (4, 130, 70, 9, jnp.float32),
            (5, 7, 576, 1, jnp.float32),
            (6, 9, 1056, 3, jnp.bfloat16),
            (7, 130, 70, 2, jnp.bfloat16),
            (8, 7, 576, 8, jnp.float32),
        ],
    )
    def test_equals_oracle(self, precision, n, k, m, dtype):
        check(precision, n, k, m, dtype)

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", range(1, 9))
    def test_every_combination(self, precision):
        for (n, k), m, dtype in itertools.product(SHAPES, (1, 9), (jnp.float32, jnp.bfloat16)):
            check(precision, n, k, m, dtype)

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", (*arg_specs.SMOLLM2_135M, *arg_specs.LLAMA_3_2_1B), ids=lambda shape: shape.name)
    @pytest.mark.parametrize("precision", [3, 8])
    def test_real_shapes(self, shape, precision):
        """Their k; of n, what fills some programs and part of another."""
        check(precision, min(shape.n, 70), shape.k, 1, jnp.float32)

    def test_poisoned_planes_and_layers_change_nothing(self):
        precision = 3
        stack, _ = example(np.random.default_rng(0), 33, 70, layers=3)
        x = normal(2, 70)
        poisoned = stack.bitplanes.at[:, precision:].set(jnp.uint32(0xDEADBEEF)).at[0].set(jnp.uint32(0xDEADBEEF))
        codebook = stack.codebooks[precision]
        clean = pallas_gpu.matmul(x, stack.bitplanes, codebook, jnp.int32(1), interpret=True)
        bad_codebook = codebook.at[0].set(jnp.nan).at[2].set(jnp.nan)
        dirty = pallas_gpu.matmul(x, poisoned, bad_codebook, jnp.int32(1), interpret=True)
        np.testing.assert_array_equal(clean, dirty)

    def test_x_with_infinities_and_nans(self):
        matrix, _ = example(np.random.default_rng(0), 5, 40, layers=1)
        x = normal(3, 40).at[0, 3].set(jnp.nan).at[1, 3].set(jnp.inf)
        product = pallas_gpu.matmul(x, matrix.bitplanes, matrix.codebooks[3], jnp.int32(0), interpret=True)
        assert np.isnan(product[0]).all() and np.isinf(product[1]).all() and np.isfinite(product[2]).all()

    def test_only_the_branch_of_its_platform_has_the_kernel(self):
        matrix, _ = example(np.random.default_rng(0), 8, 64, layers=1)
        operands = (normal(1, 64), matrix.bitplanes, matrix.codebooks[4], jnp.int32(0))

        def either(*operands):
            return jax.lax.platform_dependent(
                *operands, cuda=pallas_gpu.matmul, default=lambda x, *_: jnp.zeros((x.shape[0], 8), x.dtype)
            )

        for platform in ("cpu", "tpu"):
            text = jax.jit(either).trace(*operands).lower(lowering_platforms=(platform,)).as_text()
            assert pallas_gpu.NAME not in text
        np.testing.assert_array_equal(jax.jit(either)(*operands), np.zeros((1, 8)))


def test_without_triton(monkeypatch):
    monkeypatch.setattr(pallas_gpu, "_triton", lambda: "JAX 0.99 has no Pallas for Triton")
    assert pallas_gpu.why_unavailable() == "JAX 0.99 has no Pallas for Triton"
    matrix, _ = example(np.random.default_rng(0), 5, 40, layers=1)
    with pytest.raises(RuntimeError, match=r"'pallas_gpu' is not available: JAX 0\.99 has no Pallas"):
        pallas_gpu.matmul(normal(1, 40), matrix.bitplanes, matrix.codebooks[3], jnp.int32(0))


def test_tiles():
    for n, k, m in itertools.product((1, 130, 576, 4096), (1, 33, 576, 11008), (1, 8, 17, 500)):
        tiles = gpu_tiles(m, n, k)
        assert tiles.rows * tiles.words <= 512 and tiles.batch <= 8
    with pytest.raises(ValueError, match="words must be a power of two, got 24"):
        GpuTiles(rows=4, words=24, batch=1, num_warps=4)
