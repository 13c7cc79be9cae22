"""One contract, every implementation: the product equals slow NumPy on the named shapes, under jit, vmap and grad."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.layout import prepare
from anyprec_jax.ops import arg_specs, cpu, dequantize, matmul, matmul_mixed
from anyprec_jax.ops.operations import MAX_DECODE_ROWS, MIN_MATRIX_UNIT_COLUMNS
from tests.anyprec_jax.oracles_matmul import assert_close_product, assert_product, example, normal

FAILURE = (ValueError, jax.errors.JaxRuntimeError)
needs_native = pytest.mark.skipif(cpu.why_unavailable() is not None, reason=f"{cpu.why_unavailable()}")
every_implementation = pytest.mark.parametrize("implementation", ["xla", pytest.param("cpu", marks=needs_native), None])


def arithmetic_of(implementation: str | None, rows: int = 1) -> str:
    """What may be rounded where none is named."""
    if implementation == "xla" or cpu.why_unavailable() is not None:
        return "exact"
    return "int16" if rows <= MAX_DECODE_ROWS else "bfloat16" if cpu.has_matrix_unit() else "exact"


@every_implementation
class TestProduct:
    @pytest.mark.parametrize(
        ("precision", "n", "k"),
        [(1, 1, 1), (2, 3, 31), (3, 3, 33), (4, 33, 576), (5, 5, 1056), (6, 64, 2080), (7, 1, 1536), (8, 7, 70)],
    )
    def test_equals_oracle(self, implementation, precision, n, k):
        array, weights = example(np.random.default_rng(k), n, k)
        x = normal(2, k)
        product = matmul(x, array, precision=precision, implementation=implementation)
        assert_close_product(product, x, weights[precision], arithmetic=arithmetic_of(implementation, 2))

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("rows", [1, 3, 16, 17])
    def test_number_of_rows(self, implementation, rows, dtype):
        array, weights = example(np.random.default_rng(0), 37, 195)
        x = normal(rows, 195, dtype=dtype)
        product = matmul(x, array, precision=4, implementation=implementation)
        assert_close_product(product, x, weights[4], arithmetic=arithmetic_of(implementation, rows))

    def test_prepared_is_the_same_matrix(self, implementation):
        array, _ = example(np.random.default_rng(0), 33, 190, layers=2)
        for rows in (2, MAX_DECODE_ROWS + 1):
            x = normal(rows, 190)
            natural, prepared = (
                matmul(x, layout, precision=5, layer=1, implementation=implementation)
                for layout in (array, prepare(array))
            )
            np.testing.assert_array_equal(natural, prepared)

    @pytest.mark.parametrize(("shape", "precision"), list(zip(arg_specs.SMOLLM2_135M, (3, 4, 6, 8), strict=True)))
    def test_real_shapes(self, implementation, shape, precision):
        array, weights = example(np.random.default_rng(0), shape.n, shape.k, seed=3)
        x = normal(1, shape.k)
        product = matmul(x, array, precision=precision, implementation=implementation)
        assert_close_product(product, x, weights[precision], arithmetic=arithmetic_of(implementation))

    def test_leading_axes_of_x(self, implementation):
        array, weights = example(np.random.default_rng(0), 6, 40)
        for batch in [(), (0,), (2, 3)]:
            x = normal(*batch, 40)
            product = matmul(x, array, precision=3, implementation=implementation)
            assert product.shape == (*batch, 6)
            assert_product(product, x, weights[3])

    def test_unused_planes_and_codebooks_are_never_read(self, implementation):
        array, _ = example(np.random.default_rng(0), 33, 70)
        x = normal(2, 70)
        for precision in (1, 3, 7):
            poisoned = AnyPrecArray(
                bitplanes=array.bitplanes.at[precision:].set(jnp.uint32(0xDEADBEEF)),
                codebooks={w: c if w == precision else jnp.full_like(c, jnp.nan) for w, c in array.codebooks.items()},
                seed_precision=1,
                parent_precision=8,
                k=70,
            )
            clean, dirty = (matmul(x, a, precision=precision, implementation=implementation) for a in (array, poisoned))
            np.testing.assert_array_equal(clean, dirty)

    def test_stack_equals_its_layers(self, implementation):
        stack, weights = example(np.random.default_rng(0), 33, 70, layers=4)
        x = normal(3, 70)

        def step(_, layer):
            return None, matmul(x, stack, precision=3, layer=layer, implementation=implementation)

        _, scanned = jax.jit(lambda: jax.lax.scan(step, None, jnp.arange(4)))()
        for layer in range(4):
            assert_product(scanned[layer], x, weights[3][layer])
            alone = matmul(x, stack, precision=3, layer=layer, implementation=implementation)
            assert_product(alone, x, weights[3][layer])

    def test_x_with_infinities_and_nans(self, implementation):
        array, _ = example(np.random.default_rng(0), 5, 40)
        for dtype in (jnp.float32, jnp.bfloat16):
            x = normal(3, 40, dtype=dtype).at[0, 3].set(jnp.nan).at[1, 3].set(jnp.inf)
            product = matmul(x, array, precision=3, implementation=implementation)
            assert np.isnan(product[0]).all() and np.isinf(product[1]).all() and np.isfinite(product[2]).all()


@every_implementation
class TestTransformations:
    """Each against a plain dense product of the dequantized weights, with the same transformation."""

    def compare(self, implementation, transformed, *, layers=None, k=70, precision=3):
        array, weights = example(np.random.default_rng(0), 9, k, layers=layers)
        dense = jnp.asarray(weights[precision], jnp.float32)

        def op(x, array, layer=None):
            return matmul(x, array, precision=precision, layer=layer, implementation=implementation)

        def plain(x, dense, layer=None):
            return jnp.matmul(x, (dense if layer is None else dense[layer]).T, precision="highest")

        actual, wanted = jax.jit(lambda: (transformed(op, array), transformed(plain, dense)))()
        assert actual.shape == wanted.shape
        scale = float(jnp.max(jnp.abs(wanted)))
        # Both sides are sums of at most k fp32 products, or, for gradients of squares, of k of such sums.
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=4 * k * 2.0**-24 * scale)

    def test_no_jit(self, implementation):
        array, weights = example(np.random.default_rng(0), 9, 70)
        x = normal(2, 70)
        with jax.disable_jit():
            assert_product(matmul(x, array, precision=3, implementation=implementation), x, weights[3])

    def test_vmap_over_x(self, implementation):
        x = normal(5, 3, 70)
        self.compare(implementation, lambda f, a: jax.vmap(lambda x: f(x, a))(x))

    def test_vmap_over_single_vectors(self, implementation):
        x = normal(MAX_DECODE_ROWS + 5, 70)
        self.compare(implementation, lambda f, a: jax.vmap(lambda x: f(x, a))(x))

    def test_vmap_over_matrices(self, implementation):
        x = normal(4, 2, 70)
        self.compare(implementation, lambda f, a: jax.vmap(f)(x, a), layers=4)
        self.compare(implementation, lambda f, a: jax.vmap(f, in_axes=(None, 0))(x[0], a), layers=4)

    def test_vmap_over_layers(self, implementation):
        x = normal(3, 2, 70)
        layers = jnp.array([2, 0, 3])
        self.compare(implementation, lambda f, a: jax.vmap(lambda x, i: f(x, a, i))(x, layers), layers=4)

    def test_nested_vmap(self, implementation):
        x = normal(3, 2, 70)
        layers = jnp.arange(4)
        self.compare(
            implementation, lambda f, a: jax.vmap(lambda x: jax.vmap(lambda i: f(x, a, i))(layers))(x), layers=4
        )

    def test_gradient_of_x(self, implementation):
        x = normal(3, 70)
        self.compare(implementation, lambda f, a: jax.grad(lambda x: jnp.sum(f(x, a) ** 2))(x))

    def test_gradient_of_x_in_a_stack(self, implementation):
        x = normal(3, 70)
        self.compare(implementation, lambda f, a: jax.grad(lambda x: jnp.sum(f(x, a, 2) ** 2))(x), layers=4)

    def test_gradient_of_vmap_and_vmap_of_gradient(self, implementation):
        x = normal(3, 2, 70)
        self.compare(implementation, lambda f, a: jax.grad(lambda x: jnp.sum(jax.vmap(lambda x: f(x, a))(x) ** 2))(x))
        self.compare(implementation, lambda f, a: jax.vmap(jax.grad(lambda x: jnp.sum(f(x, a) ** 2)))(x))

    def test_gradient_of_the_codebook(self, implementation):
        """Each entry gets the sum of the gradients of the weights that use it."""
        array, _ = example(np.random.default_rng(0), 5, 70)
        x, cotangent = normal(3, 70), normal(3, 5, seed=1)

        def loss(codebook):
            changed = AnyPrecArray(array.bitplanes, {**array.codebooks, 3: codebook}, 1, 8, 70)
            return jnp.sum(cotangent * matmul(x, changed, precision=3, implementation=implementation))

        gradient = jax.grad(loss)(array.codebooks[3])
        weight_gradient = np.asarray(cotangent, np.float64).T @ np.asarray(x, np.float64)
        weights, codebook = np.asarray(dequantize(array, precision=3)), np.asarray(array.codebooks[3], np.float32)
        used = weights[:, None, :] == codebook[:, :, None]
        wanted = np.sum(used * weight_gradient[:, None, :], axis=-1)
        # fp16 result: one rounding of 2**-11, of sums of at most 70 terms.
        np.testing.assert_allclose(gradient, wanted, rtol=2**-10, atol=2**-10)


@every_implementation
class TestMixed:
    def test_every_row_at_its_precision(self, implementation):
        array, weights = example(np.random.default_rng(0), 40, 576, seed=3)
        x, precisions = normal(5, 576), np.array([3, 8, 4, 3, 6])
        for layout in (array, prepare(array)):
            mixed = jax.jit(lambda x, p: matmul_mixed(x, layout, p, implementation=implementation))(x, precisions)  # noqa: B023
            for row, precision in enumerate(precisions):
                arithmetic = arithmetic_of(implementation)
                assert_close_product(mixed[row], x[row], weights[int(precision)], arithmetic=arithmetic)

    def test_a_layer_of_a_stack(self, implementation):
        stack, weights = example(np.random.default_rng(0), 40, 70, layers=3)
        x = normal(2, 70)
        mixed = matmul_mixed(x, stack, np.array([2, 5]), layer=2, implementation=implementation)
        assert_product(mixed[0], x[0], weights[2][2])
        assert_product(mixed[1], x[1], weights[5][2])


class TestDispatch:
    @needs_native
    def test_default_is_native_for_few_rows_on_cpu_and_xla_elsewhere(self):
        array, _ = example(np.random.default_rng(0), 8, 64)

        def lowered(rows, platform, implementation=None):
            f = jax.jit(lambda x, array: matmul(x, array, precision=4, implementation=implementation))
            return f.trace(normal(rows, 64), array).lower(lowering_platforms=(platform,)).as_text()

        assert cpu.TARGET in lowered(1, "cpu")
        assert cpu.TARGET in lowered(MAX_DECODE_ROWS, "cpu")
        assert "anyprec_dequantize" in lowered(64, "cpu", "cpu")
        assert cpu.TARGET not in lowered(MAX_DECODE_ROWS + 1, "cpu")
        assert "anyprec_dequantize" in lowered(MAX_DECODE_ROWS + 1, "cpu")
        assert cpu.TARGET not in lowered(1, "cpu", "xla")
        assert cpu.TARGET not in lowered(1, "tpu")
        assert cpu.TARGET not in lowered(1, "cuda")

    @needs_native
    @pytest.mark.parametrize("has_unit", [True, False])
    def test_many_rows_go_through_a_matrix_unit_where_there_is_one(self, monkeypatch, has_unit):
        monkeypatch.setattr(cpu, "has_matrix_unit", lambda: has_unit)
        rows, k = MAX_DECODE_ROWS + 1, MIN_MATRIX_UNIT_COLUMNS
        arrays = {width: example(np.random.default_rng(0), 8, width).array for width in (k - 1, k)}
        jax.clear_caches()  # the answer is asked for while tracing

        def uses_unit(rows, k, **options):
            f = jax.jit(lambda x, array: matmul(x, array, precision=4, **options))
            lowered = f.lower(normal(rows, k), arrays[k]).as_text()
            assert ("anyprec_prefill" in lowered) + ("anyprec_dequantize" in lowered) + (cpu.TARGET in lowered) == 1
            return "anyprec_prefill" in lowered

        try:
            assert uses_unit(rows, k) == has_unit
            assert uses_unit(rows, k, isa="avx512") == has_unit
            assert not uses_unit(rows - 1, k)
            assert not uses_unit(rows, k - 1)
            for options in ({"isa": "avx2"}, {"isa": "portable"}, {"arithmetic": "exact"}, {"arithmetic": "int16"}):
                assert not uses_unit(rows, k, **options)
        finally:
            jax.clear_caches()

    @needs_native
    def test_vmap_counts_as_rows(self):
        array, _ = example(np.random.default_rng(0), 8, 64)

        def lowered(size):
            f = jax.jit(jax.vmap(lambda x: matmul(x, array, precision=4)))
            return f.lower(normal(size, 64)).as_text()

        assert cpu.TARGET in lowered(MAX_DECODE_ROWS)
        assert cpu.TARGET not in lowered(MAX_DECODE_ROWS + 1)

    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.bfloat16])
    def test_default_takes_every_float(self, dtype):
        array, _ = example(np.random.default_rng(0), 8, 64)
        product = matmul(normal(2, 64, dtype=dtype), array, precision=4)
        assert product.dtype == dtype and product.shape == (2, 8)
        assert np.isfinite(np.asarray(product, np.float32)).all()

    def test_without_the_library(self, monkeypatch, tmp_path):
        monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "absent.so")
        array, weights = example(np.random.default_rng(0), 8, 64)
        x = normal(2, 64)
        assert "absent.so does not exist" in (cpu.why_unavailable() or "")
        assert_product(matmul(x, array, precision=4), x, weights[4])
        with pytest.raises(RuntimeError, match=r"implementation 'cpu' is not available: .*absent\.so does not exist"):
            matmul(x, array, precision=4, implementation="cpu")

    def test_with_a_broken_library(self, monkeypatch, tmp_path):
        (tmp_path / "broken.so").write_bytes(b"not a library")
        monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "broken.so")
        assert "broken.so cannot be used" in (cpu.why_unavailable() or "")

    @needs_native
    def test_a_loop_over_layers_copies_no_planes(self):
        """The claim behind `layer`: what a scan needs besides its operands is far less than one matrix."""
        stack, _ = example(np.random.default_rng(0), 64, 512, layers=4)

        def loop(x, stack):
            def step(hidden, layer):
                product = matmul(hidden, stack, precision=8, layer=layer)
                return jnp.tile(product, (1, 8)), None

            return jax.lax.scan(step, x, jnp.arange(4))[0]

        compiled = jax.jit(loop).lower(normal(1, 512), stack).compile()
        one_matrix_bytes = stack.bitplanes[0].nbytes
        assert compiled.memory_analysis().temp_size_in_bytes < one_matrix_bytes / 2


class TestBadInput:
    array, _ = example(np.random.default_rng(0), 4, 40, seed=3, parent=6)
    stack, _ = example(np.random.default_rng(0), 4, 40, layers=2, seed=3, parent=6)

    @every_implementation
    @pytest.mark.parametrize("precision", [2, 7, 0, -1, True])
    def test_precision(self, implementation, precision):
        with pytest.raises(ValueError, match=rf"precision must be .* got {precision}$"):
            matmul(normal(1, 40), self.array, precision=precision, implementation=implementation)

    @every_implementation
    def test_k(self, implementation):
        with pytest.raises(ValueError, match=r"40.*\(2, 41\)"):
            matmul(normal(2, 41), self.array, precision=3, implementation=implementation)

    @every_implementation
    def test_dtype(self, implementation):
        with pytest.raises(ValueError, match=r"floating point, got int32"):
            matmul(jnp.ones((1, 40), jnp.int32), self.array, precision=3, implementation=implementation)

    def test_names(self):
        unchecked = inspect.unwrap(matmul)  # without the checks of annotations that the test suite switches on
        for options in ({"implementation": "cuda"}, {"arithmetic": "int4"}, {"isa": "z80"}):
            ((name, value),) = options.items()
            with pytest.raises((ValueError, TypeError), match=rf"{name}.*'{value}'"):
                unchecked(normal(1, 40), self.array, precision=3, **options)
        with pytest.raises(ValueError, match="those of implementation 'cpu', but implementation is 'xla'"):
            matmul(normal(1, 40), self.array, precision=3, implementation="xla", arithmetic="int8")

    def test_mixed(self):
        x = normal(2, 40)
        with pytest.raises(ValueError, match=r"one per row of x .*, got int64 \(3,\) for x \(2, 40\)"):
            matmul_mixed(x, self.array, np.array([3, 4, 5]))
        with pytest.raises(ValueError, match=r"precision must be one of 3, 4, 5, 6, .* got 7"):
            matmul_mixed(x, self.array, np.array([3, 7]))

    @needs_native
    def test_mixed_at_run_time(self):
        f = jax.jit(lambda x, precisions: matmul_mixed(x, self.array, precisions, implementation="cpu"))
        with pytest.raises(FAILURE, match="row 1 asks for precision 7, for which there is no codebook"):
            jax.block_until_ready(f(normal(2, 40), jnp.array([3, 7])))

    @needs_native
    def test_dtype_of_the_native_one(self):
        with pytest.raises(ValueError, match=r"float32 or bfloat16, got float16"):
            matmul(normal(1, 40, dtype=jnp.float16), self.array, precision=3, implementation="cpu")

    def test_layer(self):
        with pytest.raises(ValueError, match=r"shape \(2, 4, 40\) is a stack"):
            matmul(normal(1, 40), self.stack, precision=3)
        with pytest.raises(ValueError, match=r"for a stack.*shape \(4, 40\)"):
            matmul(normal(1, 40), self.array, precision=3, layer=0)
        for layer in (-1, 2):
            with pytest.raises(ValueError, match=rf"layer must be in \[0, 2\), got {layer}"):
                matmul(normal(1, 40), self.stack, precision=3, layer=layer)
