import dataclasses
import inspect
import itertools
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import quantization, row_threads
from anyprec_jax.array import AnyPrecArray, validate
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.ops.reference import codes, dequantize
from anyprec_jax.quantization import quantize
from tests.anyprec_jax import oracles
from tests.anyprec_jax.test_kmeans1d import heavy_tailed, rows

SMALL = QuantizeConfig(seed_precision=2, parent_precision=5)
HALF_ULP = 2.0**-11  # of float16, relative
SMALLEST = 2.0**-25  # half of float16's smallest step


def same_bytes(a: AnyPrecArray, b: AnyPrecArray) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


def test_golden() -> None:
    """Worked by hand: 1-bit seed {-9, -8} {0, ..., 10}, then the best split of either, twice."""
    weights = np.array([[10.0, 0.0, -9.0, 1.0, 3.0, -8.0]], np.float32)
    array = quantize(weights, np.ones_like(weights), QuantizeConfig(seed_precision=1, parent_precision=3))
    np.testing.assert_array_equal(codes(array, precision=3), [[6, 4, 0, 4, 5, 2]])
    np.testing.assert_array_equal(array.codebooks[1], [[-8.5, 3.5]])
    np.testing.assert_array_equal(array.codebooks[2], np.array([[-9, -8, 4 / 3, 10]], np.float16))
    np.testing.assert_array_equal(array.codebooks[3], [[-9, -9, -8, -8, 0.5, 3, 10, 10]])


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    k=st.sampled_from([1, 2, 5, 9, 14]),
    sensitivity_kind=st.sampled_from(["even", "wild", "sparse", "zero"]),
    config=st.sampled_from([QuantizeConfig(seed_precision=s, parent_precision=p) for s, p in [(1, 4), (2, 3), (2, 6)]]),
)
@hypothesis.settings(max_examples=60)
def test_equals_the_slow_derivation(seed: int, k: int, sensitivity_kind: str, config: QuantizeConfig) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((2, k)).astype(np.float32)
    sensitivity = {
        "even": np.ones((2, k)),
        "wild": np.exp(4 * rng.standard_normal((2, k))),
        "sparse": rng.integers(0, 2, (2, k)) * rng.random((2, k)),
        "zero": np.zeros((2, k)),
    }[sensitivity_kind].astype(np.float32)
    array = quantize(weights, sensitivity, config)
    validate(array)
    for row in range(2):
        expected_codes, expected_codebooks = oracles.quantize_row(
            weights[row], sensitivity[row], config.seed_precision, config.parent_precision
        )
        np.testing.assert_array_equal(codes(array, precision=config.parent_precision)[row], expected_codes)
        for w, codebook in expected_codebooks.items():
            np.testing.assert_allclose(array.codebooks[w][row], codebook, rtol=1.01 * HALF_ULP, atol=SMALLEST)


@hypothesis.given(rows(st.sampled_from([1, 7, 40, 70])))  # few shapes, because every one is compiled
@hypothesis.settings(max_examples=40)
def test_invariants_and_means(matrix: tuple[np.ndarray, np.ndarray]) -> None:
    """At every precision an entry is the weighted mean of the weights whose codes start with it; equal weights agree."""
    weights, sensitivity = matrix
    array = quantize(weights, sensitivity, SMALL)
    validate(array)
    finest = np.asarray(codes(array, precision=5))
    for w in SMALL.precisions:
        codebook = np.asarray(array.codebooks[w], np.float64)
        assert (np.diff(codebook) >= 0).all()
        for row, code in np.ndindex(len(weights), 2**w):
            members = finest[row] >> (5 - w) == code
            if members.any():
                values, mass = weights[row, members].astype(np.float64), oracles.masses(sensitivity[row])[members]
                mean = values[0] + np.average(values - values[0], weights=mass)
                assert abs(codebook[row, code] - mean) <= 1.01 * HALF_ULP * abs(mean) + SMALLEST
    for row in range(len(weights)):
        for value in np.unique(weights[row]):
            assert len(np.unique(finest[row, weights[row] == value])) == 1


def test_more_bits_are_closer() -> None:
    weights, sensitivity = heavy_tailed(4, 576, sixteen_bit=True)
    array = quantize(weights, sensitivity, QuantizeConfig())
    errors = [
        np.sum(sensitivity * (np.asarray(dequantize(array, precision=w)) - weights) ** 2) for w in array.precisions
    ]
    assert all(finer < 0.5 * coarser for coarser, finer in itertools.pairwise(errors))


def test_sensitive_weights_are_closer_and_the_others_pay() -> None:
    """The paper's claim in the small."""
    weights, sensitivity = heavy_tailed(4, 576)
    even = np.asarray(dequantize(quantize(weights, np.ones_like(weights), QuantizeConfig()), precision=3)) - weights
    weighted = np.asarray(dequantize(quantize(weights, sensitivity, QuantizeConfig()), precision=3)) - weights
    assert np.sum(sensitivity * weighted**2) < 0.7 * np.sum(sensitivity * even**2)
    assert np.sum(weighted**2) > np.sum(even**2)


def test_columns_in_another_order() -> None:
    weights, sensitivity = heavy_tailed(3, 100)
    order = np.random.default_rng(1).permutation(100)
    array = quantize(weights, sensitivity, SMALL)
    permuted = quantize(weights[:, order], sensitivity[:, order], SMALL)
    np.testing.assert_array_equal(codes(permuted, precision=5), np.asarray(codes(array, precision=5))[:, order])
    assert same_bytes(dataclasses.replace(permuted, bitplanes=array.bitplanes), array)


@pytest.mark.parametrize("scale", [2.0**-7, 3.0])
def test_scaled_weights(scale: float) -> None:
    weights, sensitivity = heavy_tailed(3, 100)
    array = quantize(weights, sensitivity, SMALL)
    scaled = quantize(weights * np.float32(scale), sensitivity, SMALL)
    np.testing.assert_array_equal(scaled.bitplanes, array.bitplanes)
    for w in SMALL.precisions:
        np.testing.assert_allclose(
            np.asarray(scaled.codebooks[w], np.float64),
            scale * np.asarray(array.codebooks[w], np.float64),
            rtol=2.02 * HALF_ULP,
            atol=2 * SMALLEST,
        )


@pytest.mark.parametrize("scale", [1e-12, 1e-30, 1e12])
def test_scaled_sensitivity_changes_nothing(scale: float) -> None:
    weights, _ = heavy_tailed(3, 100)
    sensitivity = np.exp2(np.random.default_rng(0).integers(-9, 9, weights.shape)).astype(np.float32)
    scaled = np.float32(scale) * sensitivity  # powers of two: no rounding of its own
    assert same_bytes(quantize(weights, scaled, SMALL), quantize(weights, sensitivity, SMALL))


def test_shifted_and_negated_weights() -> None:
    grid = np.random.default_rng(0).permutation(4096)[None, :100]
    weights = ((grid - 2048) / 1024).astype(np.float32)  # shifts by whole numbers are exact
    _, sensitivity = heavy_tailed(1, 100)
    exact = QuantizeConfig(seed_precision=3, parent_precision=3)
    array = quantize(weights, sensitivity, exact)
    shifted = quantize(weights + np.float32(5), sensitivity, exact)
    np.testing.assert_array_equal(shifted.bitplanes, array.bitplanes)
    np.testing.assert_allclose(
        np.asarray(shifted.codebooks[3], np.float64) - 5, np.asarray(array.codebooks[3], np.float64), atol=8 * HALF_ULP
    )
    negated = quantize(-weights, sensitivity, exact)
    np.testing.assert_array_equal(codes(negated, precision=3), 7 - np.asarray(codes(array, precision=3)))
    np.testing.assert_array_equal(negated.codebooks[3], -np.asarray(array.codebooks[3])[:, ::-1])


@pytest.mark.parametrize(
    ("row", "sensitivity"),
    [
        ([3.0] * 40, [1.0] * 40),  # constant
        ([0.0] * 40, [0.0] * 40),
        ([1.0, 2.0] * 20, [1.0] * 40),  # runs of equal values
        ([0.0] * 39 + [1.0], [0.0] * 39 + [1.0]),
        (list(range(40)), [0.0] * 40),
        (list(range(40)), [0.0] * 39 + [1e-38]),
        ([-0.0, 0.0] * 20, [1.0] * 40),
    ],
)
def test_degenerate_rows(row: list[float], sensitivity: list[float]) -> None:
    """With fewer distinct values than entries, every value is kept exactly."""
    weights = np.array([row], np.float32)
    array = quantize(weights, np.array([sensitivity], np.float32), QuantizeConfig())
    validate(array)
    if len(set(row)) <= 8:
        for w in array.precisions:
            np.testing.assert_array_equal(dequantize(array, precision=w), weights)
    np.testing.assert_array_equal(dequantize(array, precision=8), weights)


def test_rows_do_not_know_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, sensitivity = heavy_tailed(7, 45)
    array = quantize(weights, sensitivity, SMALL)
    monkeypatch.setattr(quantization, "_WEIGHTS_AT_ONCE", 100)  # two rows at a time
    assert same_bytes(quantize(weights, sensitivity, SMALL), array)
    one = quantize(weights[4:5], sensitivity[4:5], SMALL)
    np.testing.assert_array_equal(one.bitplanes[:, 0], array.bitplanes[:, 4])


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, sensitivity = heavy_tailed(40, 45)
    monkeypatch.setattr(quantization, "_WEIGHTS_AT_ONCE", 45)
    results = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(row_threads, "num_threads", lambda threads=threads: threads)
        results.append(quantize(weights, sensitivity, SMALL))
    assert all(same_bytes(result, results[0]) for result in results)


def test_takes_jax_arrays_of_any_float() -> None:
    weights, sensitivity = heavy_tailed(3, 45, sixteen_bit=True)
    array = quantize(weights, sensitivity, SMALL)
    assert same_bytes(quantize(jnp.asarray(weights, jnp.float16), jnp.asarray(sensitivity), SMALL), array)


def broken(matrix: np.ndarray, value: float) -> np.ndarray:
    matrix = matrix.copy()
    matrix[2, 7] = value
    return matrix


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(value: float) -> None:
    weights, sensitivity = heavy_tailed(4, 45)
    with pytest.raises(ValueError, match=f"weights must be finite, got {value} at row 2, column 7"):
        quantize(broken(weights, value), sensitivity, SMALL)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-20])
def test_sensitivities_that_are_none(value: float) -> None:
    weights, sensitivity = heavy_tailed(4, 45)
    with pytest.raises(ValueError, match="sensitivity must be finite and at least 0, got .* at row 2, column 7"):
        quantize(weights, broken(sensitivity, value), SMALL)


def test_shapes_that_differ() -> None:
    unchecked = inspect.unwrap(quantize)  # the type checker of the test suite would be first
    with pytest.raises(ValueError, match="of one shape .* got \\(3, 4\\) and \\(4, 3\\)"):
        unchecked(np.zeros((3, 4), np.float32), np.zeros((4, 3), np.float32), SMALL)
    with pytest.raises(ValueError, match="matrices"):
        unchecked(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), SMALL)


def test_weights_beyond_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_WEIGHTS_AT_ONCE", 100)  # the row counts from the first, not from its chunk
    weights, sensitivity = heavy_tailed(4, 45)
    quantize(broken(weights, 65519.0), sensitivity, SMALL)  # rounds to 65504
    with pytest.raises(ValueError, match="row 2 needs 65520: scale the weights down"):
        quantize(broken(weights, 65520.0), sensitivity, SMALL)
    with pytest.raises(ValueError, match="got -?inf at row 2"):
        quantize(broken(weights.astype(np.float64), -1e300), sensitivity, SMALL)


def test_weights_below_float16_are_off_by_half_its_smallest_step() -> None:
    weights = np.float32(1e-9) * np.arange(40, dtype=np.float32)[None]
    array = quantize(weights, np.ones_like(weights), SMALL)
    validate(array)
    np.testing.assert_allclose(dequantize(array, precision=5), weights, rtol=0, atol=1.01 * SMALLEST)


def test_reading_artefacts_does_not_import_numba() -> None:
    program = "import sys, anyprec_jax, anyprec_jax.quantization; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
