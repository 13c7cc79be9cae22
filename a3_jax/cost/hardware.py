"""Parameters of the accelerator. SI units throughout: seconds, hertz, watts, joules, bytes, metres."""

import dataclasses
import functools
import math
from typing import Literal

from a3_jax.cost.modules import MODULE_NAMES, Module
from a3_jax.cost.scaling import Geometry, scaled_modules

Pipeline = Literal["base", "approximate"]

_POSITIVE_COUNTS = (
    "n",
    "d",
    "queue_depth",
    "refill_latency",
    "selectors",
    "lanes",
    "units",
    "scan_width",
    "post_scoring_width",
    "sorter_width",
)
_COUNTS = ("integer_bits", "fraction_bits", "division_latency", "mac_latency", "exponent_latency")
_POSITIVE_NUMBERS = ("clock", "node", "dram_bandwidth")
_NUMBERS = ("dram_energy", "host_sort_time", "host_sort_power")
CHOICES = {"buffering": ("double", "single"), "sort": ("host", "chip"), "unit_keys": ("same", "own")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """One accelerator; the defaults are the one of the paper (sections III, V and VI, Table I).

    Attributes:
      n: rows that registers and row ids are made for.
      d: columns.
      integer_bits, fraction_bits: i and f of the inputs, without the sign.
      sram_rows: rows of each memory, None for n. What is beyond is read from DRAM.
      count_sign_bit: whether a word in memory has the sign's bit. Table I's 20 KB are 320 x 64 words of i + f = 8 bits, without.
      queue_depth: c, products that wait in a column's queue. As many rounds, a cycle each, fill the queues for a query.
      refill_latency: cycles from a pop until the product that takes its place can be compared. Queues that are as deep never run
        dry; in shallower ones an iteration waits now and then, which only the selector's simulation can tell.
      selectors: selectors of a unit; they take queries in turn.
      lanes: rows a cycle of the dot product, exponent and output modules.
      scan_width, post_scoring_width: entries a cycle of the scan for candidates, and of post-scoring.
      division_latency, mac_latency: cycles at the end of the output module.
      exponent_latency: cycles through the exponent module: subtract, look up, multiply.
      buffering: of what a stage hands to the next: two buffers, so that both work at once, or a single one.
      units: copies of the whole pipeline.
      unit_keys: whether units hold the same keys and take any query, or each its own (heads) and takes its turn.
      clock: hertz.
      node: feature size of the technology in metres.
      dram_bandwidth: bytes a second, for all units together.
      dram_energy: joules a byte; 20 pJ a bit, an estimate that is not the paper's.
      sort: where keys are sorted, on the host or by a sorter of `sorter_width` words a cycle on the chip (ours, an estimate).
      host_sort_time: seconds to sort the columns of an n x d key. The default follows from "24 %" (section VI): a query of BERT with
        M = 40 takes 40 + c cycles without and that / 0.76 with its share, 1/320, of a sort.
      host_sort_power: watts of the host meanwhile; 0 leaves it out, as the paper does.
      given_modules: modules with figures of their own; all others follow from Table I (see `modules`).
    """

    n: int = 320
    d: int = 64
    integer_bits: int = 4
    fraction_bits: int = 4
    sram_rows: int | None = None
    count_sign_bit: bool = False
    queue_depth: int = 4
    refill_latency: int = 4
    selectors: int = 1
    lanes: int = 1
    scan_width: int = 16
    post_scoring_width: int = 16
    division_latency: int = 7
    mac_latency: int = 2
    exponent_latency: int = 3
    buffering: Literal["double", "single"] = "double"
    units: int = 1
    unit_keys: Literal["same", "own"] = "same"
    clock: int | float = 1e9
    node: int | float = 40e-9
    dram_bandwidth: int | float = 25.6e9
    dram_energy: int | float = 160e-12
    sort: Literal["host", "chip"] = "host"
    sorter_width: int = 16
    host_sort_time: int | float = (44 / 0.76 - 44) * 320e-9
    host_sort_power: int | float = 0.0
    given_modules: tuple[Module, ...] = ()

    def __post_init__(self) -> None:
        """ValueError, with the field's name, for what no hardware can be."""
        for name in _POSITIVE_COUNTS:
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in _COUNTS:
            _require(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in _POSITIVE_NUMBERS:
            _require(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "above 0 and finite")
        for name in _NUMBERS:
            _require(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "at least 0 and finite")
        for name, choices in CHOICES.items():
            _require(name, getattr(self, name), getattr(self, name) in choices, " or ".join(choices))
        if self.sram_rows is not None:
            _require("sram_rows", self.sram_rows, self.sram_rows >= 1, "at least 1")
        _require("integer_bits + fraction_bits", self.magnitude_bits, self.magnitude_bits >= 1, "at least 1")
        names = [module.name for module in self.given_modules]
        if len(set(names)) < len(names):
            raise ValueError(f"given_modules should be distinct, got {', '.join(names)}")

    @property
    def magnitude_bits(self) -> int:
        """Bits of an input without its sign."""
        return self.integer_bits + self.fraction_bits

    @property
    def geometry(self) -> Geometry:
        """What the figures of the modules depend on."""
        return Geometry(
            n=self.n,
            d=self.d,
            magnitude_bits=self.magnitude_bits,
            sram_rows=self.n if self.sram_rows is None else self.sram_rows,
            count_sign_bit=self.count_sign_bit,
            queue_depth=self.queue_depth,
            post_scoring_width=self.post_scoring_width,
            clock=self.clock,
            node=self.node,
        )

    @property
    def row_bytes(self) -> float:
        """Of a row of the key or of the value."""
        return self.d * self.geometry.word_bits / 8

    @property
    def entry_bytes(self) -> float:
        """Of a sorted value with its row."""
        return self.geometry.entry_bits / 8

    @property
    def memory_bytes(self) -> dict[str, float]:
        """By module. By default 20,480 for keys, as many for values, 40,960 for sorted keys; each 9/8 of it with the sign."""
        rows = self.geometry.sram_rows
        plain = rows * self.row_bytes
        return {"key_memory": plain, "value_memory": plain, "sorted_memory": rows * self.d * self.entry_bytes}

    @functools.cached_property
    def modules(self) -> dict[str, Module]:
        """Modules by name, in Table I's order: those given, and Table I, scaled where this is not its hardware, for the others."""
        return scaled_modules(self.geometry) | {module.name: module for module in self.given_modules}

    @property
    def copies(self) -> dict[str, int]:
        """How often a unit has each module. A selector reads a sorted memory of its own; wider reads of the others cost nothing here."""
        per_lane = ("dot_product", "exponent", "output", "post_scoring")
        per_selector = ("selector", "sorted_memory")
        return {
            name: self.lanes if name in per_lane else self.selectors if name in per_selector else 1
            for name in MODULE_NAMES
        }


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} should be {wanted}, got {value!r}")
