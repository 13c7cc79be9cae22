"""What the accelerator is asked to do."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float64, Real

Number = int | float | np.integer | np.floating
_FIELDS = ("n", "M", "C", "K")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """Queries, each with its counts: numbers for all of them (averages may be fractions) or one entry a query.

    Attributes:
      n: rows of the key.
      M: iterations of the selector. M, C and K are None for the base pipeline.
      C: candidates.
      K: rows kept by post-scoring.
      queries: how many; the length of the arrays where there are any, else 1 by default.
      queries_per_key: queries that share a key and hence one sort. None: sorted ahead of time, off the critical path.
      origin: whether M, C and K were counted in a run or taken from somewhere.
    """

    n: Number | Real[np.ndarray, " _"]
    M: Number | Real[np.ndarray, " _"] | None = None
    C: Number | Real[np.ndarray, " _"] | None = None
    K: Number | Real[np.ndarray, " _"] | None = None
    queries: int | None = None
    queries_per_key: int | float | None = None
    origin: Literal["measured", "assumed"] = "assumed"

    def __post_init__(self) -> None:
        """ValueError unless 0 <= K <= C <= n, n >= 1, M >= 0, all finite, and arrays are one entry a query."""
        arrays = {name: np.asarray(value) for name in _FIELDS if (value := getattr(self, name)) is not None}
        for name, array in arrays.items():
            least = 1 if name == "n" else 0
            if not (array.ndim < 2 and array.size and np.isfinite(array).all() and (array >= least).all()):
                raise ValueError(
                    f"{name} should be finite and at least {least}, one number or one a query, got {array}"
                )
        lengths = {name: len(array) for name, array in arrays.items() if array.ndim}
        if self.queries is not None:
            if self.queries < 1:
                raise ValueError(f"queries should be at least 1, got {self.queries}")
            lengths["queries"] = self.queries
        if len(set(lengths.values())) > 1:
            raise ValueError(f"there should be one entry a query, got lengths {lengths}")
        if self.queries_per_key is not None and not self.queries_per_key >= 1:
            raise ValueError(f"queries_per_key should be at least 1, got {self.queries_per_key}")
        for less, more in (("C", "n"), ("K", "C"), ("K", "n")):
            if less in arrays and more in arrays and not (arrays[less] <= arrays[more]).all():
                raise ValueError(
                    f"{less} should be at most {more}, got {less} = {arrays[less]}, {more} = {arrays[more]}"
                )

    @property
    def num_queries(self) -> int:
        """Queries of the workload."""
        lengths = [len(value) for name in _FIELDS if np.ndim(value := getattr(self, name))]
        return self.queries or (lengths[0] if lengths else 1)

    @property
    def is_constant(self) -> bool:
        """Whether all queries are alike."""
        return all(
            np.ndim(value) == 0 or np.ptp(value) == 0 for name in _FIELDS if (value := getattr(self, name)) is not None
        )

    def counts(self, name: Literal["n", "M", "C", "K"]) -> Float64[np.ndarray, " entries"]:
        """The counts of every query, or one entry where it is the same for all; ValueError if they are not known."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"the approximate pipeline needs {name}: give M, C and K")
        return np.atleast_1d(np.asarray(value, np.float64))
