"""Nested codes optimised for all precisions at once, under the second moment of a linear's inputs.

`kmeans1d` and `upscale` place each weight where it is read best by itself. What counts is what a row makes of its inputs, where errors of
different weights can cancel. `optimise_codes` moves one weight after the other to the code that lowers the error of the whole row most,
after LNQ (GuidedQuant, Kim et al., ICML 2025), which does so for codes of one precision. Here a code is a leaf of the tree of all
precisions, and what is lowered is a weighted sum of the errors at all of them: codes that are optimised for 3 bits alone leave
the finer precisions clusters that no split repairs.

Codes are then no longer intervals of the sorted row, equal weights of a row may differ in theirs, and codebooks need not ascend.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float32, UInt8

from anyprec_jax.refit import DAMPING, NestedCodes, damped, descend

_FALL = 4.0  # by which one more bit divides the squared error of a row, about
_SEED = 8.0  # the coarsest precision loses most by far, and the others can spare some
_OTHERS = {
    6: 2.0,
    7: 0.25,
    8: 0.25,
}  # 7 and 8 bits lose next to nothing, and hold the others back; 6 would pay for the seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointSettings:
    """How codes are optimised.

    Attributes:
      importance: precision -> weight of its error in the sum that is lowered. The dial between precisions: more for one makes it better,
        and the others worse. 4**(w - seed) would make all errors about equally large; those left out weigh that, but 8 times at the
        seed, 2 times at 6 bits, and a quarter at 7 and 8.
      damping: how much of the moment's off-diagonal is not believed, 0 to 1 (`refit.damped`).
      rounds: of a refit of all codebooks and `sweeps` over the codes; one more refit follows.
      sweeps: over all codes of a row in one round; ends early where no code changes.
    """

    importance: Mapping[int, float] = dataclasses.field(default_factory=dict)
    damping: float = DAMPING
    rounds: int = 1
    sweeps: int = 2

    def __post_init__(self) -> None:
        for name in ("rounds", "sweeps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if not 0.0 <= self.damping <= 1.0:
            raise ValueError(f"damping must be between 0 and 1, got {self.damping}")
        for w, weight in self.importance.items():
            if not (math.isfinite(weight) and weight >= 0.0):
                raise ValueError(f"the importance of {w} bits must be finite and at least 0, got {weight}")

    def weights(self, seed_precision: int, parent_precision: int) -> dict[int, float]:
        """The weight of every precision's error."""
        precisions = range(seed_precision, parent_precision + 1)
        if unknown := sorted(set(self.importance) - set(precisions)):
            raise ValueError(f"importance is given for {unknown[0]} bits, but precisions are {[*precisions]}")
        default = {w: _FALL ** (w - seed_precision) * _OTHERS.get(w, 1.0) for w in precisions}
        default[seed_precision] = _SEED
        return {w: float(self.importance.get(w, default[w])) for w in precisions}


def optimise_codes(
    weights: Float32[np.ndarray, "n k"],
    codes: UInt8[np.ndarray, "n k"],
    codebooks: Mapping[int, Float[np.ndarray, "n _"]],
    moment: Float32[np.ndarray, "k k"],
    settings: JointSettings | None = None,
) -> NestedCodes:
    """Lowers the weighted sum of the errors at all precisions, from the codes and codebooks given.

    Coordinate descent: no step raises the sum, but for the rounding of float32. Rows are independent. Deterministic, whatever the
    number of threads.

    Args:
      weights: finite.
      codes: of the parent precision, to start from.
      codebooks: of every precision from the seed to the parent, to start from.
      moment: G of the layer's inputs, symmetric, as `sensitivity` measures it.
      settings: the defaults, unless given.

    Raises:
      ValueError: shapes or precisions that do not fit, an importance of a precision that there is not, or as `refit.damped`.

    Time, a row: k**2 operations for every refit, and in a sweep k for every code and precision that changes; on all cores. Memory
    beyond arguments and result: G once more, and 64 * k floats a thread.
    """
    settings = JointSettings() if settings is None else settings
    return descend(
        weights,
        codes,
        codebooks,
        damped(moment, settings.damping),
        importance=settings.weights(min(codebooks), max(codebooks)) if codebooks else None,
        rounds=settings.rounds,
        sweeps=settings.sweeps,
    )
