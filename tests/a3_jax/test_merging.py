"""Merged attention against attention over all rows at once, in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from a3_jax.attention.approximate import Info, approx_attention
from a3_jax.attention.exact import attend
from a3_jax.merging import merge_attention, window_rows, windowed_attention
from a3_jax.sorted_keys import sort_keys

NUM_ROWS, DIM, VALUE_DIM = 24, 6, 3


def softmax_average(scores: np.ndarray, kept: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, float]:
    if not kept.any():
        return np.zeros(value.shape[1]), -np.inf
    largest = scores[kept].max()
    weights = np.exp(scores[kept].astype(np.float64) - largest)
    return weights @ value[kept].astype(np.float64) / weights.sum(), float(np.log(weights.sum()) + largest)


@jax.jit
@jax.vmap
def in_parts(scores: jax.Array, part: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows of part 3 belong to nothing."""
    outputs, lses = jax.vmap(lambda number: attend(scores, part == number, value))(jnp.arange(3))
    return merge_attention(outputs, lses)


def test_parts_make_the_whole() -> None:
    rng = np.random.default_rng(0)
    cases = 1000
    scores = rng.normal(scale=rng.choice([1, 30], (cases, 1)), size=(cases, NUM_ROWS)).astype(np.float32)
    value = rng.normal(size=(cases, NUM_ROWS, VALUE_DIM)).astype(np.float32)
    part = rng.integers(0, 4, scores.shape)
    part[:10] = 3
    part[10:20] = rng.integers(2, 4, part[10:20].shape)
    output, lse = map(np.asarray, in_parts(scores, part, value))
    assert np.isfinite(output).all()
    for case in range(cases):
        wanted, wanted_lse = softmax_average(scores[case], part[case] < 3, value[case])
        # Exponents up to about 100 are rounded to float32, and n terms are added.
        np.testing.assert_allclose(output[case], wanted, rtol=0, atol=1e-4)
        np.testing.assert_allclose(lse[case], wanted_lse, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(output[:10], 0)
    np.testing.assert_array_equal(lse[:10], -np.inf)


def test_gradients_are_those_of_the_whole_and_finite_without_rows() -> None:
    rng = np.random.default_rng(1)
    scores, value = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, NUM_ROWS), (NUM_ROWS, 2)))
    part = jnp.stack([jnp.arange(NUM_ROWS) % 3, jnp.full(NUM_ROWS, 2), jnp.full(NUM_ROWS, 3)])

    def loss(scores: jax.Array, value: jax.Array) -> jax.Array:
        outputs, _ = in_parts(scores, part, jnp.stack([value] * 3))
        return jnp.sum(outputs**2)

    def whole(scores: jax.Array, value: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(scores[:2], axis=1)
        return jnp.sum((weights @ value) ** 2)

    gradients, wanted = (jax.grad(function, (0, 1))(scores, value) for function in (loss, whole))
    for gradient, one_wanted in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, one_wanted, rtol=1e-4, atol=1e-5)


@jax.jit
@jax.vmap
def windows(mask: jax.Array, window: jax.Array, sinks: jax.Array) -> jax.Array:
    return window_rows(mask, window=window, sinks=sinks)


def test_window_and_sinks_by_counting() -> None:
    rng = np.random.default_rng(2)
    mask = rng.random((500, 9)) < rng.choice([0, 0.5, 1], (500, 1))
    window, sinks = rng.integers(0, 12, (2, 500)).astype(np.int32)
    taken = np.asarray(windows(mask, window, sinks))
    for one_mask, one_window, one_sinks, one_taken in zip(mask, window, sinks, taken, strict=True):
        rows = np.flatnonzero(one_mask).tolist()
        wanted = set(rows[:one_sinks]) | set(rows[max(0, len(rows) - one_window) :])
        assert set(np.flatnonzero(one_taken).tolist()) == wanted


@jax.jit
@jax.vmap
def windowed(
    query: jax.Array, key: jax.Array, value: jax.Array, exact_rows: jax.Array, mask: jax.Array
) -> tuple[tuple[jax.Array, Info], Info]:
    settings = {"num_iterations": 0.5, "threshold_percent": 10, "scale": 0.5}
    keys = sort_keys(key)
    rest = approx_attention(query, key, value, keys, mask=mask & ~exact_rows, **settings)[1]
    return windowed_attention(query, key, value, keys, exact_rows=exact_rows, mask=mask, **settings), rest


class TestWindowed:
    def cases(self) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(3)
        shapes = ((300, DIM), (300, NUM_ROWS, DIM), (300, NUM_ROWS, VALUE_DIM))
        query, key, value = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
        exact_rows, mask = (rng.random((300, NUM_ROWS)) < share for share in (0.3, 0.8))
        exact_rows[:5], exact_rows[5:10], mask[10:15] = True, False, False
        return query, key, value, exact_rows, mask

    def test_every_row_counts_once(self) -> None:
        query, key, value, exact_rows, mask = self.cases()
        (output, info), rest = windowed(query, key, value, exact_rows, mask)
        kept = np.asarray(info.kept)
        np.testing.assert_array_equal(kept, np.asarray(rest.kept) | (exact_rows & mask))
        np.testing.assert_array_equal(info.candidates, np.asarray(rest.candidates) | (exact_rows & mask))
        np.testing.assert_array_equal(info.K, kept.sum(1))
        np.testing.assert_array_equal(info.C, np.asarray(info.candidates).sum(1))
        np.testing.assert_array_equal(info.M, rest.M)
        scores = np.einsum("bd,bnd->bn", 0.5 * query, key)
        for case in range(len(query)):
            wanted, lse = softmax_average(scores[case], kept[case], value[case])
            np.testing.assert_allclose(np.asarray(output)[case], wanted, rtol=0, atol=1e-5)
            np.testing.assert_allclose(np.asarray(info.lse)[case], lse, rtol=1e-5, atol=1e-5)

    def test_all_rows_in_the_window_is_exact(self) -> None:
        query, key, value, _, mask = self.cases()
        (output, info), _ = windowed(query, key, value, np.ones_like(mask), mask)
        np.testing.assert_array_equal(info.kept, mask)
        np.testing.assert_array_equal(info.M, 0)
        scores = np.einsum("bd,bnd->bn", 0.5 * query, key)
        for case in range(0, len(query), 7):
            wanted, _ = softmax_average(scores[case], mask[case], value[case])
            np.testing.assert_allclose(np.asarray(output)[case], wanted, rtol=0, atol=1e-5)
