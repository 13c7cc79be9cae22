"""Oracles: `numpy.linalg.lstsq` row by row, and errors in float64."""

import inspect

import numpy as np
import pytest

from anyprec_jax import quantization, refit, row_threads
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.refit import damped
from tests.anyprec_jax import oracles_nested

CONFIG = QuantizeConfig(seed_precision=2, parent_precision=4)
WIDE = QuantizeConfig(seed_precision=3, parent_precision=8)


def problem(n: int, k: int, config: QuantizeConfig, seed: int = 0):
    """Weights, a moment of correlated inputs, and the codes and codebooks of independent clustering."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_t(4, (n, k)).astype(np.float32)
    inputs = rng.standard_normal((3 * k, k)) @ rng.standard_normal((k, k)) * np.exp(rng.standard_normal(k))
    moment = (inputs.T @ inputs).astype(np.float32)
    codes, books = quantization._cluster(weights, np.broadcast_to(np.diag(moment), weights.shape), config)
    return weights, moment, codes, books


def total(errors: dict[int, np.ndarray]) -> dict[int, float]:
    return {w: float(np.sum(error)) for w, error in errors.items()}


def test_every_codebook_is_the_least_squares_solution() -> None:
    weights, moment, codes, books = problem(5, 40, CONFIG)
    fitted = refit.refit(weights, codes, books, moment, damping=0.1)
    np.testing.assert_array_equal(fitted.codes, codes)
    wanted = damped(moment, 0.1)
    for w in CONFIG.precisions:
        for row in range(5):
            prefix = codes[row] >> (4 - w)
            book, error = oracles_nested.least_squares(weights[row], prefix, 2**w, wanted)
            used = ~np.isnan(book)
            # Slopes and centroids are float32, and the normal equations square the condition of the problem.
            np.testing.assert_allclose(fitted.codebooks[w][row][used], book[used], rtol=1e-3, atol=1e-3)
            np.testing.assert_array_equal(fitted.codebooks[w][row][~used], np.float32(books[w][row][~used]))
            assert fitted.errors[w][row] == pytest.approx(error, rel=1e-4)


def test_large_codebooks_do_not_get_worse_and_in_the_end_are_the_solution() -> None:
    """Beyond 64 centroids a refit is one pass of coordinate descent."""
    weights, moment, codes, books = problem(2, 150, WIDE)
    wanted = damped(moment, 0.5)
    before = total(oracles_nested.row_errors(weights, codes, books, wanted))
    for _ in range(60):
        fitted = refit.refit(weights, codes, books, moment, damping=0.5)
        after = total(oracles_nested.row_errors(weights, codes, fitted.codebooks, wanted))
        assert all(after[w] <= before[w] * (1 + 1e-5) for w in WIDE.precisions)
        before, books = after, fitted.codebooks
    for w in (7, 8):
        for row in range(2):
            _, error = oracles_nested.least_squares(weights[row], codes[row] >> (8 - w), 2**w, wanted)
            assert fitted.errors[w][row] == pytest.approx(error, rel=0.02)


def test_errors_are_those_of_the_result() -> None:
    weights, moment, codes, books = problem(7, 33, WIDE, seed=1)
    fitted = refit.refit(weights, codes, books, moment)
    slow = oracles_nested.row_errors(weights, codes, fitted.codebooks, damped(moment, refit.DAMPING))
    for w in WIDE.precisions:
        np.testing.assert_allclose(fitted.errors[w], slow[w], rtol=1e-3, atol=1e-7 * slow[3].max())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_does_not_matter(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, moment, codes, books = problem(23, 40, CONFIG)
    expected = refit.refit(weights, codes, books, moment)
    monkeypatch.setattr(row_threads, "num_threads", lambda: threads)
    again = refit.refit(weights, codes, books, moment)
    for w in CONFIG.precisions:
        np.testing.assert_array_equal(again.codebooks[w], expected.codebooks[w])
        np.testing.assert_array_equal(again.errors[w], expected.errors[w])


def test_columns_without_inputs_and_a_moment_of_zeros() -> None:
    weights, moment, codes, books = problem(3, 20, CONFIG)
    moment[4] = moment[:, 4] = 0.0
    for dead in (moment, np.zeros_like(moment)):
        fitted = refit.refit(weights, codes, books, dead)
        assert all(np.isfinite(book).all() for book in fitted.codebooks.values())
    # All zeros means all alike: plain means.
    for w in CONFIG.precisions:
        for row, code in np.ndindex(3, 2**w):
            members = codes[row] >> (4 - w) == code
            if members.any():
                assert fitted.codebooks[w][row, code] == pytest.approx(weights[row, members].mean(), rel=1e-4, abs=1e-5)


def test_damping_shrinks_what_is_off_the_diagonal() -> None:
    _, moment, *_ = problem(1, 12, CONFIG)
    scaled, shrunk = damped(moment, 0.0), damped(moment, 0.25)
    assert np.diag(scaled).mean() == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(np.diag(shrunk), np.diag(scaled), rtol=1e-6)
    off = ~np.eye(12, dtype=bool)
    np.testing.assert_allclose(shrunk[off], 0.75 * scaled[off], rtol=1e-5)
    np.testing.assert_allclose(scaled[off] * np.diag(moment).mean(dtype=np.float64), moment[off], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"damping": 1.5}, "damping must be between 0 and 1, got 1.5"),
        (lambda p: p | {"moment": p["moment"][:-1]}, r"must be \[k, k\], got \(19, 20\)"),
        (lambda p: p | {"moment": np.eye(21, dtype=np.float32)}, r"20 inputs must be \[20, 20\], got \(21, 21\)"),
        (lambda p: p | {"moment": np.full((20, 20), np.nan, np.float32)}, "must be finite"),
        (lambda p: p | {"moment": -np.eye(20, dtype=np.float32)}, "at least 0 on its diagonal"),
        (lambda p: p | {"codes": p["codes"][:, :-1]}, r"one shape \[n, k\]"),
        (lambda p: p | {"codes": p["codes"] + np.uint8(16)}, "below 16, got"),
        (lambda p: p | {"codebooks": {2: p["codebooks"][2], 4: p["codebooks"][4]}}, r"consecutive .* got \[2, 4\]"),
        (lambda p: p | {"codebooks": {}}, "consecutive"),
        (lambda p: p | {"codebooks": p["codebooks"] | {4: p["codebooks"][3]}}, r"codebook 4 must be \(3, 16\)"),
    ],
)
def test_what_does_not_fit(change, message: str) -> None:
    weights, moment, codes, books = problem(3, 20, CONFIG)
    arguments = change({"weights": weights, "codes": codes, "codebooks": books, "moment": moment})
    # Without the shape checks of the tests, which would come first.
    descend, damped_ = inspect.unwrap(refit.descend), inspect.unwrap(refit.damped)
    with pytest.raises(ValueError, match=message):
        damping = arguments.pop("damping", refit.DAMPING)
        moment = damped_(arguments.pop("moment"), damping)
        descend(**arguments, moment=moment, importance=None, rounds=0, sweeps=0)
