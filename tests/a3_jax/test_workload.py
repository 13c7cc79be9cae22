"""What a workload may be."""

import numpy as np
import pytest

from a3_jax.cost.workload import Workload


def test_numbers_and_arrays():
    averages = Workload(n=320, M=160, C=65.6, K=15.7)
    assert averages.num_queries == 1
    assert averages.is_constant
    measured = Workload(n=320, M=160, C=np.array([60, 70]), K=np.array([3, 3]), origin="measured")
    assert measured.num_queries == 2
    assert not measured.is_constant
    assert Workload(n=320, K=np.array([3, 3])).is_constant
    assert Workload(n=320, queries=7).num_queries == 7
    np.testing.assert_array_equal(measured.counts("C"), [60, 70])
    np.testing.assert_array_equal(measured.counts("n"), [320])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"n": 0}, "n should be finite and at least 1"),
        ({"n": float("nan")}, "n should be finite"),
        ({"n": 10, "M": -1}, "M should be finite and at least 0"),
        ({"n": 10, "C": np.array([3, -1])}, "C should be finite and at least 0"),
        ({"n": 10, "C": 11}, "C should be at most n"),
        ({"n": 10, "C": 4, "K": 5}, "K should be at most C"),
        ({"n": 10, "K": 11}, "K should be at most n"),
        ({"n": 10, "C": np.array([4, 4]), "K": np.array([4, 5])}, "K should be at most C"),
        ({"n": 10, "C": np.array([1, 2]), "K": np.array([1])}, "one entry a query, got lengths"),
        ({"n": 10, "C": np.array([1, 2]), "queries": 3}, "one entry a query, got lengths"),
        ({"n": 10, "queries": 0}, "queries should be at least 1"),
        ({"n": 10, "queries_per_key": 0}, "queries_per_key should be at least 1"),
        ({"n": np.array([], np.int64)}, "n should be finite"),
    ],
)
def test_what_is_no_workload_is_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        Workload(**fields)


def test_counts_that_are_missing_are_asked_for():
    with pytest.raises(ValueError, match="needs K: give M, C and K"):
        Workload(n=10, M=3, C=2).counts("K")
