"""Sorted runs against sorting all rows, after every row; runs and work against a list of runs in Python."""

import heapq
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.growing_keys import GrowingKeys, append_key, filled_rows, grow_keys, merge_runs, merge_work
from a3_jax.sorted_keys import SortedKeys

DIM, CAPACITY, RUN_LENGTH = 3, 21, 3  # 7 runs: no power of two


@jax.jit
def grown_by(keys: GrowingKeys, rows: jax.Array) -> tuple[GrowingKeys, tuple[GrowingKeys, SortedKeys]]:
    """After every row the runs and all of them as one."""

    def step(keys: GrowingKeys, row: jax.Array) -> tuple[GrowingKeys, tuple[GrowingKeys, SortedKeys]]:
        keys = append_key(keys, row)
        return keys, (keys, merge_runs(keys))

    return jax.lax.scan(step, keys, rows)


def many_ties(dtype: type) -> np.ndarray:
    rng = np.random.default_rng(0)
    key = rng.integers(-3, 4, (CAPACITY, DIM))
    if dtype is np.float32:
        key = np.where(rng.random(key.shape) < 0.3, -0.0, key / 2)
    else:
        key[::5] = np.iinfo(np.int32).max  # what stands where no row is yet
    return key.astype(dtype)


class RunsInPython:
    """Runs in lists, merged by `heapq.merge` while the last two are of equal length."""

    def __init__(self) -> None:
        self.runs: list[list[list[tuple[float, int]]]] = []
        self.written = 0

    def add(self, key: np.ndarray, first_row: int) -> None:
        self.push([sorted((float(value), first_row + place) for place, value in enumerate(column)) for column in key.T])
        while len(self.runs) > 1 and len(self.runs[-1][0]) == len(self.runs[-2][0]):
            newer, older = self.runs.pop(), self.runs.pop()
            self.push([list(heapq.merge(*columns)) for columns in zip(older, newer, strict=True)])

    def push(self, run: list[list[tuple[float, int]]]) -> None:
        self.runs.append(run)
        self.written += len(run[0])


def sorted_at_once(key: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and rows, with the largest value of the type in rows that are not there yet."""
    largest = np.inf if key.dtype == np.float32 else np.iinfo(np.int32).max
    filled = np.where(np.arange(CAPACITY)[:, None] < length, key, np.array(largest, key.dtype))
    order = np.argsort(filled, axis=0, kind="stable")
    return np.take_along_axis(filled, order, 0).T, order.T


def test_equals_sorting_all_rows_after_every_row() -> None:
    key = many_ties(np.float32)
    start = grow_keys(jnp.zeros((0, DIM)), capacity=CAPACITY, run_length=RUN_LENGTH)
    _, (every, merged) = jax.tree.map(np.asarray, grown_by(start, jnp.asarray(key)))
    in_python = RunsInPython()
    for length in range(1, CAPACITY + 1):
        values, rows = sorted_at_once(key, length)
        np.testing.assert_array_equal(merged.rows[length - 1], rows)
        np.testing.assert_array_equal(merged.values[length - 1], values)
        assert every.length[length - 1] == length
        if length % RUN_LENGTH == 0:
            in_python.add(key[length - RUN_LENGTH : length], length - RUN_LENGTH)
            runs = np.concatenate([np.array(run) for run in in_python.runs], axis=1)
            np.testing.assert_array_equal(every.values[length - 1][:, :length], runs[..., 0].astype(np.float32))
            np.testing.assert_array_equal(every.rows[length - 1][:, :length], runs[..., 1])
            assert len(in_python.runs) <= math.log2(length / RUN_LENGTH) + 1
            assert merge_work(length, run_length=RUN_LENGTH) == in_python.written


def test_integers_as_large_as_what_stands_for_no_row() -> None:
    key = many_ties(np.int32)
    length = 17  # runs of 12 and of 3 rows, and 2 rows pending
    keys = grow_keys(jnp.asarray(key[:length]), capacity=CAPACITY, run_length=RUN_LENGTH)
    merged = jax.jit(merge_runs)(keys)
    for array, wanted in zip(merged, sorted_at_once(key, length), strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_starting_with_rows_is_the_same_as_appending_them() -> None:
    key = many_ties(np.float32)
    empty = grow_keys(jnp.zeros((0, DIM)), capacity=CAPACITY, run_length=RUN_LENGTH)
    _, (every, _) = grown_by(empty, jnp.asarray(key))
    for length in (8, 17):
        started = grow_keys(jnp.asarray(key[:length]), capacity=CAPACITY, run_length=RUN_LENGTH)
        runs, pending = length // RUN_LENGTH * RUN_LENGTH, length % RUN_LENGTH
        np.testing.assert_array_equal(started.values[:, :runs], every.values[length - 1][:, :runs])
        np.testing.assert_array_equal(started.rows[:, :runs], every.rows[length - 1][:, :runs])
        np.testing.assert_array_equal(started.pending[:pending], every.pending[length - 1][:pending])
        assert started.length == length
        np.testing.assert_array_equal(filled_rows(started), np.arange(CAPACITY) < length)


def test_a_full_cache_stays_as_it_is() -> None:
    full = grow_keys(jnp.asarray(many_ties(np.float32)), capacity=CAPACITY, run_length=RUN_LENGTH)
    after, _ = grown_by(full, jnp.ones((CAPACITY, DIM)))
    jax.tree.map(np.testing.assert_array_equal, after, full)


AXES = GrowingKeys(0, 0, 0, None)


@jax.jit
def of_heads(keys: GrowingKeys, row: jax.Array) -> tuple[GrowingKeys, SortedKeys]:
    keys = jax.vmap(append_key, in_axes=(AXES, 0), out_axes=AXES)(keys, row)
    return keys, jax.vmap(merge_runs, (AXES,))(keys)


def test_heads_share_a_length() -> None:
    rng = np.random.default_rng(1)
    key = rng.normal(size=(2, 12, DIM)).astype(np.float32)
    start = grow_keys(jnp.zeros((0, DIM)), capacity=12, run_length=RUN_LENGTH)
    keys = GrowingKeys(*(jnp.stack([array] * 2) for array in start[:3]), start.length)
    for row in range(12):
        keys, merged = of_heads(keys, key[:, row])
    assert keys.length.shape == ()
    np.testing.assert_array_equal(merged.rows, np.argsort(key, axis=1, kind="stable").transpose(0, 2, 1))
    np.testing.assert_array_equal(merged.values, np.sort(key, axis=1).transpose(0, 2, 1))
    np.testing.assert_array_equal(filled_rows(keys), True)


def test_work_of_a_power_of_two() -> None:
    assert merge_work(1024, run_length=128) == 1024 * (1 + 3)
    assert merge_work(127) == 0


@pytest.mark.parametrize(
    ("rows", "capacity", "run_length", "message"),
    [(0, 10, 4, "multiple of the run length"), (9, 8, 4, "at least the 9 rows"), (0, 8, 0, "multiple of the run")],
)
def test_sizes_that_do_not_fit(rows: int, capacity: int, run_length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grow_keys(jnp.zeros((rows, DIM)), capacity=capacity, run_length=run_length)
