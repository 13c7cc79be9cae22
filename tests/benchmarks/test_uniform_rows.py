"""Uniform grids: rounding and GPTQ against their definitions, column by column and by trying every code."""

import itertools

import numpy as np
import pytest

from benchmarks.uniform_rows import Grids, bits_per_weight, feedback, gptq, rounded, searched_grids, spanning_grids


def problem(n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [n, k] and the second moment [k, k] of correlated inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((4 * k, k)) @ rng.standard_normal((k, k))
    return rng.standard_normal((n, k)).astype(np.float32), (inputs.T @ inputs / len(inputs)).astype(np.float32)


def points_of(grids: Grids, row: int) -> np.ndarray:
    return grids.low[row] + grids.step[row] * np.arange(2**grids.precision)


def nearest(points: np.ndarray, weight: float) -> float:
    return points[np.argmin(np.abs(points - weight))]


def objective(error: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Of every row: e H e'."""
    return np.einsum("nk,kl,nl->n", error.astype(np.float64), moment.astype(np.float64), error.astype(np.float64))


def damped_moment(moment: np.ndarray) -> np.ndarray:
    wide = moment.astype(np.float64)
    return wide + 0.01 * np.trace(wide) / len(wide) * np.eye(len(wide))


def slow_gptq(row: np.ndarray, moment: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Each column to the point nearest to where it would be if it and all that follow were free, given the errors made so far."""
    h = damped_moment(moment)
    order = sorted(range(len(row)), key=lambda c: -moment[c, c])
    result, done = np.empty(len(row)), []
    for position, column in enumerate(order):
        free = order[position:]
        made = np.array([row[c] - result[c] for c in done])
        error = -np.linalg.solve(h[np.ix_(free, free)], h[np.ix_(free, done)] @ made)[0] if done else 0.0
        result[column] = nearest(points, row[column] - error)
        done.append(column)
    return result


def test_a_grid_spans_its_row() -> None:
    weights, _ = problem(5, 40, seed=0)
    grids = spanning_grids(weights, 4)
    for row, values in enumerate(weights):
        points = points_of(grids, row)
        # Both numbers are rounded to float16, the step 15 times over.
        slack = 2**-11 * (abs(values.min()) + values.max() - values.min())
        assert abs(points[0] - values.min()) <= slack
        assert abs(points[-1] - values.max()) <= 2 * slack


def test_rounding_takes_the_nearest_point() -> None:
    weights, _ = problem(3, 30, seed=1)
    grids = searched_grids(weights, 3)
    expected = [[nearest(points_of(grids, row), weight) for weight in values] for row, values in enumerate(weights)]
    np.testing.assert_allclose(rounded(weights, grids), expected, rtol=2**-23)


def test_a_searched_grid_is_the_best_of_those_that_were_tried() -> None:
    weights, _ = problem(6, 50, seed=2)
    weights[0, 0] = 30.0  # an outlier that is worth clipping
    found, spanning = searched_grids(weights, 3), spanning_grids(weights, 3)
    for row, values in enumerate(weights.astype(np.float64)):
        errors = []
        for clip in np.linspace(1.0, 0.4, 21):
            low, high = clip * values.min(), clip * values.max()
            points = float(np.float16(low)) + float(np.float16((high - low) / 7)) * np.arange(8)
            errors.append(sum((weight - nearest(points, weight)) ** 2 for weight in values))
        error = sum((weight - nearest(points_of(found, row), weight)) ** 2 for weight in values)
        assert error == pytest.approx(min(errors), rel=1e-9)
    assert found.step[0] < spanning.step[0]


@pytest.mark.parametrize("k", [1, 2, 9, 24])
def test_gptq_is_its_definition(k: int) -> None:
    weights, moment = problem(4, k, seed=k)
    grids = searched_grids(weights, 3)
    expected = [slow_gptq(row, moment, points_of(grids, r)) for r, row in enumerate(weights.astype(np.float64))]
    np.testing.assert_allclose(gptq(weights, grids, feedback(moment)), expected, rtol=2**-23)


def test_gptq_between_rounding_and_the_best_codes_there_are() -> None:
    """Every code of four columns is tried."""
    by_gptq, by_rounding, least = 0.0, 0.0, 0.0
    for seed in range(20):
        weights, moment = problem(1, 4, seed)
        h = damped_moment(moment)
        grids = spanning_grids(weights, 2)
        every = np.array(list(itertools.product(points_of(grids, 0), repeat=4)))
        least_here = objective(weights - every, h).min()
        here = objective(weights - gptq(weights, grids, feedback(moment)), h)[0]
        assert here >= least_here * (1 - 1e-6)
        by_gptq, least = by_gptq + here, least + least_here
        by_rounding += objective(weights - rounded(weights, grids), h)[0]
    assert least < by_gptq < 0.8 * by_rounding


def test_without_correlations_gptq_rounds() -> None:
    weights, _ = problem(4, 20, seed=3)
    grids = spanning_grids(weights, 3)
    diagonal = np.diag(np.linspace(1, 2, 20, dtype=np.float32))
    np.testing.assert_array_equal(gptq(weights, grids, feedback(diagonal)), rounded(weights, grids))


def test_a_row_of_one_value() -> None:
    weights = np.full((1, 8), 0.25, np.float32)
    grids = spanning_grids(weights, 3)
    np.testing.assert_array_equal(rounded(weights, grids), weights)
    np.testing.assert_array_equal(gptq(weights, grids, feedback(np.eye(8, dtype=np.float32))), weights)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weights, moment = problem(3, 10, seed=4)
    moment[:, 4] = moment[4, :] = 0.0
    grids = spanning_grids(weights, 4)
    made = gptq(weights, grids, feedback(moment))
    np.testing.assert_array_equal(made[:, 4], rounded(weights, grids)[:, 4])


def test_bits() -> None:
    assert bits_per_weight(4, 128) == 4.25
