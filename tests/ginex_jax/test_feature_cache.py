"""The cache moves the rows that a step names, hits before writes."""

import ml_dtypes
import numpy as np
import pytest

from ginex_jax.belady.steps import CacheStep
from ginex_jax.gather.feature_cache import FeatureCache


def step(hits: list[int], writes: list[int]) -> CacheStep:
    return CacheStep(np.array(hits, np.int32), np.array(writes, np.int32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("width", [1, 3, 128])
def test_hits_are_fetched_before_slots_are_written(width: int, dtype: type) -> None:
    cache = FeatureCache(2, width, np.dtype(dtype))
    first = np.arange(3 * width).reshape(3, width).astype(dtype)
    cache.apply(step([-1, -1, -1], [1, -1, 0]), first.copy())
    rows = np.full((2, width), 7, dtype)
    cache.apply(step([-1, 0], [0, -1]), rows)  # slot 0 is read and then written
    np.testing.assert_array_equal(rows, np.stack([np.full(width, 7, dtype), first[2]]))
    rows = np.zeros((2, width), dtype)
    cache.apply(step([0, 1], [-1, -1]), rows)
    np.testing.assert_array_equal(rows, np.stack([np.full(width, 7, dtype), first[0]]))


def test_a_cache_of_nothing() -> None:
    cache = FeatureCache(0, 4, np.dtype(np.float32))
    rows = np.ones((2, 4), np.float32)
    cache.apply(step([-1, -1], [-1, -1]), rows)
    np.testing.assert_array_equal(rows, 1)


@pytest.mark.parametrize(
    ("hits", "writes", "rows", "complaint"),
    [
        ([-1], [-1, -1], np.zeros((2, 4), np.float32), "a slot for each of 2 rows, got 1"),
        ([-1, 2], [-1, -1], np.zeros((2, 4), np.float32), r"\[-1, 2\), got -1 to 2"),
        ([-1, -1], [-2, -1], np.zeros((2, 4), np.float32), "got -2"),
        ([-1, -1], [-1, -1], np.zeros((2, 5), np.float32), "contiguous"),
        ([-1, -1], [-1, -1], np.zeros((2, 4), np.float16), "contiguous"),
        ([-1, -1], [-1, -1], np.zeros((2, 8), np.float32)[:, ::2], "contiguous"),
    ],
)
def test_a_step_of_another_batch_is_refused(
    hits: list[int], writes: list[int], rows: np.ndarray, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        FeatureCache(2, 4, np.dtype(np.float32)).apply(step(hits, writes), rows)
