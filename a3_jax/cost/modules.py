"""The blocks of the accelerator and what the paper measured of each."""

import dataclasses

# In the order of Table I. The base pipeline has no selection, so that it needs neither of the two selections nor sorted keys.
MODULE_NAMES = (
    "dot_product",
    "exponent",
    "output",
    "selector",
    "post_scoring",
    "key_memory",
    "value_memory",
    "sorted_memory",
)
BASE_MODULE_NAMES = ("dot_product", "exponent", "output", "key_memory", "value_memory")
FIGURES = ("area", "dynamic_power", "static_power")

_SOURCE = "A3 (HPCA 2020), Table I: 40 nm, 1 GHz, n = 320, d = 64, i = f = 4"
_TABLE_1 = {
    # mm^2, mW while it works, mW always
    "dot_product": (0.098, 14.338, 1.265),
    "exponent": (0.016, 0.224, 0.053),
    "output": (0.062, 50.918, 0.070),
    "selector": (0.277, 19.48, 5.08),
    "post_scoring": (0.010, 2.055, 0.147),
    "key_memory": (0.350, 2.901, 0.987),
    "value_memory": (0.350, 2.901, 0.987),
    "sorted_memory": (0.919, 6.100, 2.913),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """One block: m^2, and watts while it works and always. `estimated` names the figures that nobody measured."""

    name: str
    area: int | float
    dynamic_power: int | float
    static_power: int | float
    source: str
    estimated: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """ValueError for a figure that is negative or not finite, or a name that is not one of `MODULE_NAMES`."""
        if self.name not in MODULE_NAMES:
            raise ValueError(f"a module is one of {', '.join(MODULE_NAMES)}, got {self.name!r}")
        for figure in FIGURES:
            value = getattr(self, figure)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{figure} of {self.name} should be at least 0 and finite, got {value}")
        if unknown := self.estimated - set(FIGURES):
            raise ValueError(f"{self.name} has no figure {min(unknown)!r}: it has {', '.join(FIGURES)}")


def table_1() -> dict[str, Module]:
    """The modules as published, by name."""
    # Digits are moved, not multiplied, so that a file holds the table as it was printed.
    return {
        name: Module(
            name=name,
            area=float(f"{area}e-6"),
            dynamic_power=float(f"{dynamic}e-3"),
            static_power=float(f"{static}e-3"),
            source=_SOURCE,
        )
        for name, (area, dynamic, static) in _TABLE_1.items()
    }
