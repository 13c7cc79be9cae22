"""The widths of A3's signals (HPCA 2020, section III-B), and the choices that the paper leaves open."""

import dataclasses
from typing import Literal, TypeAlias

from a3_jax.fixed_point.numbers import FixedPoint

Rounding: TypeAlias = Literal["floor", "nearest"]

WORD_BITS = 31  # of an int32, without the sign
_INDEX_BITS = 24  # two tables of 4,096 entries
_CHOICES = {
    "division": ("early", "late"),
    "score_of_one": ("extra_bit", "saturate"),
    "entry_rounding": ("floor", "nearest"),
    "score_rounding": ("floor", "nearest"),
    "division_rounding": ("floor", "nearest"),
}


@dataclasses.dataclass(frozen=True)
class Signal(FixedPoint):
    """One register of the pipeline.

    Attributes:
      integer_bits, fraction_bits: of the paper's register, where it has one; it always holds what can occur.
      bound: the largest magnitude that can occur, in units of `2^-fraction_bits`.
    """

    bound: int

    def __post_init__(self) -> None:
        assert self.bound <= self.largest


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionFormat:
    """Number formats of attention over up to n rows of d columns; the defaults are those of the paper's hardware.

    Attributes:
      integer_bits, fraction_bits: i and f of query, key and value, without the sign.
      n, d: the most rows and columns; fewer are as good.
      index_integer_bits, index_fraction_bits: of what the exponent is looked up with. What is larger saturates; fraction bits beyond
        are cut off. The upper and the lower half of the index have a table each.
      entry_bits: fraction bits of a table's entries; 1.0 itself takes one more.
      entry_rounding: of exact powers of e to entries.
      score_rounding: of the product of two entries to a score of 2f fraction bits.
      score_of_one: the largest row's score is 1.0, for which the paper's score has no bit. "extra_bit" gives it one; "saturate" has
        it, and a weight of 1.0, become 1 - 2^-2f.
      division: "early" is the paper's: each score is divided by their sum, and values are added up by weight. "late" adds values up by
        score and divides once a column.
      division_rounding: of quotients, towards minus infinity or to the nearest, halves up.

    ValueError if a signal can need more than 31 bits and a sign, naming it, or if an option is out of range.
    """

    integer_bits: int = 4
    fraction_bits: int = 4
    n: int = 320
    d: int = 64
    index_integer_bits: int = 8
    index_fraction_bits: int = 8
    entry_bits: int = 16
    entry_rounding: Rounding = "nearest"
    score_rounding: Rounding = "floor"
    score_of_one: Literal["extra_bit", "saturate"] = "extra_bit"
    division: Literal["early", "late"] = "early"
    division_rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _require(field.name, value, field.name in _CHOICES or type(value) is int, "an int")
        for name, least in (("n", 1), ("d", 1), ("integer_bits", 0), ("fraction_bits", 1)):
            _require(name, getattr(self, name), getattr(self, name) >= least, f"at least {least}")
        least = 2 * self.fraction_bits
        _require("entry_bits", self.entry_bits, self.entry_bits >= least, f"at least those of a score, {least}")
        for name in ("index_integer_bits", "index_fraction_bits"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        index_bits = self.index_integer_bits + self.index_fraction_bits
        _require("bits of the index", index_bits, 2 <= index_bits <= _INDEX_BITS, f"2 to {_INDEX_BITS}")
        for name, choices in _CHOICES.items():
            _require(name, getattr(self, name), getattr(self, name) in choices, " or ".join(choices))
        for name, signal in self.signals().items():
            self._require_fits(name, signal)

    @property
    def input(self) -> FixedPoint:
        """Of query, key and value."""
        return FixedPoint(self.integer_bits, self.fraction_bits)

    @property
    def score(self) -> FixedPoint:
        """Of scores and weights; there is an integer bit with `score_of_one="extra_bit"`."""
        return FixedPoint(int(self.score_of_one == "extra_bit"), 2 * self.fraction_bits)

    @property
    def output(self) -> FixedPoint:
        """Of the output, whichever the division."""
        signal = self.signals()["output"]
        return FixedPoint(signal.integer_bits, signal.fraction_bits)

    @property
    def largest_score(self) -> int:
        """What a score of 1.0 becomes."""
        return 2 ** (2 * self.fraction_bits) - (self.score_of_one == "saturate")

    def signals(self) -> dict[str, Signal]:
        """Every signal by name, in the order of the pipeline. Without sorted keys, whose words are inputs and row numbers."""
        i, f, log_n, log_d = self.integer_bits, self.fraction_bits, _log2(self.n), _log2(self.d)
        top, one, extra = self.input.largest, self.largest_score, self.score.integer_bits
        # With a bit for 1.0, n scores of 1.0 take one bit more than log2 n where n is a power of two.
        sum_bits = self.n.bit_length() if extra else log_n
        sum_bound = self.n * one
        index_bits = self.index_integer_bits + self.index_fraction_bits
        product_bits = 2 * self.entry_bits - self.entry_bits // 2
        signals = {
            "input": Signal(i, f, top),
            "product": Signal(2 * i, 2 * f, top**2),
            "dot_product": Signal(2 * i + log_d, 2 * f, self.d * top**2),
            "shifted": Signal(2 * i + log_d + 1, 2 * f, 2 * self.d * top**2),
            "index": Signal(self.index_integer_bits, self.index_fraction_bits, 2**index_bits - 1),
            "entry": Signal(1, self.entry_bits, 2**self.entry_bits),
            # Two entries of 1.0 in 16 bits have a product of 33. Its lowest bits are cut off before they are there: see `exponent`.
            "product_of_entries": Signal(1, product_bits, 2 ** (product_bits + 1) - 1),
            "score": Signal(extra, 2 * f, one),
            "expsum": Signal(sum_bits, 2 * f, sum_bound),
            "remainder": Signal(sum_bits + 1, 2 * f, 2 * sum_bound),
        }
        if self.division == "late":
            signals["weighted_sum"] = Signal(i + sum_bits, 3 * f, sum_bound * top)
            return signals | {"output": Signal(i, 3 * f, top << (2 * f))}
        # Floored weights add up to 1 at most; each that is rounded up adds at most half a unit.
        weights = (1 << (2 * f)) + (self.n // 2 if self.division_rounding == "nearest" else 0)
        weights = min(weights, self.n * one)
        return signals | {
            "weight": Signal(extra, 2 * f, one),
            "output": Signal(i + log_n, 3 * f, weights * top),
        }

    def running_sum(self, num_iterations: int) -> Signal:
        """What candidate selection adds up over so many iterations to decide whether to skip. ValueError if it can need too many bits."""
        iterations = min(num_iterations, self.n * self.d)
        bound = iterations * self.input.largest**2
        signal = Signal(2 * self.integer_bits + _log2(iterations), 2 * self.fraction_bits, bound)
        self._require_fits(f"running_sum of {iterations} iterations", signal)
        return signal

    def _require_fits(self, name: str, signal: Signal) -> None:
        needed = signal.bound.bit_length()
        if needed > WORD_BITS:
            raise ValueError(
                f"{name} needs {needed} bits and a sign, wanted at most {WORD_BITS}: "
                f"take fewer integer_bits ({self.integer_bits}), fraction_bits ({self.fraction_bits}), rows or columns"
            )


def _log2(count: int) -> int:
    """Bits that a sum of `count` terms has more than a term."""
    return (count - 1).bit_length()


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name}: wanted {wanted}, got {value!r}")
