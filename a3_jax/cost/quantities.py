"""Numbers with a unit, as files hold them: the unit ends the key, as in `area_mm2: 0.098`; inside all is SI.

A number is moved by powers of ten on its decimal digits, so that what is written is what was read: 0.098 mm2 is 9.8e-08 m2, and back.
"""

import contextlib
import difflib
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

# Unit -> power of ten from it to the SI unit, which has 0. The first one is the unit that files are written with.
AREA = {"mm2": -6, "um2": -12, "m2": 0}
POWER = {"mw": -3, "uw": -6, "w": 0}
FREQUENCY = {"ghz": 9, "mhz": 6, "hz": 0}
LENGTH = {"nm": -9, "um": -6, "m": 0}
TIME = {"us": -6, "ns": -9, "ms": -3, "s": 0}
BANDWIDTH = {"gb_per_s": 9, "mb_per_s": 6, "bytes_per_s": 0}
ENERGY_PER_BYTE = {"pj_per_byte": -12, "nj_per_byte": -9, "j_per_byte": 0}

Unit = dict[str, int]


def read_quantity(mapping: Mapping[Any, Any], name: str, units: Unit, where: str) -> float | None:
    """The quantity in SI, or None if it is not there.

    ValueError for a number without a unit or in another kind of unit, for one that is given twice, and for what is no number.
    """
    wrong = [
        key
        for key in mapping
        if str(key) == name or (str(key).startswith(f"{name}_") and key not in keys_of(name, units))
    ]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]!r} should end in its unit: {' or '.join(keys_of(name, units))}")
    given = [unit for unit in units if f"{name}_{unit}" in mapping]
    if len(given) > 1:
        raise ValueError(f"{where}: {name} is given twice, as {' and '.join(f'{name}_{unit}' for unit in given)}")
    if not given:
        return None
    key = f"{name}_{given[0]}"
    return float(Decimal(repr(read_number(mapping[key], f"{where}: {key}"))).scaleb(units[given[0]]))


def write_quantity(name: str, value: int | float, units: Unit) -> dict[str, float]:
    """Key and number, in the first unit; in SI where that would not read back to the last bit."""
    unit, power = next(iter(units.items()))
    written = float(Decimal(repr(float(value))).scaleb(-power))
    if float(Decimal(repr(written)).scaleb(power)) == value:
        return {f"{name}_{unit}": written}
    plain = next(unit for unit, power in units.items() if power == 0)
    return {f"{name}_{plain}": float(value)}


def keys_of(name: str, units: Unit) -> list[str]:
    """The keys that a quantity may have."""
    return [f"{name}_{unit}" for unit in units]


def read_number(value: object, where: str) -> float:
    """A finite number, at least 0; ValueError for anything else. Text that is one is taken: YAML takes 1e9 for text."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, float) or not 0 <= value < math.inf:
        raise ValueError(f"{where} should be a finite number, at least 0, got {value!r}")
    return value


def read_count(value: object, where: str) -> int:
    """A whole number, at least 0 and below 2^31; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{where} should be a whole number, at least 0, got {value!r}")
    if value >= 2**31:
        raise ValueError(f"{where} should be below 2^31")
    return value


def read_choice(value: object, choices: tuple[Any, ...], where: str) -> Any:
    """One of the choices; ValueError for anything else. 1 is not true."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        wanted = " or ".join(str(choice).lower() for choice in choices)
        raise ValueError(f"{where} should be {wanted}, got {value!r}")
    return value


def require_mapping(value: object, where: str) -> Mapping[Any, Any]:
    """The value itself; ValueError unless it maps names to values."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} should be a mapping of names to values, got {value!r}")
    return value


def require_known(mapping: Mapping[Any, Any], known: list[str], where: str) -> None:
    """ValueError for a key that is not known; says which known one is near, or which there are."""
    for key in mapping:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}{_hint(str(key), known)}")


def _hint(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f": did you mean {near[0]!r}?" if near else f": known are {', '.join(known)}"
