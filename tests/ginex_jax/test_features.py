"""The contract of `read_rows`, on the store in memory."""

import threading

import numpy as np
import pytest

from ginex_jax.features import ArrayFeatures, FeatureStore

MATRIX = np.arange(35, dtype=np.float32).reshape(7, 5)


@pytest.fixture
def store():
    return ArrayFeatures(MATRIX.copy())


def test_rows_in_order_and_repeated(store):
    assert isinstance(store, FeatureStore)
    ids = np.array([6, 0, 0, 3])
    np.testing.assert_array_equal(store.read_rows(ids), MATRIX[[6, 0, 0, 3]])
    assert store.read_rows(np.empty(0, np.int64)).shape == (0, 5)
    assert (store.stats.rows, store.stats.bytes) == (4, 80)


def test_out_and_slots(store):
    out = np.full((4, 5), -1, np.float32)
    assert store.read_rows(np.array([2, 5]), out=out) is out
    np.testing.assert_array_equal(out, [MATRIX[2], MATRIX[5], [-1] * 5, [-1] * 5])
    out[:] = -1
    assert store.read_rows(np.array([2, 5]), out=out, slots=np.array([3, 0], np.int32)) is out
    np.testing.assert_array_equal(out, [MATRIX[5], [-1] * 5, [-1] * 5, MATRIX[2]])


@pytest.mark.parametrize(
    ("ids", "options", "complaint"),
    [
        ([7], {}, r"node ids should be in \[0, 7\), got 7 at 0"),
        ([0, -1], {}, "got -1 at 1"),
        ([0], {"slots": np.array([0])}, "no out was given"),
        ([0, 1], {"out": np.zeros((1, 5), np.float32)}, "out has 1 rows, and 2 are read"),
        ([0], {"out": np.zeros((1, 4), np.float32)}, r"out should be float32 \[places, 5\]"),
        ([0], {"out": np.zeros((1, 5))}, "got float64"),
        ([0], {"out": np.zeros((1, 5), np.float32), "slots": np.array([1])}, r"slots should be in \[0, 1\)"),
    ],
)
def test_refusals(store, ids, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        store.read_rows(np.array(ids), **options)


def test_counts_of_several_threads_add_up(store):
    threads = [threading.Thread(target=lambda: [store.read_rows(np.arange(7)) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.stats.rows == 4 * 200 * 7
