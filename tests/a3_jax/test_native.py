"""The native functions: they were built, they select what the JAX forms select, bad buffers cannot crash them."""

import functools
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax import (
    approx_attention,
    exact_attention,
    merge_attention,
    native_append_keys,
    native_attention,
    native_candidates,
    native_exact_attention,
    native_sort_keys,
    select_candidates,
    sort_keys,
    why_native_unavailable,
)
from a3_jax.native import library
from a3_jax.native.attention import Isa
from a3_jax.sorted_keys import SortedKeys

# What JAX makes of an invalid argument, depending on whether the call runs in the calling thread.
FAILURE = (ValueError, jax.errors.JaxRuntimeError)

needs_native = pytest.mark.skipif(why_native_unavailable() is not None, reason=f"{why_native_unavailable()}")
DTYPES = ("float32", "bfloat16")
KINDS = ("normal", "integers", "skewed")


def has_avx2() -> bool:
    """Whether /proc/cpuinfo, where there is one, says so: independent of the library's own question."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and set(cpuinfo.read_text().split()) >= {"avx2", "fma"}


ISAS: tuple[Isa, ...] = ("portable", "avx2") if has_avx2() else ("portable",)


def test_a_compiler_means_native_functions() -> None:
    """Or else the build broke, and nobody would notice."""
    compiler = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        pytest.skip("no C++ compiler here")
    assert why_native_unavailable() is None, f"{compiler} exists, but: {why_native_unavailable()}"


def test_a_missing_library_is_said_and_not_worked_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "a3_native.so")
    assert "reinstall" in (why_native_unavailable() or "")
    with pytest.raises(RuntimeError, match="does not exist: reinstall bandwise where a C"):
        native_sort_keys(jnp.ones((3, 2)))
    (tmp_path / "a3_native.so").write_bytes(b"no library")
    library._load.cache_clear()
    assert "cannot be used" in (why_native_unavailable() or "")
    library._load.cache_clear()


def example(kind: str, shape: tuple[int, ...], dtype: str, seed: int = 0) -> jax.Array:
    """Numbers with ties ("integers"), or with one column that leads all others ("skewed")."""
    rng = np.random.default_rng(seed)
    if kind == "integers":
        return jnp.asarray(rng.integers(-2, 3, shape), dtype)
    numbers = rng.standard_normal(shape)
    if kind == "skewed":
        numbers[..., -1] = 20 * np.abs(numbers[..., -1]) + 1
    return jnp.asarray(numbers, dtype)


@needs_native
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5000, 3), (300, 33)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sorted_keys_are_those_of_sort_keys(n: int, d: int, kind: str, dtype: str) -> None:
    key = example(kind, (n, d), dtype)
    for found, wanted in zip(native_sort_keys(key), sort_keys(key), strict=True):
        np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(wanted, np.float32))


@needs_native
def test_zeros_of_all_kinds_are_one_number_when_sorted() -> None:
    """0, -0 and what XLA flushes; their bits stay."""
    key = jnp.asarray([[0.0], [-0.0], [1e-40], [-1.0], [-1e-40], [jnp.inf], [1e-38], [0.0], [-1e-37]])
    found, wanted = native_sort_keys(key), sort_keys(key)
    np.testing.assert_array_equal(found.rows, wanted.rows)
    order = np.asarray(wanted.rows[0])
    np.testing.assert_array_equal(
        np.asarray(found.values).view(np.uint32)[0], np.asarray(key).view(np.uint32)[order, 0]
    )


@functools.partial(jax.jit, static_argnames="skip")
def threshold_form(queries: jax.Array, keys: SortedKeys, mask: jax.Array, count: jax.Array, *, skip: bool) -> jax.Array:
    def one(query: jax.Array) -> jax.Array:
        return select_candidates(
            query,
            keys,
            mask=mask,
            num_iterations=count,
            max_iterations=keys.rows.size,
            skip_heuristic=skip,
            implementation="threshold",
        )

    return jax.vmap(one)(queries)


@functools.partial(jax.jit, static_argnames=("skip", "isa"))
def native_form(
    queries: jax.Array, keys: SortedKeys, length: jax.Array, count: jax.Array, *, skip: bool, isa: Isa
) -> jax.Array:
    def one(query: jax.Array) -> jax.Array:
        return native_candidates(
            query,
            keys,
            length=length,
            num_iterations=count,
            max_iterations=keys.rows.size,
            skip_heuristic=skip,
            isa=isa,
        )

    return jax.vmap(one)(queries)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(7, 3), (900, 8)])
def test_candidates_are_those_of_the_threshold_form(n: int, d: int, kind: str, dtype: str) -> None:
    keys = sort_keys(example(kind, (n, d), dtype))
    queries = example(kind, (8, d), "float32", seed=1)
    for length, skip, count in itertools.product(
        (n, n // 2 + 1), (True, False), (1, n // 8 + 1, n // 2 + 1, 3 * n, n * d)
    ):
        # Entries of rows that are not there stand last, as `merge_runs` leaves them.
        there = np.argsort(np.asarray(keys.rows) >= length, axis=1, stable=True)
        filled = SortedKeys(*(jnp.take_along_axis(array, jnp.asarray(there), axis=1) for array in keys))
        wanted = np.asarray(threshold_form(queries, keys, jnp.arange(n) < length, jnp.int32(count), skip=skip))
        some = wanted.any(axis=1)
        for isa in ISAS:
            found = np.asarray(native_form(queries, filled, jnp.int32(length), jnp.int32(count), skip=skip, isa=isa))
            np.testing.assert_array_equal(found[some], wanted[some])
            assert (found[~some].sum(axis=1) == 1).all()


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_approx_attention(dtype: str) -> None:
    heads, group, n, d, dv = 2, 3, 400, 33, 136
    key, value = example("normal", (heads, n, d), dtype), example("normal", (heads, n, dv), dtype, seed=1)
    query = example("normal", (heads, group, d), "float32", seed=2)
    keys = jax.vmap(sort_keys)(key)
    settings = {"num_iterations": 0.125, "threshold_percent": 5.0, "scale": d**-0.5}

    def of_all(attend: Callable[..., Any]) -> Any:
        attend = functools.partial(attend, **settings)
        return jax.jit(jax.vmap(jax.vmap(attend, (0, None, None, None))))(query, key, value, keys)

    wanted, plain_info = of_all(functools.partial(approx_attention, implementation="threshold"))
    for isa in ISAS:
        found, info = of_all(functools.partial(native_attention, isa=isa))
        for name in ("M", "C", "K"):
            np.testing.assert_array_equal(getattr(info, name), getattr(plain_info, name))
        # Sums of d products, then of K values; bfloat16 is rounded once at the end.
        tolerance = 2e-5 if dtype == "float32" else 2**-7
        np.testing.assert_allclose(info.lse, plain_info.lse, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.astype("float32"), wanted.astype("float32"), rtol=tolerance, atol=tolerance)


def in_double(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[np.ndarray, float]:
    scores = np.asarray(key, np.float64) @ np.asarray(query, np.float64)
    weights = np.exp(scores - scores.max())
    return weights @ np.asarray(value, np.float64) / weights.sum(), float(np.log(weights.sum()) + scores.max())


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d", "dv"), [(1, 1, 1), (3, 7, 9), (1027, 72, 136)])
def test_exact_attention_is_that_of_doubles(n: int, d: int, dv: int, dtype: str, isa: Isa) -> None:
    key, value = example("normal", (n, d), dtype), example("normal", (n, dv), dtype, seed=1)
    queries = 3 * example("normal", (18, d), "float32", seed=2)
    outputs, lses = jax.vmap(lambda query: native_exact_attention(query, key, value, scale=0.25, isa=isa))(queries)
    for query, output, lse in zip(queries, outputs, lses, strict=True):
        wanted, wanted_lse = in_double(0.25 * query, key, value)
        tolerance = 1e-5 if dtype == "float32" else 2**-7
        np.testing.assert_allclose(output.astype("float32"), wanted, rtol=tolerance, atol=tolerance)
        assert float(lse) == pytest.approx(wanted_lse, rel=1e-5, abs=1e-5)


@needs_native
def test_ranges_of_rows_merge_into_all_of_them() -> None:
    key, value, query = (example("normal", shape, "float32", seed=3) for shape in ((200, 16), (200, 8), (16,)))
    parts = [
        native_exact_attention(query, key, value, first=first, last=last)
        for first, last in ((0, 3), (3, 150), (150, 200))
    ]
    merged, _ = merge_attention(jnp.stack([part[0] for part in parts]), jnp.stack([part[1] for part in parts]))
    np.testing.assert_allclose(merged, exact_attention(query, key, value), rtol=1e-5, atol=1e-6)
    empty, lse = native_exact_attention(query, key, value, first=7, last=7)
    assert not np.any(empty)
    assert lse == -jnp.inf


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_appended_keys_are_sorted_keys(kind: str, dtype: str) -> None:
    """Of two heads, from none to a full cache."""
    heads, d, capacity, step = 2, 17, 96, 32
    key = example(kind, (heads, capacity, d), dtype)
    empty = SortedKeys(jnp.zeros((heads, d, capacity), dtype), jnp.zeros((heads, d, capacity), jnp.int32))
    append = jax.jit(jax.vmap(native_append_keys, (0, 0, None)), donate_argnums=0)
    keys = empty
    for length in range(0, capacity, step):
        keys = append(keys, key[:, length : length + step], jnp.int32(length))
        for head in range(heads):
            rows = key[head, : length + step]
            for found, wanted in zip(keys, sort_keys(rows), strict=True):
                np.testing.assert_array_equal(
                    np.asarray(found[head, :, : length + step], np.float32), np.asarray(wanted, np.float32)
                )


@needs_native
def test_no_rows_give_zeros() -> None:
    key, value, query = jnp.ones((5, 3)), jnp.ones((5, 2)), jnp.ones(3)
    output, info = native_attention(query, key, value, sort_keys(key), num_iterations=4, length=0)
    assert not np.any(output)
    assert (int(info.C), int(info.K), float(info.lse)) == (0, 0, -np.inf)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_columns_out_of_order_cannot_crash(isa: Isa) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((16, 300)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = np.nan
    values[rng.random(values.shape) < 0.2] = -np.inf
    rows = jnp.asarray(rng.integers(0, 300, values.shape), jnp.int32)
    keys = SortedKeys(jnp.asarray(values), rows)
    for count in (1, 100, 4800):
        found = native_candidates(
            jnp.asarray(rng.standard_normal(16), jnp.float32), keys, num_iterations=count, isa=isa
        )
        assert 1 <= int(found.sum()) <= 300


@needs_native
@pytest.mark.parametrize("row", [-1, 4, 2**31 - 1])
def test_rows_out_of_range_are_an_error(row: int) -> None:
    key = jnp.ones((4, 2))
    keys = sort_keys(key)._replace(rows=jnp.full((2, 4), row, jnp.int32))
    with pytest.raises(FAILURE, match="row that is not in"):
        jax.block_until_ready(native_attention(jnp.ones(2), key, key, keys, num_iterations=4))


@needs_native
@pytest.mark.parametrize("length", [-1, 3])
def test_no_room_is_an_error(length: int) -> None:
    keys = SortedKeys(jnp.zeros((2, 4)), jnp.zeros((2, 4), jnp.int32))
    with pytest.raises(FAILURE, match=r"length must be in \[0, 2\]"):
        jax.block_until_ready(native_append_keys(keys, jnp.ones((2, 2)), length))


@needs_native
def test_what_does_not_fit_is_said() -> None:
    key, query = jnp.ones((4, 2)), jnp.ones(2)
    keys = sort_keys(key)
    with pytest.raises(ValueError, match="query: wanted"):
        native_candidates(jnp.ones(3), keys, num_iterations=1)
    with pytest.raises(ValueError, match="key: wanted float32 or bfloat16, got float16"):
        native_exact_attention(query, key.astype("float16"), key)
    with pytest.raises(ValueError, match="value: wanted float32 as the keys, got bfloat16"):
        native_exact_attention(query, key, key.astype("bfloat16"))
    with pytest.raises(ValueError, match=r"sorted_keys.values: wanted bfloat16 as the keys, got float32"):
        native_attention(query, key.astype("bfloat16"), key.astype("bfloat16"), keys, num_iterations=1)
    with pytest.raises(ValueError, match="key: wanted float32 .at most 4, 2., as sorted_keys say"):
        native_append_keys(keys, jnp.ones((1, 3)), 0)
    results = (jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32))
    zero = jnp.int32(0)
    with pytest.raises(FAILURE, match="isa 'best' is unknown"):
        jax.block_until_ready(library.call_native("a3_exact", results, query, key, key, zero, zero, isa="best"))
