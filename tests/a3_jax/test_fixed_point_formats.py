"""Widths of signals, quantizing, the exponent's tables and the threshold."""

import itertools
import math
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.fixed_point.division import divide
from a3_jax.fixed_point.exponent import exponent, exponent_tables
from a3_jax.fixed_point.formats import AttentionFormat
from a3_jax.fixed_point.numbers import FixedPoint
from a3_jax.fixed_point.thresholds import threshold_units
from tests.a3_jax import oracle_fixed_point as oracle


def widths(**options: Any) -> dict[str, tuple[int, int]]:
    signals = AttentionFormat(**options).signals()
    return {name: (signal.integer_bits, signal.fraction_bits) for name, signal in signals.items()}


def test_widths_are_those_of_the_paper() -> None:
    """HPCA 2020, section III-B: i = f = 4, d = 64, n = 320."""
    found = widths(score_of_one="saturate")
    paper = {
        "input": (4, 4),
        "product": (8, 8),
        "dot_product": (14, 8),
        "shifted": (15, 8),
        "score": (0, 8),
        "expsum": (9, 8),
        "weight": (0, 8),
        "output": (13, 12),
    }
    assert {name: found[name] for name in paper} == paper
    assert found["index"] == (8, 8)  # section III-A: 16 bits, two tables of 256 entries
    assert [len(table) for table in exponent_tables(AttentionFormat())] == [256, 256]


def test_the_bit_for_1_widens_scores_and_weights_and_a_full_sum() -> None:
    assert widths()["score"] == widths()["weight"] == (1, 8)
    assert widths()["expsum"] == (9, 8)
    assert widths(n=512)["expsum"] == (10, 8)  # 512 scores of 1.0
    assert widths(n=512, score_of_one="saturate")["expsum"] == (9, 8)


def test_registers_of_the_paper_hold_what_can_occur() -> None:
    """Largest magnitudes by the definition of every signal, for extreme inputs."""
    checked = 0
    for i, f, n, d, one, division in itertools.product(
        range(0, 9, 2), (1, 2, 4, 5, 8), (1, 2, 5, 64, 320), (1, 3, 64), ("saturate", "extra_bit"), ("early", "late")
    ):
        try:
            signals = AttentionFormat(
                integer_bits=i, fraction_bits=f, n=n, d=d, score_of_one=one, division=division
            ).signals()
        except ValueError:
            continue
        checked += 1
        top, score = 2 ** (i + f) - 1, 4**f - (one == "saturate")
        largest = {
            "dot_product": d * top * top,
            "shifted": 2 * d * top * top,
            "expsum": n * score,
            **({"weighted_sum": n * score * top} if division == "late" else {"output": min(4**f, n * score) * top}),
        }
        for name, magnitude in largest.items():
            assert signals[name].bound == magnitude
        for signal in signals.values():
            assert signal.bound < 2**signal.bits
            assert signal.bound < 2**31
    assert checked > 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"integer_bits": 12}, "^product needs 32 bits and a sign, wanted at most 31"),
        ({"integer_bits": 8, "d": 128}, "shifted needs 32 bits"),
        ({"fraction_bits": 8, "division": "late", "integer_bits": 3}, "weighted_sum needs 36 bits"),
        ({"fraction_bits": 10, "entry_bits": 22, "integer_bits": 1, "d": 4}, "product_of_entries needs 34 bits"),
        ({"fraction_bits": 9, "entry_bits": 18, "integer_bits": 1, "n": 5000}, "remainder needs 32 bits"),
        ({"fraction_bits": 9}, "entry_bits: wanted at least those of a score, 18, got 16"),
        ({"fraction_bits": 0}, "fraction_bits: wanted at least 1, got 0"),
        ({"n": 0}, "n: wanted at least 1, got 0"),
        ({"index_integer_bits": 20}, "bits of the index: wanted 2 to 24, got 28"),
    ],
)
def test_a_format_that_does_not_fit_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionFormat(**options)


def test_quantizing_rounds_to_even_and_clamps_to_a_symmetric_range() -> None:
    numbers = FixedPoint(2, 3)
    x = jnp.array([0.0, 0.0625, 0.1875, -0.0625, -0.1875, 0.063, 3.9, 3.94, 100, -100, 3e38, -jnp.inf])
    assert numbers.quantize(x).tolist() == [0, 0, 2, 0, -2, 1, 31, 31, 31, -31, 31, -31]
    assert numbers.quantize(x.astype(jnp.bfloat16)).dtype == jnp.int32
    every = jnp.arange(-31, 32)
    assert (numbers.quantize(numbers.to_float(every)) == every).all()
    with pytest.raises(ValueError, match="quantize: wanted at most 24 bits"):
        FixedPoint(20, 5).quantize(x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"entry_rounding": "floor", "score_rounding": "nearest", "entry_bits": 9},
        {"index_integer_bits": 3, "index_fraction_bits": 4, "score_of_one": "saturate"},
        {"fraction_bits": 2, "index_integer_bits": 2, "index_fraction_bits": 9, "entry_bits": 20},
        {"fraction_bits": 8, "integer_bits": 2, "n": 8},
        {"index_integer_bits": 0, "index_fraction_bits": 10},  # saturates where scores are large
        {"index_integer_bits": 1, "index_fraction_bits": 7},
    ],
)
def test_scores_of_every_index_are_those_of_big_integers(options: dict[str, Any]) -> None:
    format = AttentionFormat(**options)
    # Up to what saturates and beyond; where there are many, a prime step.
    end = (4**format.fraction_bits << format.index_integer_bits) + 3
    distances = np.unique(np.r_[np.arange(0, min(end, 900)), np.arange(0, end, max(1, end // 997)), end, 2**31 - 1])
    found = exponent(jnp.asarray(distances, jnp.int32), format)
    assert found.tolist() == [oracle.score_of(int(distance), format) for distance in distances]


# Largest errors in units of 2^-8, by bits of an entry, to two digits.
@pytest.mark.parametrize(
    ("rounding", "largest", "zero_from"),
    [
        ("nearest", {8: 0.83, 10: 0.63, 12: 0.53, 16: 0.50}, (6.2, 6.7)),
        ("floor", {8: 1.72, 10: 1.22, 12: 1.04, 16: 1.00}, (5.0, 5.55)),
    ],
)
def test_errors_of_the_tables(rounding: Any, largest: dict[int, float], zero_from: tuple[float, float]) -> None:
    index = np.arange(2**16, dtype=np.int32)
    true = np.exp(-index / 256)
    for bits, wanted in largest.items():
        format = AttentionFormat(entry_bits=bits, entry_rounding=rounding, score_rounding=rounding)
        scores = np.asarray(exponent(jnp.asarray(index), format))
        error = 256 * np.abs(scores / 256 - true).max()
        assert abs(error - wanted) <= 0.006
        # Two factors of at most 1, each wrong by at most a (half) unit of its own, and the rounding of the product.
        unit = 0.5 if rounding == "nearest" else 1
        assert error <= 2 * unit * 2.0 ** (8 - bits) + unit
        assert scores[0] == 256
        assert (np.diff(scores) <= 0).all()
        assert zero_from[0] <= np.argmax(scores == 0) / 256 <= zero_from[1]


def test_the_default_tables_are_monotone_too() -> None:
    scores = np.asarray(exponent(jnp.arange(2**16), AttentionFormat()))
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("rounding", ["floor", "nearest"])
def test_division_is_that_of_fractions(rounding: Any) -> None:
    rng = np.random.default_rng(0)
    for denominator_bits, fraction_bits in ((4, 16), (26, 16), (30, 20), (17, 8), (17, 0)):
        denominator = int(rng.integers(1 << (denominator_bits - 1), 1 << denominator_bits))
        room = min(2**30 >> fraction_bits, (2**31 - 1) // denominator)
        numerators = np.unique(rng.integers(-denominator * room, denominator * room + 1, 400))
        found = divide(
            jnp.asarray(numerators, jnp.int32),
            jnp.int32(denominator),
            fraction_bits=fraction_bits,
            denominator_bits=denominator_bits,
            rounding=rounding,
        )
        wanted = [oracle.rounded(Fraction(int(x) << fraction_bits, denominator), rounding) for x in numerators]
        assert found.tolist() == wanted


def test_thresholds_are_exact_for_whole_distances() -> None:
    """ln(100 / T) = t: the largest distance with exp(-distance) >= T / 100, found by trial in exact fractions."""
    for percent, bits in itertools.product((0.5, 1.0, 5.0, 10.0, 36.7, 99.9), (4, 8, 16)):
        units = threshold_units(percent, fraction_bits=bits)
        assert oracle.exp_minus(Fraction(units, 2**bits)) >= Fraction(percent) / 100
        assert oracle.exp_minus(Fraction(units + 1, 2**bits)) < Fraction(percent) / 100
    assert threshold_units(100, fraction_bits=8) == 0
    assert threshold_units(0, fraction_bits=8) == 2**31 - 1
    assert threshold_units(5, fraction_bits=8) == math.floor(2.995732 * 256)
    for wrong in (-1, 101, math.nan):
        with pytest.raises(ValueError, match="threshold_percent: wanted a number of percent"):
            threshold_units(wrong, fraction_bits=8)


def test_sizes_are_ints_of_python() -> None:
    """4.5, NumPy's integers and True have no bits to count; the first two are refused before, where types are checked."""
    with pytest.raises(ValueError, match="d: wanted an int, got True"):
        AttentionFormat(d=True)
