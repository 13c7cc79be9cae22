"""The compiled search of whole heads, against the paper's pseudo-code with heaps."""

from fractions import Fraction

import numpy as np
import pytest

from a3_jax.workloads.host_search import iterations_of, search_heads
from tests.a3_jax.selection_oracles import greedy_oracle


def oracle(
    query: np.ndarray, key: np.ndarray, num_iterations: int, skips: bool, mask: np.ndarray | None = None
) -> np.ndarray:
    scores, first_row = greedy_oracle(query, key, num_iterations, mask=mask, skip_heuristic=skips)
    candidates = scores > 0
    if not candidates.any():
        candidates[first_row] = True
    return candidates


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("kind", ["floats", "integers with many ties"])
def test_candidates_are_those_of_the_pseudo_code(kind: str, skips: bool) -> None:
    rng = np.random.default_rng(5)
    none_found = 0
    for trial in range(120):
        n, d = rng.integers(1, 9), rng.integers(1, 7)
        num_iterations = int(rng.integers(1, n * d + 1))
        if kind == "floats":
            query, key = (rng.normal(size=(2, size, d)).astype(np.float32) for size in (3, n))
        else:
            query, key = (rng.integers(-2, 3, size=(2, size, d)).astype(np.int32) for size in (3, n))
        if trial % 6 == 0:
            query, key = abs(query), -abs(key)  # no product is above 0
        found = search_heads(query, key, num_iterations=num_iterations, skip_heuristic=skips)
        for head in range(2):
            for number in range(3):
                expected = oracle(query[head, number], key[head], num_iterations, skips)
                np.testing.assert_array_equal(found[head, number], expected)
                none_found += trial % 6 == 0
    assert none_found


@pytest.mark.parametrize("kind", ["floats", "integers with many ties"])
def test_rows_outside_a_query_s_range_are_masked(kind: str) -> None:
    rng = np.random.default_rng(6)
    for trial in range(60):
        n, d, num_queries = rng.integers(1, 12), rng.integers(1, 7), 4
        if kind == "floats":
            query, key = (rng.normal(size=(1, size, d)).astype(np.float32) for size in (num_queries, n))
        else:
            query, key = (rng.integers(-2, 3, size=(1, size, d)).astype(np.int32) for size in (num_queries, n))
        if trial % 6 == 0:
            query, key = abs(query), -abs(key)
        first = rng.integers(0, n, num_queries)
        ranges = np.stack([first, rng.integers(first + 1, n + 1)], axis=1).astype(np.int32)
        iterations = rng.integers(1, (ranges[:, 1] - ranges[:, 0]) * d + 1).astype(np.int32)
        found = search_heads(query, key, num_iterations=iterations, ranges=ranges)
        for number, (start, stop) in enumerate(ranges):
            mask = (np.arange(n) >= start) & (np.arange(n) < stop)
            expected = oracle(query[0, number], key[0], int(iterations[number]), True, mask)
            np.testing.assert_array_equal(found[0, number], expected)


def test_iterations() -> None:
    assert [iterations_of(0.5, num_rows=n, num_columns=4) for n in (1, 2, 3, 300)] == [1, 1, 2, 150]
    assert iterations_of(0.07, num_rows=100, num_columns=4) == 7  # 0.07 of 100 is 7, although the float 0.07 is above
    assert iterations_of(5.0, num_rows=3, num_columns=4) == 12
    assert iterations_of(7, num_rows=300, num_columns=4) == 7
    assert Fraction(1, 8) * 293 <= iterations_of(0.125, num_rows=293, num_columns=4) < Fraction(1, 8) * 293 + 1


@pytest.mark.parametrize("share", [0, -1, 0.0, float("inf"), float("nan")])
def test_iterations_that_there_are_not(share: float) -> None:
    with pytest.raises(ValueError, match="M: wanted"):
        iterations_of(share, num_rows=3, num_columns=4)


def test_what_is_refused() -> None:
    floats = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(ValueError, match="both float32 or both int32"):
        search_heads(floats, floats.astype(np.int32), num_iterations=1)
    with pytest.raises(ValueError, match="1 to n d = 6, got 7"):
        search_heads(floats, floats, num_iterations=7)
    with pytest.raises(ValueError, match="1 to n d = 3, got 4"):
        search_heads(floats, floats, num_iterations=4, ranges=np.array([[0, 2], [1, 2]], np.int32))
    for wrong in ([0, 0], [-1, 1], [1, 3]):
        with pytest.raises(ValueError, match="ranges: wanted at least one row of 2"):
            search_heads(floats, floats, num_iterations=1, ranges=np.array([[0, 2], wrong], np.int32))
