"""The TPU kernel, interpreted, against float64 NumPy; and in a simulation of a TPU's memories, with poison and race checks."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from anyprec_jax.ops import arg_specs, pallas_tpu
from anyprec_jax.ops.tuning import TpuTiles, tpu_tiles
from tests.anyprec_jax.oracles_matmul import BFLOAT16_ROUNDING, FLOAT32_ROUNDING, example, normal

# The interpreter's programs are long, and run once.
UNOPTIMIZED = {"xla_backend_optimization_level": 0}
SHAPES = [(1, 1), (3, 31), (5, 33), (7, 576), (9, 1056), (130, 70), (300, 300), (33, 4200)]


@pytest.fixture(autouse=True)
def forget_programs() -> Iterator[None]:
    """Every program keeps its memory maps, and a process may have 65,530 of them: the full product of cases compiles more."""
    yield
    jax.clear_caches()


@functools.partial(jax.jit, static_argnames=("tiles", "interpret"), compiler_options=UNOPTIMIZED)
def compiled(*operands, tiles, interpret):
    return pallas_tpu.matmul(*operands, tiles=tiles, interpret=interpret)


def run(x, bitplanes, codebook, layer=0, *, tiles=None, interpret=True):
    return compiled(x, bitplanes, codebook, jnp.int32(layer), tiles=tiles, interpret=interpret)


def assert_within_bound(actual, x, weights) -> None:
    """The bound of the docstring: six exact partial products for each weight, summed in any order."""
    assert actual.dtype == x.dtype
    x64 = np.asarray(x, np.float64)
    wanted = x64 @ weights.T
    bound = 6 * weights.shape[1] * FLOAT32_ROUNDING * (np.abs(x64) @ np.abs(weights).T)
    if actual.dtype == jnp.bfloat16:
        bound += BFLOAT16_ROUNDING * (np.abs(wanted) + bound)
    assert np.all(np.abs(np.asarray(actual, np.float64) - wanted) <= bound)


def check(precision, n, k, m, dtype, *, lane_columns=None, interpret=True):
    stack, weights = example(np.random.default_rng(n + k), n, k, layers=2)
    x = normal(m, k, dtype=dtype)
    tiles = None
    if lane_columns is not None:
        tiles = dataclasses.replace(tpu_tiles(m, n, k, precision=precision), words=128, lane_columns=lane_columns)
    product = run(x, stack.bitplanes, stack.codebooks[precision], 1, tiles=tiles, interpret=interpret)
    assert_within_bound(product, x, weights[precision][1])


class TestProduct:
    # Every pair of (precision, kind of shape), (precision, dtype), (precision, rows of x) that differ in the code they reach.
    @pytest.mark.parametrize(
        ("precision", "n", "k", "m", "dtype"),
        [
            (1, 1, 1, 1, jnp.float32),
            (2, 3, 31, 3, jnp.bfloat16),
            (3, 300, 300, 1, jnp.float32),
            (3, 9, 1056, 9, jnp.bfloat16),
            (4, 5, 33, 40, jnp.float32),
            (4, 7, 576, 1, jnp.bfloat16),
            (5, 130, 70, 2, jnp.float32),
        ],
    )
    def test_equals_oracle(self, precision, n, k, m, dtype):
        check(precision, n, k, m, dtype)

    @pytest.mark.parametrize(
        ("precision", "lane_columns", "dtype"),
        [(5, 8, jnp.bfloat16), (8, 32, jnp.float32)],
    )
    def test_look_ups_along_lanes(self, precision, lane_columns, dtype):
        check(precision, 130, 300, 2, dtype, lane_columns=lane_columns)

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", range(1, 9))
    def test_every_combination(self, precision):
        for (n, k), m, dtype in itertools.product(SHAPES, (1, 9), (jnp.float32, jnp.bfloat16)):
            check(precision, n, k, m, dtype)
        for lane_columns, dtype in itertools.product((0, 4, 8, 16, 28, 32), (jnp.float32, jnp.bfloat16)):
            check(precision, 130, 300, 2, dtype, lane_columns=lane_columns)

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", (*arg_specs.SMOLLM2_135M, *arg_specs.LLAMA_3_2_1B), ids=lambda shape: shape.name)
    @pytest.mark.parametrize("precision", [3, 4, 6, 8])
    def test_real_shapes(self, shape, precision):
        """Their k; of n, what two tiles and a rest have."""
        check(precision, min(shape.n, 600), shape.k, 1, jnp.bfloat16)

    def test_poisoned_planes_and_layers_change_nothing(self):
        precision = 3
        stack, _ = example(np.random.default_rng(0), 33, 70, layers=3)
        x = normal(2, 70)
        poisoned = stack.bitplanes.at[:, precision:].set(jnp.uint32(0xDEADBEEF)).at[0].set(jnp.uint32(0xDEADBEEF))
        codebook = stack.codebooks[precision]
        clean = run(x, stack.bitplanes, codebook, 1)
        dirty = run(x, poisoned, codebook.at[0].set(jnp.nan).at[2].set(jnp.nan), 1)
        np.testing.assert_array_equal(clean, dirty)

    @pytest.mark.parametrize("lane_columns", [0, 32])
    def test_x_with_infinities_and_nans(self, lane_columns):
        matrix, _ = example(np.random.default_rng(0), 5, 40, layers=1)
        x = normal(3, 40).at[0, 3].set(jnp.nan).at[1, 3].set(jnp.inf)
        tiles = TpuTiles(rows=128, words=128, batch=8, lane_columns=lane_columns)
        product = run(x, matrix.bitplanes, matrix.codebooks[3], tiles=tiles)
        assert np.isnan(product[0]).all() and np.isinf(product[1]).all() and np.isfinite(product[2]).all()

    def test_every_float16_is_exact(self):
        """Subnormals included: a matrix whose rows are all finite values, multiplied by ones on one column."""
        bits = np.arange(1 << 16, dtype=np.uint16)
        finite = bits[np.isfinite(bits.view(np.float16))]
        halves = np.asarray(pallas_tpu._halves(jnp.asarray(finite, jnp.int32)))
        upper = (halves & ~0xFFFF).view(np.float32).astype(np.float64)
        lower = (halves << 16).view(np.float32).astype(np.float64)
        np.testing.assert_array_equal(upper + lower, finite.view(np.float16).astype(np.float64))

    def test_no_rows(self):
        matrix, _ = example(np.random.default_rng(0), 5, 40, layers=1)
        product = pallas_tpu.matmul(jnp.zeros((0, 40)), matrix.bitplanes, matrix.codebooks[3], jnp.int32(0))
        assert product.shape == (0, 5)


class TestSimulatedMemories:
    """Memory that was never written is NaN or all ones, reads beyond it are errors, and races are found."""

    @pytest.mark.parametrize(
        ("precision", "n", "k", "m", "lane_columns"),
        [(3, 130, 70, 3, None), (4, 300, 4200, 1, None), (5, 130, 300, 1, 8)],
    )
    def test_equals_oracle(self, precision, n, k, m, lane_columns):
        interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
        check(precision, n, k, m, jnp.float32, lane_columns=lane_columns, interpret=interpret)
        from jax._src.pallas.mosaic.interpret import interpret_pallas_call

        assert not interpret_pallas_call.races.races_found


class TestLowering:
    def test_only_the_branch_of_its_platform_has_the_kernel(self):
        matrix, _ = example(np.random.default_rng(0), 8, 64, layers=1)
        operands = (normal(1, 64), matrix.bitplanes, matrix.codebooks[4], jnp.int32(0))

        def either(*operands):
            return jax.lax.platform_dependent(
                *operands, tpu=pallas_tpu.matmul, default=lambda x, *_: jnp.zeros((x.shape[0], 8), x.dtype)
            )

        lowered = {
            platform: jax.jit(either).trace(*operands).lower(lowering_platforms=(platform,)).as_text()
            for platform in ("cpu", "tpu", "cuda")
        }
        assert [platform for platform, text in lowered.items() if "tpu_custom_call" in text] == ["tpu"]
        np.testing.assert_array_equal(jax.jit(either)(*operands), np.zeros((1, 8)))

    @pytest.mark.parametrize(
        ("precision", "n", "k"),
        [
            *[(precision, 512, 4096) for precision in (2, 5, 8)],
            *[(4, n, k) for n, k in [(1, 1), (7, 6400), (8, 64), (33, 33), (130, 70), (512, 2048), (192, 576)]],
        ],
    )
    def test_lowers_for_tpu(self, precision, n, k):
        operands = (
            jax.ShapeDtypeStruct((1, k), jnp.float32),
            jax.ShapeDtypeStruct((2, 8, n, -(-k // 32)), jnp.uint32),
            jax.ShapeDtypeStruct((2, n, 2**precision), jnp.float16),
            jax.ShapeDtypeStruct((), jnp.int32),
        )
        traced = jax.jit(pallas_tpu.matmul).trace(*operands)
        assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


class TestTiles:
    def test_heuristic_covers_every_shape(self):
        for n, k, m in itertools.product((1, 130, 576, 4096), (1, 33, 576, 2048, 4096, 11008), (1, 8, 17, 500)):
            for precision, sublane_gather in itertools.product(range(1, 9), (True, False)):
                tiles = tpu_tiles(m, n, k, precision=precision, sublane_gather=sublane_gather)
                assert sublane_gather or tiles.lane_columns == 32

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rows": 100}, "rows must be a multiple of 128, got 100"),
            ({"words": 136}, "words must be a multiple of 8 up to 128, got 136"),
            ({"batch": 4}, "batch must be a multiple of 8, got 4"),
            ({"lane_columns": 6}, "lane_columns must be a multiple of 4 from 0 to 32, got 6"),
            ({"words": 64, "lane_columns": 8}, "words must be 128 where lane_columns is not 0, got 64"),
        ],
    )
    def test_refuses(self, change, message):
        with pytest.raises(ValueError, match=message):
            TpuTiles(**{"rows": 128, "words": 128, "batch": 8, **change})
