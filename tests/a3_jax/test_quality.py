"""All metrics of a result at once, against NumPy in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.attention.approximate import approx_attention
from a3_jax.attention.quality import attention_quality
from a3_jax.sorted_keys import sort_keys


@pytest.mark.parametrize("is_masked", [False, True])
def test_quality_of_a_result(is_masked: bool) -> None:
    rng = np.random.default_rng(int(is_masked))
    queries, key, value = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 16), (40, 16), (40, 6)))
    mask = jnp.arange(40) < 30 if is_masked else None
    common = {"scale": 0.5, "mask": mask}

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def run(query, key, value):
        output, info = approx_attention(
            query, key, value, sort_keys(key), num_iterations=20, threshold_percent=40, **common
        )
        return output, info, attention_quality(query, key, value, output, info, top=3, **common)

    output, info, quality = jax.tree.map(np.asarray, run(queries, key, value))
    valid = np.ones(40, bool) if mask is None else np.asarray(mask)
    scores = np.where(valid, 0.5 * queries.astype(np.float64) @ key.T, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    exact = weights @ value
    largest = np.argsort(-scores, axis=1)[:, :3]
    assert (info.kept != info.candidates).any()
    np.testing.assert_allclose(quality.recall, np.take_along_axis(info.kept, largest, 1).mean(1), rtol=1e-6)
    np.testing.assert_allclose(quality.mass, (weights * info.kept).sum(1), rtol=1e-5)
    error = np.linalg.norm(output - exact, axis=1) / np.linalg.norm(exact, axis=1)
    np.testing.assert_allclose(quality.error, error, rtol=1e-4)
    assert quality.bytes_touched.tolist() == (12 * info.M + 2 * (16 * info.C + 6 * info.K)).tolist()
    assert quality.exact_bytes.tolist() == [2 * valid.sum() * 22] * 8
    assert (quality.bytes_touched < quality.exact_bytes).all() and (quality.mass < 1).any()


def test_nothing_is_lost_without_selection() -> None:
    rng = np.random.default_rng(5)
    query, key, value = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (16, (40, 16), (40, 6)))
    output, info = approx_attention(query, key, value, None)
    quality = attention_quality(query, key, value, output, info)
    assert float(quality.error) == 0 and float(quality.recall) == 1 and float(quality.mass) == pytest.approx(1)
    assert float(quality.bytes_touched) == float(quality.exact_bytes) == 2 * 40 * 22
