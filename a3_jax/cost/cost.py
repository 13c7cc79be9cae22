"""What a run costs, as a value with `+`."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of some queries on some silicon; `a + b` is a followed by b on the same silicon, and `Cost()` is nothing.

    Attributes:
      queries: how many.
      cycles, seconds: from one query to the next in the steady state, over all of them.
      energy: joules by module, in a mapping that cannot be changed.
      area: m^2; of a sum the larger one, because silicon is used again.
      estimated: names of the figures above, `energy.selector` for instance, that rest on an extrapolation. Kept by sums.
    """

    queries: int | float = 0
    cycles: int | float = 0
    seconds: int | float = 0
    energy: Mapping[str, float] = dataclasses.field(default_factory=dict)
    area: int | float = 0
    estimated: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """ValueError for what is negative or not finite."""
        numbers = {"queries": self.queries, "cycles": self.cycles, "seconds": self.seconds, "area": self.area}
        for name, value in (numbers | {f"energy.{name}": joules for name, joules in self.energy.items()}).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} should be at least 0 and finite, got {value}")
        object.__setattr__(self, "energy", MappingProxyType(dict(self.energy)))

    @property
    def total_energy(self) -> float:
        """Joules of all modules."""
        return math.fsum(self.energy.values())

    @property
    def is_estimated(self) -> bool:
        return bool(self.estimated)

    def __add__(self, other: "Cost") -> "Cost":
        names = dict.fromkeys([*self.energy, *other.energy])
        return Cost(
            queries=self.queries + other.queries,
            cycles=self.cycles + other.cycles,
            seconds=self.seconds + other.seconds,
            energy={name: self.energy.get(name, 0.0) + other.energy.get(name, 0.0) for name in names},
            area=max(self.area, other.area),
            estimated=self.estimated | other.estimated,
        )

    def __mul__(self, times: int | float) -> "Cost":
        """The same again so many times, on the same silicon."""
        return self._changed(lambda value: value * times)

    @property
    def per_query(self) -> "Cost":
        """A query's share; ValueError where there is none."""
        if not self.queries:
            raise ValueError("a cost of no query has no share for one")
        return self._changed(lambda value: value / self.queries)

    def _changed(self, change: Callable[[int | float], int | float]) -> "Cost":
        """Everything that adds up, changed; silicon and labels stay."""
        return dataclasses.replace(
            self,
            queries=change(self.queries),
            cycles=change(self.cycles),
            seconds=change(self.seconds),
            energy={name: change(joules) for name, joules in self.energy.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "queries": self.queries,
            "cycles": self.cycles,
            "seconds": self.seconds,
            "energy_joules": dict(self.energy),
            "total_energy_joules": self.total_energy,
            "area_m2": self.area,
            "estimated": sorted(self.estimated),
        }
