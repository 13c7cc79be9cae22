"""Table I carried over to other sizes, widths, clocks and technologies: estimates, all of them, and labelled so.

Rules of thumb, each figure against its own in Table I, so that Table I itself comes out exactly. With B = i + f + 1 the bits of an
operand and its sign, and with bits of memory as `Geometry` counts them:

  dot_product, output   d multipliers: d B^2
  exponent              one multiplier: B^2 (its tables, a small part of a small module, are taken along)
  selector              bits held or compared: queues 2 c d (2 B + row bits), scores n (2 B + row bits), comparators 2 d 2 B
  post_scoring          width (2 B + log2 d)
  memories              area and static power: bits; dynamic power: bits read a cycle times the square root of the words they are
                        picked from, the length of the wires

Technology: area as the square of the feature size, dynamic power as feature size times supply voltage squared (capacitance shrinks
with length), static power as feature size times voltage (leakage goes with a transistor's width). The clock does not follow: it is
a parameter, and dynamic power is proportional to it.
"""

import math
from typing import NamedTuple

import numpy as np

from a3_jax.cost.modules import FIGURES, Module, table_1

# Nominal supply voltages of general-purpose logic processes by feature size in metres (ITRS, rounded); between them linear.
_SUPPLY = {
    7e-9: 0.70,
    10e-9: 0.75,
    14e-9: 0.80,
    22e-9: 0.85,
    28e-9: 0.90,
    32e-9: 0.95,
    45e-9: 1.00,
    65e-9: 1.10,
    90e-9: 1.20,
    130e-9: 1.30,
    180e-9: 1.80,
}


class Geometry(NamedTuple):
    """What the figures of a module depend on; the defaults are Table I's. See `Hardware` for the fields."""

    n: int = 320
    d: int = 64
    magnitude_bits: int = 8
    sram_rows: int = 320
    count_sign_bit: bool = False
    queue_depth: int = 4
    post_scoring_width: int = 16
    clock: int | float = 1e9
    node: int | float = 40e-9

    @property
    def word_bits(self) -> int:
        """Bits of an input in memory."""
        return self.magnitude_bits + self.count_sign_bit

    @property
    def row_bits(self) -> int:
        """Bits of a row's number."""
        return max(1, math.ceil(math.log2(self.n)))

    @property
    def entry_bits(self) -> int:
        """Bits of a sorted value with its row. Table I's 40 KB are 16 an entry, one short in both parts where n is 320."""
        return self.word_bits + self.row_bits - (not self.count_sign_bit)

    @property
    def operand_bits(self) -> int:
        """Bits of an input with its sign, whether memory counts it or not."""
        return self.magnitude_bits + 1


class _Sizes(NamedTuple):
    """What grows: silicon, and what switches in a cycle."""

    silicon: float
    switching: float


def scaled_modules(geometry: Geometry) -> dict[str, Module]:
    """Table I for a geometry, by name: as published where it is Table I's own, and estimates, all figures, anywhere else."""
    published = table_1()
    if geometry == Geometry():
        return published
    shrink = geometry.node / Geometry().node
    supply = _supply(geometry.node) / _supply(Geometry().node)
    sizes, reference = _sizes(geometry), _sizes(Geometry())
    modules = {}
    for name, module in published.items():
        silicon = sizes[name].silicon / reference[name].silicon
        switching = sizes[name].switching / reference[name].switching
        modules[name] = Module(
            name=name,
            area=module.area * silicon * shrink**2,
            dynamic_power=module.dynamic_power * switching * shrink * supply**2 * geometry.clock / Geometry().clock,
            static_power=module.static_power * silicon * shrink * supply,
            source=f"estimate from {module.source}; here {_differences(geometry)}",
            estimated=frozenset(FIGURES),
        )
    return modules


def _sizes(geometry: Geometry) -> dict[str, _Sizes]:
    """Silicon and switching of every module in units of its own; only ratios mean anything."""
    n, d, bits = geometry.n, geometry.d, geometry.operand_bits
    product_and_row = 2 * bits + geometry.row_bits
    state = 2 * geometry.queue_depth * d * product_and_row + n * product_and_row + 2 * d * 2 * bits
    row_bits = d * geometry.word_bits
    words = geometry.sram_rows * d
    memory = _Sizes(geometry.sram_rows * row_bits, row_bits * math.sqrt(geometry.sram_rows))
    return {
        "dot_product": _Sizes(d * bits**2, d * bits**2),
        "exponent": _Sizes(bits**2, bits**2),
        "output": _Sizes(d * bits**2, d * bits**2),
        "selector": _Sizes(state, state),
        "post_scoring": _Sizes(*(2 * [geometry.post_scoring_width * (2 * bits + math.log2(d))])),
        "key_memory": memory,
        "value_memory": memory,
        "sorted_memory": _Sizes(words * geometry.entry_bits, geometry.entry_bits * math.sqrt(words)),
    }


def _supply(node: int | float) -> float:
    """Volts; outside the table those of its nearest end."""
    return float(np.interp(node, list(_SUPPLY), list(_SUPPLY.values())))


def _differences(geometry: Geometry) -> str:
    """Names and values that are not Table I's."""
    pairs = zip(geometry._asdict().items(), Geometry(), strict=True)
    return ", ".join(f"{name} = {value:g}" for (name, value), published in pairs if value != published)
