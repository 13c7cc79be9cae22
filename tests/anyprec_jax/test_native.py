"""The native CPU operation: it was built, it keeps its promises beyond the contract, bad buffers cannot crash it."""

import concurrent.futures
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.layout import prepare
from anyprec_jax.ops import cpu, matmul, matmul_mixed
from tests.anyprec_jax.oracles_matmul import (
    BFLOAT16_ROUNDING,
    RELATIVE_ERRORS,
    assert_close_product,
    assert_product,
    example,
    normal,
    relative_error,
    with_outliers,
)

# What JAX makes of an invalid argument, depending on whether the call runs in the calling thread.
FAILURE = (ValueError, jax.errors.JaxRuntimeError)

needs_native = pytest.mark.skipif(cpu.why_unavailable() is not None, reason=f"{cpu.why_unavailable()}")
needs_matrix_unit = pytest.mark.skipif(not cpu.has_matrix_unit(), reason="no matrix unit here that can be used")


def test_a_compiler_means_a_native_operation():
    """Or else the build broke, and nobody would notice but by the speed."""
    compiler = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        pytest.skip("no C++ compiler here")
    assert cpu.why_unavailable() is None, f"{compiler} exists, but: {cpu.why_unavailable()}"


def native(x, array, **kwargs):
    return matmul(x, array, implementation="cpu", **kwargs)


FLAGS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512vbmi", "avx512_vnni"},
}


def runs_here(isa: str) -> bool:
    """Whether /proc/cpuinfo, where there is one, says so: independent of the library's own question."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and set(cpuinfo.read_text().split()) >= FLAGS[isa]


def kernel(isa: str, *more: str):
    return pytest.param(isa, *more, marks=pytest.mark.skipif(not runs_here(isa), reason=f"no {isa} here"))


every_isa = pytest.mark.parametrize("isa", [kernel(isa) for isa in FLAGS])
# The portable kernel computes every arithmetic exactly.
every_kernel = pytest.mark.parametrize(
    ("isa", "arithmetic"),
    [kernel("portable", "exact"), *(kernel(isa, a) for isa in ("avx2", "avx512") for a in ("exact", "int16", "int8"))],
)


@needs_native
@every_kernel
class TestEveryShape:
    """The contract's own tests, with every implementation, are in test_matmul.py; here every kernel and pair of sizes."""

    def product(self, x, array, *, precision, isa, arithmetic):
        codebook = array.codebooks[precision][None]
        options = {"precision": precision, "isa": isa, "arithmetic": arithmetic}
        natural = cpu.matmul(x, array.bitplanes[None], codebook, jnp.int32(0), **options)
        prepared = cpu.matmul(x, prepare(array).planes[None], codebook, jnp.int32(0), **options)
        np.testing.assert_array_equal(natural, prepared)
        return natural

    @pytest.mark.parametrize("precision", range(1, 9))
    @pytest.mark.parametrize("k", [1, 33, 576, 1056, 2080])
    def test_equals_oracle(self, isa, arithmetic, precision, k):
        x = with_outliers(2, k, seed=k)
        array, weights = example(np.random.default_rng(k), 1 if k == 33 else 21, k, seed=precision)
        product = self.product(x, array, precision=precision, isa=isa, arithmetic=arithmetic)
        assert_close_product(product, x, weights[precision], arithmetic=arithmetic)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_every_number_of_rows(self, isa, arithmetic, dtype):
        array, weights = example(np.random.default_rng(0), 37, 159)
        for rows in (*range(1, 18), 40):
            x = normal(rows, 159, dtype=dtype, seed=rows)
            product = self.product(x, array, precision=4, isa=isa, arithmetic=arithmetic)
            assert_close_product(product, x, weights[4], arithmetic=arithmetic)

    def test_infinities_and_nans(self, isa, arithmetic):
        array, _ = example(np.random.default_rng(0), 5, 576)
        x = normal(3, 576).at[0, 300].set(jnp.nan).at[1, 300].set(jnp.inf)
        product = np.asarray(self.product(x, array, precision=3, isa=isa, arithmetic=arithmetic))
        assert np.isnan(product[0]).all() and np.isinf(product[1]).all() and np.isfinite(product[2]).all()

    def test_zeros_and_tiny_activations(self, isa, arithmetic):
        array, weights = example(np.random.default_rng(0), 33, 576)
        np.testing.assert_array_equal(
            self.product(jnp.zeros((1, 576)), array, precision=3, isa=isa, arithmetic=arithmetic), np.zeros((1, 33))
        )
        x = normal(1, 576) * 1e-25
        product = self.product(x, array, precision=3, isa=isa, arithmetic=arithmetic)
        assert_close_product(product, x, weights[3], arithmetic=arithmetic)

    def test_a_row_does_not_depend_on_the_others(self, isa, arithmetic):
        array, _ = example(np.random.default_rng(0), 300, 1100, seed=3)
        x = normal(17, 1100)
        options = {"isa": isa, "arithmetic": arithmetic}
        for precision in (3, 8):
            alone = jnp.concatenate([self.product(row[None], array, precision=precision, **options) for row in x])
            for rows in (17, 5, 16):
                together = self.product(x[:rows], array, precision=precision, **options)
                np.testing.assert_array_equal(together, alone[:rows])

    def test_mixed_precisions_are_bit_identical_to_each_alone(self, isa, arithmetic):
        array, _ = example(np.random.default_rng(0), 70, 576, layers=2, seed=2)
        for rows, dtype in ((1, jnp.float32), (7, jnp.bfloat16), (20, jnp.float32)):
            x = normal(rows, 576, dtype=dtype)
            precisions = np.random.default_rng(rows).integers(2, 9, rows)
            options = {"layer": 1, "isa": isa, "arithmetic": arithmetic}
            mixed = [matmul_mixed(x, layout, precisions, **options) for layout in (array, prepare(array))]
            alone = [matmul(x[i], array, precision=int(precisions[i]), **options) for i in range(rows)]
            np.testing.assert_array_equal(mixed[0], jnp.stack(alone))
            np.testing.assert_array_equal(mixed[1], mixed[0])


@needs_native
@every_isa
class TestAffine:
    @pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 5, 31), (2, 33, 64), (3, 40, 577), (17, 12, 2048)])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_equals_oracle(self, isa, m, n, k, dtype):
        rng = np.random.default_rng(k)
        codes = rng.integers(0, 256, (n, k), dtype=np.uint8)
        scale = rng.uniform(0.5, 2, n).astype(np.float32)
        offset = (-128 * scale + rng.standard_normal(n)).astype(np.float32)
        weights = scale.astype(np.float64)[:, None] * codes + offset.astype(np.float64)[:, None]
        x = with_outliers(m, k, dtype=dtype)
        product = cpu.affine_matmul(x, jnp.asarray(codes), jnp.asarray(scale), jnp.asarray(offset), isa=isa)
        assert product.dtype == dtype
        norms = np.linalg.norm(np.asarray(x, np.float64), axis=-1)[:, None] * np.linalg.norm(weights, axis=-1)
        allowed = RELATIVE_ERRORS["int16"] + (BFLOAT16_ROUNDING if dtype == jnp.bfloat16 else 0)
        error = np.abs(np.asarray(product, np.float64) - np.asarray(x, np.float64) @ weights.T)
        assert np.all(error <= allowed * norms)

    def test_bad_buffers(self, isa):
        """Past the shape checks that the test suite switches on."""
        call = jax.ffi.ffi_call("anyprec_affine_matmul", jax.ShapeDtypeStruct((1, 5), jnp.float32))
        codes, ones = jnp.zeros((5, 40), jnp.uint8), jnp.ones(5)
        with pytest.raises(FAILURE, match=r"x must be \[m, 40\], got \[1, 41\]"):
            jax.block_until_ready(call(jnp.ones((1, 41)), codes, ones, ones, isa=isa))
        with pytest.raises(FAILURE, match=r"scale and offset must be \[5\], got \[5\] and \[4\]"):
            jax.block_until_ready(call(jnp.ones((1, 40)), codes, ones, jnp.ones(4), isa=isa))


@needs_native
class TestDequantize:
    @pytest.mark.parametrize("precision", range(1, 9))
    def test_equals_oracle(self, precision):
        for n, k in ((1, 1), (3, 33), (70, 577)):
            array, weights = example(np.random.default_rng(k), n, k, layers=2)
            for planes in (array.bitplanes, prepare(array).planes):
                dense = cpu.dequantize(planes, array.codebooks[precision], jnp.int32(1), k=k, precision=precision)
                np.testing.assert_array_equal(dense, weights[precision][1].astype(np.float32))


@needs_native
class TestMatrixUnit:
    def prefill(self, x, array, *, precision, layer=0):
        codebook = array.codebooks[precision]
        natural, prepared = (
            cpu.prefill(x, planes, codebook, jnp.int32(layer), precision=precision)
            for planes in (array.bitplanes, prepare(array).planes)
        )
        np.testing.assert_array_equal(natural, prepared)
        return natural

    def test_it_is_what_the_processor_has(self):
        if cpu.has_matrix_unit():
            assert set(Path("/proc/cpuinfo").read_text().split()) >= FLAGS["avx512"] | {"amx_tile", "amx_bf16"}
        else:
            call = jax.ffi.ffi_call("anyprec_prefill", jax.ShapeDtypeStruct((1, 5), jnp.float32))
            operands = jnp.zeros((1, 40)), jnp.zeros((2, 4, 5, 2), jnp.uint32), jnp.zeros((2, 5, 8), jnp.float16)
            with pytest.raises(FAILURE, match="this processor has no matrix unit"):
                jax.block_until_ready(call(*operands, jnp.int32(0), precision=np.int64(3)))

    @needs_matrix_unit
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("precision", range(1, 9))
    def test_equals_oracle(self, precision, dtype):
        for rows, n, k in ((17, 1, 128), (33, 70, 577), (48, 64, 1056), (530, 21, 512)):
            array, weights = example(np.random.default_rng(k), n, k, layers=2, seed=precision, parent=precision)
            x = with_outliers(rows, k, dtype=dtype, seed=k)
            product = self.prefill(x, array, precision=precision, layer=1)
            assert_close_product(product, x, weights[precision][1], arithmetic="bfloat16")

    @needs_matrix_unit
    def test_a_row_does_not_depend_on_the_others(self):
        array, _ = example(np.random.default_rng(0), 300, 1100, layers=1, seed=3, parent=3)
        x = normal(70, 1100)
        together = self.prefill(x, array, precision=3)
        for first, last in ((0, 1), (1, 17), (17, 70)):
            np.testing.assert_array_equal(self.prefill(x[first:last], array, precision=3), together[first:last])

    @needs_matrix_unit
    def test_infinities_and_nans(self):
        array, _ = example(np.random.default_rng(0), 5, 576, layers=1)
        x = normal(20, 576)
        product = np.asarray(self.prefill(x.at[3, 300].set(jnp.nan).at[18, 300].set(jnp.inf), array, precision=3))
        others = np.setdiff1d(np.arange(20), [3, 18])
        assert np.isnan(product[3]).all() and not np.isfinite(product[18]).any()
        np.testing.assert_array_equal(product[others], self.prefill(x, array, precision=3)[others])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": (2, 65)}, r"\[5, 65\] needs bitplanes \[layers, parent, 5, 3\], got \[2, 4, 5, 2\]"),
            ({"dtype": jnp.float16}, r"x must be float32 or bfloat16, got F16"),
            ({"result": (2, 6)}, r"result must be \[2, 5\], got \[2, 6\]"),
            ({"codebook": (2, 5, 16)}, r"codebook \[2, 5, 8\], got \[2, 5, 16\]"),
            ({"precision": 9}, r"precision must be from 1 to 8, got 9"),
            ({"layer": 2}, r"layer must be in \[0, 2\), got 2"),
        ],
        ids=str,
    )
    def test_bad_buffers(self, change, message):
        given = {
            "x": (2, 40),
            "result": (2, 5),
            "dtype": jnp.float32,
            "codebook": (2, 5, 8),
            "layer": 0,
            "precision": 3,
        }
        given |= change
        call = jax.ffi.ffi_call("anyprec_prefill", jax.ShapeDtypeStruct(given["result"], given["dtype"]))
        operands = jnp.zeros(given["x"], given["dtype"]), jnp.zeros((2, 4, 5, 2), jnp.uint32)
        codebook, layer = jnp.zeros(given["codebook"], jnp.float16), jnp.int32(given["layer"])
        with pytest.raises(FAILURE, match=message):
            jax.block_until_ready(call(*operands, codebook, layer, precision=np.int64(given["precision"])))


@needs_native
class TestPromises:
    def test_a_stack_is_bit_identical_to_its_layers(self):
        stack, _ = example(np.random.default_rng(0), 33, 70, layers=3)
        x = normal(2, 70)
        for layer in range(3):
            alone = jax.tree.map(lambda leaf: leaf[layer], stack)  # noqa: B023
            for precision in (2, 7):
                np.testing.assert_array_equal(
                    native(x, stack, precision=precision, layer=layer), native(x, alone, precision=precision)
                )

    def test_calls_from_many_threads(self):
        array, _ = example(np.random.default_rng(0), 512, 512, seed=4, parent=4)
        xs = list(normal(32, 1, 512))
        wanted = [native(x, array, precision=4) for x in xs]
        with concurrent.futures.ThreadPoolExecutor(8) as executor:
            actual = list(executor.map(lambda x: native(x, array, precision=4), xs))
        np.testing.assert_array_equal(jnp.stack(actual), jnp.stack(wanted))

    def test_every_float16(self):
        """One column, one row for every finite float16: the value comes back exactly, whichever thread has the row.

        Subnormals are the trap: XLA's threads flush subnormal floats to zero, and real codebooks hold subnormal
        float16.
        """
        every = np.arange(2**16, dtype=np.uint16).view(np.float16)
        every = every[np.isfinite(every)]
        array = AnyPrecArray(
            bitplanes=jnp.ones((1, every.size, 1), jnp.uint32),
            codebooks={1: jnp.asarray(np.stack([np.zeros_like(every), every], axis=1))},
            seed_precision=1,
            parent_precision=1,
            k=1,
        )
        np.testing.assert_array_equal(native(jnp.ones((1, 1)), array, precision=1)[0], every.astype(np.float32))

    @pytest.mark.parametrize("precision", range(1, 9))
    def test_subnormal_codebooks(self, precision):
        rng = np.random.default_rng(0)
        array, _ = example(rng, 256, 1056, seed=precision, parent=precision)
        codebook = rng.integers(0, 0x400, array.codebooks[precision].shape, dtype=np.uint16).view(np.float16)
        tiny = AnyPrecArray(array.bitplanes, {precision: jnp.asarray(codebook)}, precision, precision, 1056)
        codes = np.zeros((256, 1056), np.int64)
        for plane in np.asarray(array.bitplanes):
            bits = (plane[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1
            codes = 2 * codes + bits.reshape(256, -1)[:, :1056]
        x = normal(1, 1056)
        weights = np.take_along_axis(codebook.astype(np.float64), codes, axis=1)
        assert_product(native(x, tiny, precision=precision, arithmetic="exact"), x, weights)
        assert relative_error(native(x, tiny, precision=precision), x, weights) <= RELATIVE_ERRORS["int16"]

    def test_bfloat16_is_the_float32_result_rounded_to_nearest_even(self):
        array, _ = example(np.random.default_rng(0), 4096, 64, seed=5, parent=5)
        x = normal(3, 64, dtype=jnp.bfloat16)
        wanted = native(x.astype(jnp.float32), array, precision=5).astype(jnp.bfloat16)
        np.testing.assert_array_equal(native(x, array, precision=5), wanted)

    def test_bfloat16_ties(self):
        """1 + 2**-8 lies half way between two bfloat16 numbers, 1 + 3 * 2**-8 too: one goes down, one up."""
        entries = np.array([[1 + 2.0**-8, 1 + 3 * 2.0**-8]], np.float16)
        array = AnyPrecArray(jnp.zeros((1, 1, 1), jnp.uint32), {1: jnp.asarray(entries)}, 1, 1, 1)
        flipped = AnyPrecArray(jnp.ones((1, 1, 1), jnp.uint32), {1: jnp.asarray(entries)}, 1, 1, 1)
        x = jnp.ones((1, 1), jnp.bfloat16)
        assert float(native(x, array, precision=1)[0, 0]) == 1.0
        assert float(native(x, flipped, precision=1)[0, 0]) == 1 + 2.0**-6


@needs_native
class TestBadBuffers:
    """Straight to the handler, past every check in Python: an exception that names the values, never a crash."""

    def call(self, *, x=(2, 40), x_dtype=jnp.float32, planes=(2, 4, 5, 2), planes_dtype=jnp.uint32, codebook=(2, 5, 8),
             codebook_dtype=jnp.float16, layer=0, result=(2, 5), result_dtype=jnp.float32, precision=3, isa="",
             arithmetic="int16"):  # fmt: skip
        call = jax.ffi.ffi_call(cpu.TARGET, jax.ShapeDtypeStruct(result, result_dtype))
        operands = jnp.zeros(x, x_dtype), jnp.zeros(planes, planes_dtype), jnp.zeros(codebook, codebook_dtype)
        attributes = {"precision": np.int64(precision), "isa": isa, "arithmetic": arithmetic}
        return jax.block_until_ready(call(*operands, jnp.asarray(layer, jnp.int32), **attributes))

    def test_good_buffers_are_accepted(self):
        np.testing.assert_array_equal(self.call(), np.zeros((2, 5)))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": (40,)}, r"x must be \[m, k\], got \[40\]"),
            ({"x": (2, 65)}, r"\[5, 65\] needs bitplanes \[layers, parent, 5, 3\], got \[2, 4, 5, 2\]"),
            ({"x": (2, 32)}, r"\[5, 32\] needs bitplanes \[layers, parent, 5, 1\]"),
            ({"x_dtype": jnp.float16, "result_dtype": jnp.float16}, r"x must be float32 or bfloat16, got F16"),
            ({"result_dtype": jnp.bfloat16}, r"dtype of x, F32, got BF16"),
            ({"result": (2, 6)}, r"result must be \[2, 5\], got \[2, 6\]"),
            ({"planes": (5, 2)}, r"bitplanes must be \[layers, parent, n, words\] or .*, got \[5, 2\]"),
            ({"planes": (2, 4, 9)}, r"needs planes of at least 10 words, got \[2, 4, 9\]"),
            ({"planes": (2, 2, 5, 2)}, r"precision 3 needs as many bitplanes, got 2"),
            ({"planes_dtype": jnp.int32}, r"dtype: expected U32 but got S32"),
            ({"codebook": (2, 5, 16)}, r"codebook \[2, 5, 8\], got \[2, 5, 16\]"),
            ({"codebook": (5, 8)}, r"result must be|codebook \[2, 5, 8\], got \[5, 8\]"),
            ({"codebook_dtype": jnp.float32}, r"dtype: expected F16 but got F32"),
            ({"precision": 0}, r"precision must be from 1 to 8, got 0"),
            ({"precision": 9, "codebook": (2, 5, 512)}, r"precision must be from 1 to 8, got 9"),
            ({"precision": -(2**62)}, r"precision must be from 1 to 8"),
            ({"arithmetic": "int4"}, r"arithmetic must be exact, int16 or int8, got 'int4'"),
            ({"isa": "z80"}, r"isa 'z80' is unknown or not supported by this processor"),
            ({"layer": 2}, r"layer must be in \[0, 2\), got 2"),
            ({"layer": -1}, r"layer must be in \[0, 2\), got -1"),
            ({"layer": [0, 1]}, r"rank: expected 0 but got 1"),
        ],
        ids=str,
    )
    def test_bad_buffers(self, change, message):
        with pytest.raises(FAILURE, match=message):
            self.call(**change)

    def test_empty_buffers(self):
        assert self.call(x=(0, 40), result=(0, 5)).shape == (0, 5)
        assert self.call(planes=(2, 4, 0, 2), codebook=(2, 0, 8), result=(2, 0)).shape == (2, 0)

    def test_layer_outside_the_stack_at_run_time(self):
        stack, _ = example(np.random.default_rng(0), 4, 40, layers=2)
        f = jax.jit(lambda x, layer: native(x, stack, precision=3, layer=layer))
        with pytest.raises(FAILURE, match=r"layer must be in \[0, 2\), got 5"):
            jax.block_until_ready(f(jnp.ones((1, 40)), jnp.int32(5)))


@needs_native
class TestAttention:
    def wanted(self, query, keys, values, layer, lengths):
        """softmax(query . key) value in float64, one head after the other."""
        query, keys, values = (np.asarray(a, np.float64) for a in (query, keys, values))
        out = np.zeros_like(query)
        group = query.shape[1] // keys.shape[2]
        for b, h in np.ndindex(*query.shape[:2]):
            scores = query[b, h] @ keys[layer, b, h // group][:, : lengths[b]]
            weights = np.exp(scores - scores.max())
            out[b, h] = weights / weights.sum() @ values[layer, b, h // group][: lengths[b]]
        return out

    @pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "room"), [(1, 1, 1, 1), (9, 3, 64, 64), (4, 2, 80, 257)])
    def test_equals_oracle(self, heads, kv_heads, head_dim, room):
        query = normal(3, heads, head_dim) * 3
        keys, values = normal(2, 3, kv_heads, head_dim, room, seed=1), normal(2, 3, kv_heads, room, head_dim, seed=2)
        for lengths in ([1, 1, 1], [room, max(1, room // 2), max(1, room - 1)]):
            attended = cpu.attention(query, keys, values, jnp.int32(1), jnp.asarray(lengths, jnp.int32))
            wanted = self.wanted(query, keys, values, 1, lengths)
            # Scores are sums of head_dim products of normal numbers; their errors are relative errors of the weights.
            scale = 3 * head_dim * np.abs(np.asarray(query)).max() * 2.0**-24 * 4
            np.testing.assert_allclose(attended, wanted, rtol=0, atol=scale * np.abs(np.asarray(values)).max())

    def test_positions_beyond_the_length_are_never_read(self):
        query, keys, values = normal(1, 2, 16), normal(1, 1, 2, 16, 40, seed=1), normal(1, 1, 2, 40, 16, seed=2)
        poisoned = keys.at[..., 30:].set(jnp.nan), values.at[..., 30:, :].set(jnp.nan)
        length = jnp.array([30], jnp.int32)
        np.testing.assert_array_equal(
            cpu.attention(query, *poisoned, jnp.int32(0), length),
            cpu.attention(query, keys, values, jnp.int32(0), length),
        )

    def test_nan_and_far_scores(self):
        keys, values = jnp.zeros((1, 1, 1, 2, 12)), jnp.ones((1, 1, 1, 12, 2))
        length = jnp.array([12], jnp.int32)
        far = cpu.attention(jnp.array([[[1e4, 0.0]]]), keys.at[..., 0, 3].set(1e4), values, jnp.int32(0), length)
        np.testing.assert_array_equal(far, np.ones((1, 1, 2)))
        nan = cpu.attention(jnp.array([[[jnp.nan, 0.0]]]), keys, values, jnp.int32(0), length)
        assert np.isnan(nan).all()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"keys": (1, 1, 2, 16)}, r"keys must be \[layers, batch, kv_heads, head_dim, room\], got \[1, 1, 2, 16\]"),
            ({"values": (1, 1, 2, 16, 40)}, r"values with the last two axes exchanged, got \[1, 1, 2, 16, 40\]"),
            ({"query": (1, 3, 16)}, r"multiple of kv_heads, head_dim\], got \[1, 3, 16\]"),
            ({"layer": 1}, r"layer must be in \[0, 1\), got 1"),
            ({"length": 41}, r"lengths must be in \[1, 40\], got 41"),
            ({"length": 0}, r"lengths must be in \[1, 40\], got 0"),
        ],
        ids=str,
    )
    def test_bad_buffers(self, change, message):
        given = {"query": (1, 4, 16), "keys": (1, 1, 2, 16, 40), "values": (1, 1, 2, 40, 16), "layer": 0, "length": 3}
        given |= change
        call = jax.ffi.ffi_call("anyprec_attention", jax.ShapeDtypeStruct(given["query"], jnp.float32))
        operands = (jnp.zeros(given[name]) for name in ("query", "keys", "values"))
        with pytest.raises(FAILURE, match=message):
            jax.block_until_ready(call(*operands, jnp.int32(given["layer"]), jnp.array([given["length"]], jnp.int32)))
