"""Steps of a layer against loops over heads, steps and rows, in float64, with the search of the paper's pseudo-code."""

import math

import numpy as np
import pytest

from a3_jax.workloads.decode_attention import StepSetting, attend_rows, attend_steps
from a3_jax.workloads.decode_inputs import StepInputs, check_steps, concentration
from a3_jax.workloads.encoder_attention import Setting
from tests.a3_jax.selection_oracles import greedy_oracle

HEADS, KV_HEADS, STEPS, ROWS, DIM = 4, 2, 3, 12, 6
EXACT = StepSetting(selection=Setting(name="exact"))


def random_inputs(seed: int = 0) -> StepInputs:
    rng = np.random.default_rng(seed)
    shapes = (HEADS, STEPS, DIM), (KV_HEADS, ROWS, DIM), (KV_HEADS, ROWS, DIM)
    return StepInputs(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def selected(query: np.ndarray, key: np.ndarray, seen: int, setting: StepSetting) -> tuple[int, set[int], set[int]]:
    """M, candidates and rows kept of one query, exact rows with them."""
    exact = {row for row in range(seen) if row < setting.sinks or row >= seen - setting.window}
    searched = [row for row in range(seen) if row not in exact]
    iterations, candidates = 0, set(searched)
    if (share := setting.selection.iterations) is not None:
        iterations = share if isinstance(share, int) else math.ceil(share * len(searched))
        mask = np.isin(np.arange(len(key)), searched)
        scores, first_row = greedy_oracle(query, key, iterations, mask=mask)
        candidates = set(np.flatnonzero(scores > 0).tolist()) or {first_row}
    dots = key.astype(np.float64) @ query
    kept = set(candidates)
    if (percent := setting.selection.threshold_percent) is not None:
        best = max(dots[row] for row in candidates)
        kept = {row for row in candidates if math.exp(dots[row] - best) >= percent / 100}
    return iterations, candidates | exact, kept | exact


@pytest.mark.parametrize("sinks", [0, 1, 3])
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize(("iterations", "percent"), [(None, None), (0.5, 20), (0.25, None), (3, 50), (None, 30)])
def test_every_query_is_that_of_the_loops(
    iterations: int | float | None, percent: int | None, window: int, sinks: int
) -> None:
    selection = Setting(name="", iterations=iterations, threshold_percent=percent)
    setting = StepSetting(selection=selection, sinks=sinks, window=window)
    inputs = random_inputs(sinks)
    result = attend_steps(inputs, setting, top=2)
    assert result.keys == KV_HEADS
    for head in range(HEADS):
        key, value = (array[head // (HEADS // KV_HEADS)] for array in inputs[1:])
        for step in range(STEPS):
            query, seen = inputs.query[head, step], ROWS - STEPS + step + 1
            m, candidates, kept = selected(query, key, seen, setting)
            counts = tuple(int(array[head, step]) for array in (result.n, result.M, result.C, result.K))
            assert counts == (seen, m, len(candidates), len(kept))
            weights = np.exp(key[:seen].astype(np.float64) @ query)
            rows = sorted(kept)
            output = weights[rows] @ value[rows] / weights[rows].sum()
            exact = weights @ value[:seen] / weights.sum()
            np.testing.assert_allclose(result.output[head, step], output, rtol=1e-4, atol=1e-5)
            error = np.linalg.norm(output - exact) / np.linalg.norm(exact)
            beyond = [row for row in rows if row]
            best = set(np.argsort(-weights)[:2].tolist())
            found = [getattr(result, name)[head, step] for name in ("mass", "mass_beyond_first", "recall", "error")]
            expected = [
                weights[rows].sum() / weights.sum(),
                weights[beyond].sum() / weights[1:].sum(),
                len(best & kept) / 2,
                error,
            ]
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_rows_after_a_step_are_not_seen() -> None:
    inputs = random_inputs()
    key, value = inputs.key.copy(), inputs.value.copy()
    key[:, -2:] *= -3
    value[:, -2:] = 100
    setting = StepSetting(selection=Setting(name="", iterations=0.5, threshold_percent=5))
    before, after = (attend_steps(each, setting) for each in (inputs, StepInputs(inputs.query, key, value)))
    np.testing.assert_array_equal(before.output[:, 0], after.output[:, 0])
    assert not np.array_equal(before.output[:, 1:], after.output[:, 1:])


def test_rows_that_somebody_selected() -> None:
    """Any rows, exact ones with them, are a softmax over their union; those that a step does not see do not count."""
    inputs, rng = random_inputs(7), np.random.default_rng(7)
    candidates = rng.random((HEADS, STEPS, ROWS)) < 0.4
    exact_rows = rng.random((STEPS, ROWS)) < 0.2
    result = attend_rows(inputs, candidates, exact_rows=exact_rows, iterations=np.array([1, 2, 3], np.int32))
    np.testing.assert_array_equal(result.M, [[1, 2, 3]] * HEADS)
    for head in range(HEADS):
        for step in range(STEPS):
            seen = ROWS - STEPS + step + 1
            rows = np.flatnonzero((candidates[head, step] | exact_rows[step])[:seen])
            weights = np.exp(inputs.key[head // 2, rows].astype(np.float64) @ inputs.query[head, step])
            output = weights @ inputs.value[head // 2, rows] / weights.sum()
            np.testing.assert_allclose(result.output[head, step], output, rtol=1e-4, atol=1e-5)
            assert result.C[head, step] == result.K[head, step] == len(rows)
    with pytest.raises(ValueError, match="candidates: wanted"):
        attend_rows(inputs, candidates[:, :2])


def test_concentration_is_that_of_a_loop() -> None:
    inputs = random_inputs(4)
    found = concentration(inputs, mass=0.8)
    for head in range(HEADS):
        for step in range(STEPS):
            seen = ROWS - STEPS + step + 1
            key = inputs.key[head // 2, :seen].astype(np.float64)
            weights = np.exp(key @ inputs.query[head, step])
            for rows, kept in ((found.rows, weights), (found.rows_beyond_first, weights[1:])):
                descending, total, count = sorted(kept, reverse=True), 0.0, 0
                while total < 0.8 * sum(kept):
                    total += descending[count]
                    count += 1
                assert rows[head, step] == count
            assert found.first[head, step] == pytest.approx(weights[0] / weights.sum(), rel=1e-5)


def test_a_text_of_one_row() -> None:
    inputs = StepInputs(np.ones((2, 1, 3), np.float32), np.ones((1, 1, 3), np.float32), np.ones((1, 1, 3), np.float32))
    result = attend_steps(inputs, StepSetting(selection=Setting(name="", iterations=0.5, threshold_percent=5)))
    np.testing.assert_array_equal(result.output, inputs.query)
    assert result.C.tolist() == result.K.tolist() == [[1], [1]]
    assert result.mass_beyond_first.tolist() == [[1], [1]]  # nothing there, and nothing lost
    found = concentration(inputs)
    assert (found.rows.tolist(), found.rows_beyond_first.tolist()) == ([[1], [1]], [[0], [0]])


def test_names() -> None:
    selection = Setting(name="conservative", iterations=0.5, threshold_percent=5)
    names = [StepSetting(selection=selection, sinks=s, window=w).name for s, w in ((0, 0), (1, 0), (4, 64))]
    assert names == [
        "conservative",
        "conservative, first row exact",
        "conservative, first 4 rows exact, last 64 rows exact",
    ]


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        (((4, 3), (2, 12, 5), (2, 12, 5)), r"queries: wanted \[heads, steps, d\]"),
        (((4, 0, 5), (2, 12, 5), (2, 12, 5)), "queries: wanted"),
        (((4, 3, 5), (2, 12, 4), (2, 12, 4)), "keys: wanted"),
        (((4, 3, 5), (2, 12, 5), (2, 11, 5)), "values: wanted"),
        (((3, 3, 5), (2, 12, 5), (2, 12, 5)), "multiple of the keys' 2 heads, got 3"),
        (((4, 13, 5), (2, 12, 5), (2, 12, 5)), "no more steps than there are keys, 12, got 13"),
    ],
)
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], complaint: str) -> None:
    inputs = tuple(np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=complaint):
        check_steps(StepInputs(*inputs))


def test_settings_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="sinks should be at least 0"):
        StepSetting(selection=Setting(name=""), sinks=-1)
    with pytest.raises(ValueError, match="float only"):
        StepSetting(selection=Setting(name="", arithmetic="fixed point"))
    with pytest.raises(ValueError, match="fewer than the 10 rows that the first step sees, got 4 \\+ 6"):
        attend_steps(random_inputs(), StepSetting(selection=Setting(name="", iterations=0.5), sinks=4, window=6))
