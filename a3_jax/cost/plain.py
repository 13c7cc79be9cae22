"""Hardware and workloads to and from plain dictionaries, which YAML and JSON files hold."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from a3_jax.cost import quantities
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.modules import FIGURES, MODULE_NAMES, Module
from a3_jax.cost.quantities import (
    keys_of,
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
_TEXTS = ("buffering", "unit_keys", "sort")
_COUNTS = [
    field.name
    for field in dataclasses.fields(Hardware)
    if field.name not in (*_UNITS, *_TEXTS, "count_sign_bit", "given_modules")
]
_WORKLOAD_KEYS = ["n", "M", "C", "K", "queries", "queries_per_key", "origin"]
_GIVEN = "given in a file"


def hardware_from_dict(mapping: Mapping[str, Any]) -> Hardware:
    """Hardware from the names of its fields; what is left out is as in the paper, or follows from Table I.

    Quantities carry their unit in the key: `clock_ghz`, `node_nm`, `dram_bandwidth_gb_per_s`, `dram_energy_pj_per_byte`,
    `host_sort_time_us`, `host_sort_power_mw` and others of their kind. `modules` maps names to `area_mm2`, `dynamic_power_mw`,
    `static_power_mw`, `source` and `estimated` (names of figures); a figure that is left out follows from Table I.

    ValueError, a line, for an unknown key, a missing or wrong unit, a negative or senseless number, and all that `Hardware` refuses.
    """
    mapping = require_mapping(mapping, "hardware")
    units = [key for name, kinds in _UNITS.items() for key in keys_of(name, kinds)]
    quantity = {name: read_quantity(mapping, name, kinds, "hardware") for name, kinds in _UNITS.items()}
    require_known(mapping, [*_COUNTS, "count_sign_bit", *_TEXTS, *units, "modules"], "hardware")
    given: dict[str, Any] = {name: value for name, value in quantity.items() if value is not None}
    for name in _COUNTS:
        if name in mapping and not (name == "sram_rows" and mapping[name] is None):
            given[name] = read_count(mapping[name], f"hardware: {name}")
    for name, kind in (*((name, str) for name in _TEXTS), ("count_sign_bit", bool)):
        if name in mapping:
            if not isinstance(mapping[name], kind):
                wanted = "true or false" if kind is bool else "text"
                raise ValueError(f"hardware: {name} should be {wanted}, got {mapping[name]!r}")
            given[name] = mapping[name]
    try:
        plain = Hardware(**given)
    except ValueError as error:
        raise ValueError(f"hardware: {error}") from None
    modules = require_mapping(mapping.get("modules", {}), "modules")
    require_known(modules, list(MODULE_NAMES), "modules")
    return dataclasses.replace(
        plain, given_modules=tuple(_module(name, modules[name], plain.modules[name]) for name in modules)
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


def workload_from_dict(mapping: Mapping[str, Any]) -> Workload:
    """A workload from its fields; n, M, C and K are numbers or lists. ValueError as for `hardware_from_dict`."""
    mapping = require_mapping(mapping, "workload")
    require_known(mapping, _WORKLOAD_KEYS, "workload")
    if "n" not in mapping:
        raise ValueError("workload: n is missing: give the rows of the key")
    given = dict(mapping)
    for name in ("n", "M", "C", "K"):
        if (value := given.get(name)) is not None:
            given[name] = _numbers(value, f"workload: {name}")
    if given.get("queries") is not None:
        given["queries"] = read_count(given["queries"], "workload: queries")
    if given.get("queries_per_key") is not None:
        given["queries_per_key"] = read_number(given["queries_per_key"], "workload: queries_per_key")
    if given.setdefault("origin", "assumed") not in ("measured", "assumed"):
        raise ValueError(f"workload: origin should be measured or assumed, got {given['origin']!r}")
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


def _numbers(value: object, where: str) -> Any:
    if isinstance(value, list):
        return np.array([read_number(entry, where) for entry in value])
    return value if isinstance(value, int) and not isinstance(value, bool) else read_number(value, where)
