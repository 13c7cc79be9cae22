"""What `--over` says: `M=20:320:20` (from, to and with, step), `T=5,10`, `M=n/2,n/8`, `units=1,2,4`, `clock_ghz=0.5:2:0.5`."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from a3_jax.cli.simulation import count_of
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.plain import hardware_from_dict, hardware_to_dict

WORKLOAD_NAMES = ("n", "M", "C", "K", "T")
_MOST_POINTS = 100_000


@dataclasses.dataclass(frozen=True)
class Axis:
    """One name, and its values as they were written or counted."""

    name: str
    values: tuple[str, ...]


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """Of all `--over`. ValueError for an unknown name, one that is there twice, a bad list or range, or more than 100,000 points."""
    axes = [_parse(text) for text in texts]
    names = [axis.name for axis in axes]
    if repeated := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ValueError(f"--over {repeated[0]} is there twice")
    points = math.prod(len(axis.values) for axis in axes)
    if points > _MOST_POINTS:
        raise ValueError(f"that would be {points:,} points: {_MOST_POINTS:,} is the most")
    return axes


def points_of(axes: Sequence[Axis]) -> Iterator[dict[str, str]]:
    """All combinations, the last axis fastest."""
    for values in itertools.product(*(axis.values for axis in axes)):
        yield dict(zip((axis.name for axis in axes), values, strict=True))


def changed_hardware(hardware: Hardware, changes: Mapping[str, str]) -> Hardware:
    """With other values by the names that a file has, `units` or `clock_mhz` say. ValueError as for a file."""
    if not changes:
        return hardware
    plain = hardware_to_dict(hardware)
    for name, text in changes.items():
        field = _field_of(name)
        plain = {key: value for key, value in plain.items() if _field_of(key) != field} | {name: plain_value(text)}
    return hardware_from_dict(plain)


def _field_of(name: str) -> str | None:
    """Of `clock_ghz` it is `clock`; None for what hardware has not. Of several the longest: `dram_energy_pj_per_byte`."""
    fields = [field.name for field in dataclasses.fields(Hardware) if field.name != "given_modules"]
    return max((field for field in fields if name == field or name.startswith(field + "_")), key=len, default=None)


def plain_value(text: str) -> int | float | bool | str:
    """As a YAML file would have it."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _parse(text: str) -> Axis:
    name, equals, values = text.partition("=")
    name = name.strip()
    if not equals or not values.strip():
        raise ValueError(f"--over should be like M=20:320:20 or units=1,2,4, got {text!r}")
    if name not in WORKLOAD_NAMES and _field_of(name) is None:
        known = [*WORKLOAD_NAMES, *(key for key in hardware_to_dict(Hardware()) if key != "n")]
        raise ValueError(f"--over: unknown name {name!r}: known are {', '.join(known)}")
    parts = [part.strip() for part in values.split(",")]
    if "" in parts:
        raise ValueError(f"--over {name}: there is nothing between two commas of {values!r}")
    expanded = [value for part in parts for value in (_range(name, part) if ":" in part else [part])]
    for value in expanded if name in WORKLOAD_NAMES else ():
        try:
            count_of(value, 1.0)
        except ValueError as error:
            raise ValueError(f"--over {name}: {error}") from None
    return Axis(name, tuple(dict.fromkeys(expanded)))


def _range(name: str, text: str) -> list[str]:
    """`first:last:step` with the last one in it, if a step ends there; without a step by 1."""
    try:
        numbers = [float(part) for part in text.split(":")]
        first, last, step = numbers if len(numbers) == 3 else (*numbers, 1.0)
    except ValueError:
        raise ValueError(f"--over {name}: a range is first:last:step, got {text!r}") from None
    if not (step > 0 and first <= last and all(map(math.isfinite, (first, last, step)))):
        raise ValueError(f"--over {name}: a range goes up in steps above 0, got {text!r}")
    count = math.floor((last - first) / step * (1 + 1e-12)) + 1
    if count > _MOST_POINTS:
        raise ValueError(f"--over {name}: {text!r} has {count:,} values: {_MOST_POINTS:,} is the most")
    return [f"{first + step * index:.12g}" for index in range(count)]
