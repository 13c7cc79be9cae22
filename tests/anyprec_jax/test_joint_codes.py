"""Oracles: the objective in float64, every assignment of codes to rows of a few columns, and each single change of a code."""

import inspect
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import codes as codes_of
from anyprec_jax import dequantize, quantize, row_threads
from anyprec_jax.array import validate
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.joint_codes import JointSettings, optimise_codes
from anyprec_jax.quantization import quantize_jointly
from anyprec_jax.refit import DAMPING, NestedCodes, damped, descend, refit
from tests.anyprec_jax import oracles_nested
from tests.anyprec_jax.test_refit import CONFIG, WIDE, problem, total

ROUNDING = 1 + 1e-5  # float32 slopes; a step must gain a millionth of a column's share, which is less than that


def objective(weights: np.ndarray, nested: NestedCodes, moment: np.ndarray, importance: dict[int, float]) -> np.ndarray:
    """The weighted sum of errors of every row, in float64 from codes, codebooks and G alone."""
    errors = oracles_nested.row_errors(weights, nested.codes, nested.codebooks, moment)
    return sum((importance[w] * error for w, error in errors.items()), np.zeros(len(weights)))


@pytest.mark.parametrize("config", [CONFIG, WIDE, QuantizeConfig(seed_precision=3, parent_precision=3)])
@pytest.mark.parametrize("importance", [{}, {3: 100.0}])
def test_no_refit_and_no_sweep_raises_the_objective(config: QuantizeConfig, importance: dict[int, float]) -> None:
    weights, moment, codes, books = problem(6, 70, config)
    weighted, dampened = (
        JointSettings(importance=importance).weights(config.seed_precision, config.parent_precision),
        damped(moment, DAMPING),
    )
    start = NestedCodes(codes, {w: np.float32(book) for w, book in books.items()}, {})
    values = [objective(weights, start, dampened, weighted)]
    values.append(objective(weights, refit(weights, codes, books, moment), dampened, weighted))
    for rounds, sweeps in [(1, 1), (1, 2), (1, 4)]:  # each goes on where the one before stopped
        state = descend(weights, codes, books, dampened, importance=weighted, rounds=rounds, sweeps=sweeps)
        values.append(objective(weights, state, dampened, weighted))
    for _ in range(4):
        state = descend(weights, state.codes, state.codebooks, dampened, importance=weighted, rounds=1, sweeps=1)
        values.append(objective(weights, state, dampened, weighted))
    for before, after in itertools.pairwise(values[4:]):
        assert np.all(after <= before * ROUNDING)
    assert np.all(values[1] <= values[0] * ROUNDING)
    for after in values[2:5]:
        assert np.all(after <= values[1] * ROUNDING)
    assert values[-1].sum() < values[1].sum() < values[0].sum()


def test_in_the_end_no_single_change_of_a_code_helps() -> None:
    weights, moment, codes, books = problem(2, 24, CONFIG)
    settings = JointSettings(rounds=30, sweeps=30)
    weighted, dampened = settings.weights(2, 4), damped(moment, settings.damping)
    state = optimise_codes(weights, codes, books, moment, settings)
    reached = objective(weights, state, dampened, weighted)
    for column in range(24):
        for code in range(16):
            trial = state.codes.copy()
            trial[:, column] = code
            changed = objective(weights, state._replace(codes=trial), dampened, weighted)
            assert np.all(changed >= reached * (1 - 1e-4))


@pytest.mark.parametrize("seed", range(4))
def test_tiny_rows_against_every_assignment(seed: int) -> None:
    """With the codebooks it ends with, three columns have 512 sets of codes: descent must be near the best of them, and often it."""
    config = QuantizeConfig(seed_precision=1, parent_precision=3)
    weights, moment, codes, books = problem(8, 3, config, seed)
    settings = JointSettings(rounds=5, sweeps=5)
    weighted, dampened = settings.weights(1, 3), damped(moment, settings.damping)
    state = optimise_codes(weights, codes, books, moment, settings)
    reached = objective(weights, state, dampened, weighted)
    best = [
        oracles_nested.best_codes(weights[r], {w: b[r] for w, b in state.codebooks.items()}, weighted, dampened)
        for r in range(8)
    ]
    assert np.all(reached >= np.array(best) * (1 - 1e-4) - 1e-9)
    exact = np.isclose(reached, best, rtol=1e-3, atol=1e-7)
    assert exact.sum() >= 5


def test_one_sweep_gives_each_column_the_best_of_all_codes() -> None:
    """A moment without pairs: columns do not meet, so one sweep must find every column's best leaf."""
    weights, moment, codes, books = problem(4, 30, WIDE)
    diagonal = np.diag(np.diag(moment))
    weighted, dampened = JointSettings().weights(3, 8), damped(diagonal, 0.0)
    start = refit(weights, codes, books, diagonal, damping=0.0)
    state = descend(weights, codes, books, dampened, importance=weighted, rounds=1, sweeps=1)
    scores = sum(
        weighted[w]
        * (weights[:, :, None].astype(np.float64) - np.repeat(start.codebooks[w], 2 ** (8 - w), axis=1)[:, None, :])
        ** 2
        for w in WIDE.precisions
    )
    chosen = np.take_along_axis(scores, state.codes[:, :, None].astype(np.int64), axis=2)[:, :, 0]
    np.testing.assert_allclose(chosen, scores.min(axis=2), rtol=1e-3, atol=1e-9)


def test_importance_is_a_dial() -> None:
    weights, moment, codes, books = problem(8, 60, CONFIG)
    errors = {}
    for name, importance in {"even": {}, "coarse": {2: 1000.0}, "fine": {2: 0.0, 3: 0.0}}.items():
        state = optimise_codes(weights, codes, books, moment, JointSettings(importance=importance))
        errors[name] = total(state.errors)
    assert errors["coarse"][2] < errors["even"][2] < errors["fine"][2]
    assert errors["fine"][4] < errors["even"][4] < errors["coarse"][4]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_does_not_matter(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, moment, codes, books = problem(23, 40, CONFIG)
    expected = optimise_codes(weights, codes, books, moment)
    monkeypatch.setattr(row_threads, "num_threads", lambda: threads)
    again = optimise_codes(weights, codes, books, moment)
    np.testing.assert_array_equal(again.codes, expected.codes)
    for w in CONFIG.precisions:
        np.testing.assert_array_equal(again.codebooks[w], expected.codebooks[w])


def test_rows_do_not_know_of_each_other() -> None:
    weights, moment, codes, books = problem(11, 40, CONFIG)
    whole = optimise_codes(weights, codes, books, moment)
    alone = optimise_codes(weights[6:7], codes[6:7], {w: book[6:7] for w, book in books.items()}, moment)
    np.testing.assert_array_equal(alone.codes, whole.codes[6:7])


class TestQuantizeJointly:
    def test_codes_are_nested_and_read_by_every_precision(self) -> None:
        weights, moment, *_ = problem(5, 70, WIDE)
        array = quantize_jointly(weights, moment, WIDE)
        validate(array)
        finest = np.asarray(codes_of(array, precision=8))
        for w in WIDE.precisions:
            np.testing.assert_array_equal(codes_of(array, precision=w), finest >> (8 - w))
            expected = np.take_along_axis(
                np.asarray(array.codebooks[w], np.float32), (finest >> (8 - w)).astype(np.int64), axis=1
            )
            np.testing.assert_array_equal(dequantize(array, precision=w), expected)

    def test_is_better_than_quantize_at_every_precision_where_it_counts(self) -> None:
        weights, moment, *_ = problem(12, 160, WIDE)
        plain = quantize(weights, np.broadcast_to(np.diag(moment), weights.shape), WIDE)
        joint = quantize_jointly(weights, moment, WIDE)
        for w in (3, 4, 5, 6):
            errors = []
            for array in (plain, joint):
                e = weights.astype(np.float64) - np.asarray(dequantize(array, precision=w), np.float64)
                errors.append(np.einsum("rk,kl,rl->", e, moment.astype(np.float64), e))
            assert errors[1] < errors[0]

    def test_takes_other_precisions_and_jax_arrays(self) -> None:
        weights, moment, *_ = problem(3, 20, CONFIG)
        a = quantize_jointly(weights, moment, CONFIG)
        b = quantize_jointly(jnp.asarray(weights), jnp.asarray(moment), CONFIG)
        np.testing.assert_array_equal(a.bitplanes, b.bitplanes)

    def test_the_scale_of_the_moment_does_not_count(self) -> None:
        weights, moment, *_ = problem(3, 40, CONFIG)
        a = quantize_jointly(weights, moment, CONFIG)
        b = quantize_jointly(weights, moment * np.float32(2.0**-70), CONFIG)
        np.testing.assert_array_equal(a.bitplanes, b.bitplanes)

    @pytest.mark.parametrize("shape", [(20,), (19, 19), (20, 19)])
    def test_moments_that_do_not_fit(self, shape: tuple[int, ...]) -> None:
        weights = np.ones((2, 20), np.float32)
        with pytest.raises(ValueError, match=r"need the second moment \[k, k\] of their inputs"):
            inspect.unwrap(quantize_jointly)(weights, np.ones(shape, np.float32), CONFIG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds must be an int of at least 1, got 0"),
        ({"sweeps": True}, "sweeps must be an int of at least 1, got True"),
        ({"damping": -0.1}, "damping must be between 0 and 1"),
        ({"importance": {3: -1.0}}, "importance of 3 bits must be finite and at least 0"),
        ({"importance": {3: float("nan")}}, "importance of 3 bits"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointSettings(**settings)


def test_default_importance_is_what_the_docs_say() -> None:
    """4**(w - seed), but 8 times that at the seed, twice at 6 bits and a quarter at 7 and 8 (docs/anyprec.md)."""
    assert JointSettings().weights(3, 8) == {3: 8.0, 4: 4.0, 5: 16.0, 6: 2 * 64.0, 7: 256.0 / 4, 8: 1024.0 / 4}
    assert JointSettings(importance={3: 1.0, 8: 5.0}).weights(3, 8)[8] == 5.0
    assert JointSettings().weights(6, 6) == {6: 8.0}


def test_importance_of_a_precision_that_there_is_not() -> None:
    weights, moment, codes, books = problem(2, 9, CONFIG)
    with pytest.raises(ValueError, match=r"given for 7 bits, but precisions are \[2, 3, 4\]"):
        optimise_codes(weights, codes, books, moment, JointSettings(importance={7: 1.0}))
