"""Hardware and workloads to and from plain dictionaries, which YAML and JSON files hold."""

import dataclasses
from typing import Any

import numpy as np

from a3_jax.cost import quantities
from a3_jax.cost.hardware import CHOICES, Hardware
from a3_jax.cost.modules import FIGURES, MODULE_NAMES, Module
from a3_jax.cost.quantities import (
    keys_of,
    read_choice,
    read_count,
    read_number,
    read_quantity,
    require_known,
    require_mapping,
    write_quantity,
)
from a3_jax.cost.workload import Workload

_UNITS = {
    "clock": quantities.FREQUENCY,
    "node": quantities.LENGTH,
    "dram_bandwidth": quantities.BANDWIDTH,
    "dram_energy": quantities.ENERGY_PER_BYTE,
    "host_sort_time": quantities.TIME,
    "host_sort_power": quantities.POWER,
}
_MODULE_UNITS = {"area": quantities.AREA, "dynamic_power": quantities.POWER, "static_power": quantities.POWER}
_COUNTS = [
    field.name
    for field in dataclasses.fields(Hardware)
    if field.name not in (*_UNITS, *CHOICES, "count_sign_bit", "given_modules")
]
_WORKLOAD_KEYS = ["n", "M", "C", "K", "queries", "queries_per_key", "origin"]
_GIVEN = "given in a file"


def hardware_from_dict(mapping: object) -> Hardware:
    """Hardware from the names of its fields; what is left out is as in the paper, or follows from Table I.

    Quantities carry their unit in the key: `clock_ghz`, `node_nm`, `dram_bandwidth_gb_per_s`, `dram_energy_pj_per_byte`,
    `host_sort_time_us`, `host_sort_power_mw` and others of their kind. `modules` maps names to `area_mm2`, `dynamic_power_mw`,
    `static_power_mw`, `source` and `estimated` (names of figures); a figure that is left out follows from Table I.

    ValueError, a line, for an unknown key, a missing or wrong unit, a negative or senseless number, and all that `Hardware` refuses.
    """
    plain = require_mapping(mapping, "hardware")
    quantity = {name: read_quantity(plain, name, kinds, "hardware") for name, kinds in _UNITS.items()}
    units = [key for name, kinds in _UNITS.items() for key in keys_of(name, kinds)]
    require_known(plain, [*_COUNTS, "count_sign_bit", *CHOICES, *units, "modules"], "hardware")
    given: dict[str, Any] = {name: value for name, value in quantity.items() if value is not None}
    for name in _COUNTS:
        if name in plain and not (name == "sram_rows" and plain[name] is None):
            given[name] = read_count(plain[name], f"hardware: {name}")
    for name, choices in (*CHOICES.items(), ("count_sign_bit", (True, False))):
        if name in plain:
            given[name] = read_choice(plain[name], choices, f"hardware: {name}")
    try:
        hardware = Hardware(**given)
    except ValueError as error:
        raise ValueError(f"hardware: {error}") from None
    modules = require_mapping(plain.get("modules", {}), "modules")
    require_known(modules, list(MODULE_NAMES), "modules")
    return dataclasses.replace(
        hardware, given_modules=tuple(_module(name, modules[name], hardware.modules[name]) for name in modules)
    )


def hardware_to_dict(hardware: Hardware, *, all_modules: bool = False) -> dict[str, Any]:
    """What `hardware_from_dict` reads back to an equal value.

    `all_modules` writes the figures of every module, those too that follow from Table I; read back, these count as given and stay
    as they are when n, say, is changed.
    """
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(hardware):
        value = getattr(hardware, field.name)
        if field.name in _UNITS:
            plain |= write_quantity(field.name, value, _UNITS[field.name])
        elif field.name != "given_modules":
            plain[field.name] = value
    modules = hardware.modules.values() if all_modules else hardware.given_modules
    return plain | ({"modules": {module.name: _module_to_dict(module) for module in modules}} if modules else {})


def workload_from_dict(mapping: object) -> Workload:
    """A workload from its fields; n, M, C and K are numbers or lists. ValueError as for `hardware_from_dict`."""
    plain = require_mapping(mapping, "workload")
    require_known(plain, _WORKLOAD_KEYS, "workload")
    if "n" not in plain:
        raise ValueError("workload: n is missing: give the rows of the key")
    given = {name: value for name, value in plain.items() if value is not None}
    readers = dict.fromkeys("nMCK", _read_numbers) | {"queries": read_count, "queries_per_key": read_number}
    for name in given.keys() & readers.keys():
        given[name] = readers[name](given[name], f"workload: {name}")
    if "origin" in given:
        read_choice(given["origin"], ("measured", "assumed"), "workload: origin")
    try:
        return Workload(**given)
    except ValueError as error:
        raise ValueError(f"workload: {error}") from None


def workload_to_dict(workload: Workload) -> dict[str, Any]:
    """What `workload_from_dict` reads back."""
    plain = {name: getattr(workload, name) for name in _WORKLOAD_KEYS}
    return {
        name: np.asarray(value).tolist() if name in ("n", "M", "C", "K") else value
        for name, value in plain.items()
        if value is not None
    }


def _module(name: str, mapping: object, derived: Module) -> Module:
    where = f"modules: {name}"
    plain = require_mapping(mapping, where)
    figures = {figure: read_quantity(plain, figure, _MODULE_UNITS[figure], where) for figure in FIGURES}
    units = [key for figure, kinds in _MODULE_UNITS.items() for key in keys_of(figure, kinds)]
    require_known(plain, [*units, "source", "estimated"], where)
    given = {figure: value for figure, value in figures.items() if value is not None}
    estimated = plain.get("estimated", sorted(derived.estimated - set(given)))
    if not isinstance(estimated, list) or not all(isinstance(figure, str) for figure in estimated):
        raise ValueError(f"{where}: estimated should be a list of {', '.join(FIGURES)}, got {estimated!r}")
    rest = [figure for figure in FIGURES if figure not in given]
    source = f"{', '.join(given)} {_GIVEN}; {derived.source}" if rest and given else _GIVEN if given else derived.source
    return dataclasses.replace(
        derived, **given, source=str(plain.get("source", source)), estimated=frozenset(estimated)
    )


def _module_to_dict(module: Module) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for figure in FIGURES:
        plain |= write_quantity(figure, getattr(module, figure), _MODULE_UNITS[figure])
    return plain | {"source": module.source, "estimated": sorted(module.estimated)}


def _read_numbers(value: object, where: str) -> Any:
    """A number, whole where it was, or an array of them."""
    if isinstance(value, list):
        return np.array([_read_numbers(entry, where) for entry in value])
    number = read_number(value, where)
    return value if isinstance(value, int) else number
