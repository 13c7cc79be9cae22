"""Attention over selected rows, against float64 arithmetic over the rows that an independent search selects."""

import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.attention.approximate import Fallback, Info, approx_attention, check_fallback
from a3_jax.attention.batched import approx_dot_product_attention
from a3_jax.attention.exact import exact_attention
from a3_jax.attention.validation import check_shapes, validate
from a3_jax.sorted_keys import sort_keys
from tests.a3_jax.selection_oracles import greedy_oracle

CASES, ROWS, DIM, VALUE_DIM, LIMIT = 300, 7, 3, 2, 24
FALLBACKS = get_args(Fallback)
# The compiler's optimizations take most of the time here.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
# Rounding of a float32 result of sums of at most ROWS terms of size 1 to 4.
TOLERANCE = 4 * ROWS * np.finfo(np.float32).eps


@functools.cache
def cases() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    mask = rng.random((CASES, ROWS)) < 0.7
    mask[:40], mask[-1] = True, False
    key = rng.normal(size=(CASES, ROWS, DIM))
    key[100:160] = -np.abs(key[100:160])
    query = rng.normal(size=(CASES, DIM))
    query[100:160] = np.abs(query[100:160])  # all products are negative: no candidates
    return {
        "query": query.astype(np.float32),
        "key": key.astype(np.float32),
        "value": rng.normal(size=(CASES, ROWS, VALUE_DIM)).astype(np.float32),
        "mask": mask,
        "count": rng.integers(1, LIMIT, CASES).astype(np.int32),
        "percent": rng.choice([1, 5, 20], CASES).astype(np.float32),
    }


def attention_oracle(case: dict[str, Any], fallback: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Output, candidates, kept, log of the sum of exponentials."""
    key, mask, query = case["key"], case["mask"], case["query"] * np.float32(0.5)
    greedy, first_row = greedy_oracle(query, key, int(case["count"]), mask=mask)
    candidates = greedy > 0
    if not candidates.any() and mask.any():
        best = int(np.argmax(np.where(mask, greedy, -np.inf)))
        rows = {"all": mask, "argmax": np.arange(ROWS) == best, "largest_product": np.arange(ROWS) == first_row}
        candidates = rows[fallback]
    scores = key.astype(np.float64) @ query.astype(np.float64)
    kept = candidates.copy()
    if kept.any():
        kept &= 100 * np.exp(scores - scores[candidates].max()) >= case["percent"]
    weights = np.where(kept, np.exp(scores), 0)
    if not kept.any():
        return np.zeros(VALUE_DIM), candidates, kept, -np.inf
    return weights @ case["value"] / weights.sum(), candidates, kept, float(np.log(weights.sum()))


def attend(fallback: str, query: Any, key: Any, value: Any, mask: Any, count: Any, percent: Any) -> Any:
    return approx_attention(
        query,
        key,
        value,
        sort_keys(key),
        num_iterations=count,
        max_iterations=LIMIT,
        threshold_percent=percent,
        scale=0.5,
        mask=mask,
        fallback=fallback,  # type: ignore[arg-type]
    )


@functools.cache
def attended() -> dict[str, tuple[jax.Array, Info]]:
    """By fallback, compiled as one function: the search is the same."""

    def attend_all(*arguments: Any) -> dict[str, Any]:
        return {fallback: attend(fallback, *arguments) for fallback in FALLBACKS}

    return quick_jit(jax.vmap(attend_all))(*ordered())


@pytest.mark.parametrize("fallback", FALLBACKS)
def test_oracle(fallback: str) -> None:
    output, info = attended()[fallback]
    info = jax.tree.map(np.asarray, info)
    for index in range(CASES):
        case = {name: array[index] for name, array in cases().items()}
        want, candidates, kept, lse = attention_oracle(case, fallback)
        np.testing.assert_array_equal(info.candidates[index], candidates)
        np.testing.assert_array_equal(info.kept[index], kept)
        np.testing.assert_allclose(output[index], want, atol=TOLERANCE)
        np.testing.assert_allclose(info.lse[index], lse, atol=TOLERANCE)
    counts = [np.asarray(array) for array in (info.M, info.C, info.K)]
    np.testing.assert_array_equal(counts[0], np.minimum(cases()["count"], cases()["mask"].sum(1) * DIM))
    np.testing.assert_array_equal(counts[1], np.asarray(info.candidates).sum(1))
    np.testing.assert_array_equal(counts[2], np.asarray(info.kept).sum(1))
    assert (counts[2] <= counts[1]).all()


def ordered() -> list[np.ndarray]:
    return [cases()[name] for name in ("query", "key", "value", "mask", "count", "percent")]


def test_everything_off_is_exact_attention() -> None:
    query, key, value, mask, _, _ = ordered()
    output, info = jax.jit(jax.vmap(lambda q, k, v, m: approx_attention(q, k, v, None, mask=m)))(
        query, key, value, mask
    )
    exact = jax.jit(jax.vmap(lambda q, k, v, m: exact_attention(q, k, v, mask=m)))(query, key, value, mask)
    np.testing.assert_array_equal(output, exact)
    scores = np.einsum("qnd,qd->qn", key.astype(np.float64), query.astype(np.float64))
    weights = np.where(mask, np.exp(scores), 0)
    want = np.einsum("qn,qnd->qd", weights, value) / np.maximum(weights.sum(1), 1e-9)[:, None]
    np.testing.assert_allclose(exact, want, atol=TOLERANCE)
    assert not np.asarray(info.M).any()
    np.testing.assert_array_equal(info.kept, mask)


def test_gradients_hold_the_selection_fixed_and_are_finite_without_rows() -> None:
    query, key, value, mask, count, percent = ordered()
    _, info = attended()["all"]

    def loss(selects: bool, query: Any, key: Any, value: Any, mask: Any, kept: Any, count: Any, percent: Any) -> Any:
        if selects:
            output, one = attend("all", query, key, value, mask, count, percent)
            return output.sum() + jnp.where(one.K > 0, one.lse, 0)
        scores = jnp.where(kept, key @ (0.5 * query), -1e30)
        output = jnp.where(kept.any(), jax.nn.softmax(scores) @ value, 0)
        return output.sum() + jnp.where(kept.any(), jax.nn.logsumexp(scores), 0)

    arguments = (query, key, value, mask, info.kept, count, percent)
    through, plain = (
        quick_jit(jax.vmap(jax.grad(functools.partial(loss, selects), argnums=(0, 1, 2))))(*arguments)
        for selects in (True, False)
    )
    assert not mask[-1].any()
    for found, want in zip(through, plain, strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, want, atol=10 * TOLERANCE)
        assert not np.asarray(found)[-1].any()


def test_searches_need_sorted_keys_and_a_known_fallback() -> None:
    query, key, value = (jnp.asarray(array[0]) for array in ordered()[:3])
    with pytest.raises(ValueError, match="sorted_keys: wanted those"):
        approx_attention(query, key, value, None, num_iterations=3)
    with pytest.raises(ValueError, match="wanted one of largest_product, argmax, all, got 'none'"):
        check_fallback("none")


def test_what_does_not_fit_is_refused() -> None:
    """Indices are clamped and axes of 1 stretched: without these checks all but the first would give some output."""
    query, key, value = jnp.ones(3), jnp.ones((5, 3)), jnp.ones((5, 2))
    wrong: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((jnp.ones(4), key, value), {}, r"got \[4\], \[5, 3\], \[5, 2\]"),
        ((jnp.ones((2, 3)), key, value), {}, "batches are jax.vmap"),
        ((query, key, jnp.ones((1, 2))), {}, r"got \[3\], \[5, 3\], \[1, 2\]"),
        ((query, key, value), {"sorted_keys": sort_keys(jnp.ones((5, 4)))}, r"\[3, 5\], got \[4, 5\]"),
        ((query, key, value), {"mask": jnp.ones(1, bool)}, r"mask: wanted bool \[5\], got bool \[1\]"),
        ((query, key, value), {"mask": jnp.ones(5)}, "got float32"),
    ]
    check_shapes(query, key, value, sorted_keys=sort_keys(key), mask=jnp.ones(5, bool))
    for arguments, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            check_shapes(*arguments, **options)
    with pytest.raises(ValueError, match="sorted_keys: wanted those"):
        approx_attention(query, key, value, sort_keys(key[:4]), num_iterations=3)


class TestBatches:
    B, T, S, N, K, H, D = 2, 5, 6, 4, 2, 3, 2

    def arrays(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        rng = np.random.default_rng(5)
        shapes = (self.B, self.T, self.N, self.H), (self.B, self.S, self.K, self.H), (self.B, self.S, self.K, self.D)
        query, key, value = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
        return query, key, value

    @pytest.mark.parametrize(("is_causal", "mask_shape"), [(False, None), (True, (2, 1, 5, 6))])
    def test_selection_off_is_what_jax_computes(self, is_causal: bool, mask_shape: tuple[int, ...] | None) -> None:
        query, key, value = self.arrays()
        value = jnp.concatenate([value, value[..., :1]], -1)  # JAX wants values of the size of keys
        mask = None
        if mask_shape is not None:
            mask = jnp.asarray(np.random.default_rng(6).random(mask_shape) < 0.8).at[..., 0].set(True)
        output, info = quick_jit(functools.partial(approx_dot_product_attention, is_causal=is_causal, chunk_size=3))(
            query, key, value, mask=mask
        )
        want = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=is_causal)
        np.testing.assert_allclose(output, want, atol=4 * TOLERANCE)
        assert info.candidates.shape == (self.B, self.T, self.N, self.S)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_narrow_floats(self, dtype: Any) -> None:
        """Against the formula in float64. Inside a loop XLA on a CPU has no product of many queries in bfloat16."""
        rng = np.random.default_rng(8)
        query, key, value = (jnp.asarray(4 * rng.normal(size=(1, 40, 2, 80)), dtype) for _ in range(3))
        output, info = quick_jit(approx_dot_product_attention)(query, key, value)
        wide = [np.asarray(array, np.float64) for array in (query, key, value)]
        weights = np.exp(np.einsum("btnh,bsnh->btns", *wide[:2]) / np.sqrt(80))
        want = np.einsum("btns,bsnh->btnh", weights / weights.sum(-1, keepdims=True), wide[2])
        # The scale is no narrow float: only the output is rounded to one.
        np.testing.assert_allclose(info.lse, np.log(weights.sum(-1)), rtol=1e-5)
        bound = float(jnp.finfo(dtype).eps) * np.maximum(np.abs(want), 1)
        assert output.dtype == dtype and (np.abs(np.asarray(output, np.float64) - want) <= bound).all()

    def test_no_query(self) -> None:
        query, key, value = self.arrays()
        assert approx_dot_product_attention(query[:, :0], key, value)[0].shape == (self.B, 0, self.N, self.D)

    def test_every_query_is_one_query(self) -> None:
        query, key, value = self.arrays()
        mask = jnp.asarray(np.random.default_rng(7).random((1, self.N, self.T, self.S)) < 0.8)
        options: dict[str, Any] = {"num_iterations": 0.5, "threshold_percent": 5.0}
        output, info = quick_jit(
            lambda q, k, v, m: approx_dot_product_attention(q, k, v, mask=m, is_causal=True, chunk_size=4, **options)
        )(query, key, value, mask)

        @quick_jit
        def one(query: Any, key: Any, value: Any, mask: Any) -> tuple[Any, Info]:
            return approx_attention(query, key, value, sort_keys(key), mask=mask, scale=3**-0.5, **options)

        for b, t, n in np.ndindex(self.B, self.T, self.N):
            head = n // (self.N // self.K)
            seen = mask[0, n, t] & (jnp.arange(self.S) <= t)
            want, want_info = one(query[b, t, n], key[b, :, head], value[b, :, head], seen)
            np.testing.assert_allclose(output[b, t, n], want, atol=TOLERANCE)
            np.testing.assert_array_equal(info.kept[b, t, n], want_info.kept)
            assert info.M[b, t, n] == want_info.M == (max(1, -(-int(seen.sum()) // 2)) if seen.any() else 0)

    def test_shapes_that_do_not_fit(self) -> None:
        query, key, value = self.arrays()
        with pytest.raises(ValueError, match="K a divisor of N"):
            approx_dot_product_attention(query[:, :, :3], key, value)
        with pytest.raises(ValueError, match=r"mask: wanted \[2, 4, 5, 6\] with 1 for any of them, got \[2, 3, 5, 6\]"):
            approx_dot_product_attention(query, key, value, mask=jnp.ones((2, 3, 5, 6), bool))
        for empty in (key[:, :, :0], key[:, :0]):
            with pytest.raises(ValueError, match="S, K, H and D not 0"):
                approx_dot_product_attention(query, empty, empty)
        with pytest.raises(ValueError, match="chunk_size: wanted at least 1 query, got 0"):
            approx_dot_product_attention(query, key, value, chunk_size=0)


class TestValidate:
    QUERY, KEY, VALUE = np.zeros((9, 3)), np.zeros((5, 3)), np.zeros((5, 2))

    def test_what_fits(self) -> None:
        validate(self.QUERY, self.KEY, self.VALUE, mask=np.ones((9, 5), bool))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"query": np.zeros((9, 4))}, "equal last axes, got 4 and 3"),
            ({"value": np.zeros((6, 2))}, "as many rows, got 5 and 6"),
            ({"key": np.zeros((0, 3))}, r"none of the last 2 empty, got \[0, 3\]"),
            ({"key": np.full((5, 3), np.nan)}, r"key: wanted finite numbers, got nan at \[0, 0\]"),
            ({"value": np.array([[1, 2]] * 4 + [[0, np.inf]])}, r"value: wanted finite numbers, got inf at \[4, 1\]"),
            ({"mask": np.ones(4, bool)}, r"mask: wanted bool \[..., 5\], got bool \[4\]"),
            ({"mask": np.ones(5)}, "got float64"),
            ({"key": np.zeros((5, 3), complex)}, "key: wanted floats or integers, got complex128"),
            ({"value": np.full((5, 2), "a")}, "value: wanted floats or integers, got <U1"),
        ],
    )
    def test_what_does_not(self, changes: dict[str, np.ndarray], message: str) -> None:
        arguments = {"query": self.QUERY, "key": self.KEY, "value": self.VALUE, **changes}
        with pytest.raises(ValueError, match=message):
            validate(**arguments)
