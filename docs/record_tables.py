"""Numbers of a record, which is JSON of any shape, as Markdown tables.

What has the same numbers becomes a table: the entries of a list of objects, or of an object of objects. The longer side goes down. A name
that ends in a unit (`_s`, `_bytes_per_s`, `_j`) gives it to the header, with the prefix that suits the largest number of its kind; other
numbers have no unit or carry it in their name. Four digits are shown. What is cut says so.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

MAX_ROWS = 60  # of a table, down; also of the entries of a list of objects that go across
MAX_VALUES = 12  # of a list of numbers or texts
MAX_WIDTH = 110  # numbers of one entry; an entry with more has tables of its own


class Unit(NamedTuple):
    """Its symbol, and how many of it a number of that name counts."""

    symbol: str
    factor: float


UNITS = {
    "bytes_per_s": Unit("B/s", 1),
    "bytes": Unit("B", 1),
    "joules": Unit("J", 1),
    "seconds": Unit("s", 1),
    "s": Unit("s", 1),
    "j": Unit("J", 1),
    "mb": Unit("B", 1e6),
    "ms": Unit("s", 1e-3),
    "us": Unit("s", 1e-6),
}
PREFIXES = {1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "u", 1e-9: "n", 1e-12: "p"}


def tables(value: Any, level: int = 2, title: str = "") -> Iterator[str]:
    """Markdown blocks, headings from `level` on, of which the first is for `title` if there is any."""
    if title:
        yield f"{'#' * min(level, 6)} {title}"
    if isinstance(value, list):
        yield from _of_list(value, level)
        return
    if not isinstance(value, Mapping):
        yield cell(value)
        return
    alone, groups, others = _sorted_out(value)
    if alone:
        yield table(["", "value"], [[name, cell(child, name)] for name, child in alone.items()])
    for group in groups:
        yield from entry_table(list(group), [flat(entry) for entry in group.values()])
    for name, child in others.items():
        yield from tables(child, level + 1, name)


def _sorted_out(value: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Of an object: what goes into its own table, groups of entries with the same numbers, and what needs more than a table."""
    alone: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    others: dict[str, Any] = {}
    for name, child in value.items():
        if not _is_nested(child):
            alone[name] = child
        elif not isinstance(child, Mapping) or not _is_entry(child):
            others[name] = child
        elif group := next((group for group in groups if _are_alike(next(iter(group.values())), child)), None):
            group[name] = child
        else:
            groups.append({name: child})
    for group in [group for group in groups if len(group) == 1]:
        groups.remove(group)
        if len(leaves := flat(group)) <= MAX_VALUES:
            alone |= leaves
        else:
            others |= group
    return alone, groups, others


def _of_list(entries: Sequence[Any], level: int) -> Iterator[str]:
    if not any(isinstance(entry, Mapping | list) for entry in entries):
        yield cell(list(entries))
    elif all(isinstance(entry, list) and not _is_nested(entry) for entry in entries):
        yield from entry_table(None, [{"values": entry} for entry in entries])
    elif all(isinstance(entry, Mapping) and _is_entry(entry) for entry in entries):
        yield from entry_table(None, [flat(entry) for entry in entries])
    else:
        for place, entry in enumerate(entries, 1):
            yield from tables(entry, level + 1, str(place))


def flat(entry: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Numbers, texts and lists of them, with the names of all objects that they are in: {"kl": {"in": 1}} is {"kl: in": 1}."""
    found: dict[str, Any] = {}
    for name, value in entry.items():
        name = f"{before}: {name}" if before else str(name)
        found |= flat(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(x, dict | list) for x in value))


def _is_entry(value: Mapping[str, Any]) -> bool:
    """Whether it fits into a row."""
    leaves = flat(value)
    return len(leaves) <= MAX_WIDTH and not any(_is_nested(leaf) for leaf in leaves.values())


def _are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether half of the names of either are those of the other."""
    names, others = set(flat(one)), set(flat(other))
    return 2 * len(names & others) >= max(len(names), len(others))


def entry_table(names: Sequence[str] | None, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table of entries with (mostly) the same numbers, and how many were cut."""
    quantities = list(dict.fromkeys(name for entry in entries for name in entry))
    shown = entries[:MAX_ROWS]
    labels = [str(name) for name in names or range(1, len(entries) + 1)][:MAX_ROWS]
    columns = {name: column(name, [entry.get(name) for entry in shown]) for name in quantities}
    if len(quantities) <= max(len(shown), 8):
        first = [""] if names else []
        rows = [
            [*([label] if names else []), *(columns[name][1][i] for name in quantities)]
            for i, label in enumerate(labels)
        ]
        yield table([*first, *(columns[name][0] for name in quantities)], rows)
    else:
        yield table(["", *labels], [[header, *cells] for header, cells in columns.values()])
    if len(entries) > len(shown):
        yield f"*{len(entries) - len(shown)} more of {len(entries)} entries are in the record.*"


def column(name: str, values: Sequence[Any]) -> tuple[str, list[str]]:
    """Header and cells of one kind of number, all with the same unit."""
    unit = unit_of(name)
    numbers = [abs(x) for x in values if _is_number(x)]
    if unit is None or not numbers or not all(_is_number(x) or x is None for x in values):
        return name, [cell(value, name) for value in values]
    prefix, scale = _prefix(max(numbers), unit)
    return f"{name} ({prefix}{unit.symbol})", ["" if x is None else number(x * scale) for x in values]


def cell(value: Any, name: str = "") -> str:
    """One value: a number with its unit if its name has one, a list up to `MAX_VALUES`."""
    if isinstance(value, list):
        cut = [f"*and {len(value) - MAX_VALUES} more*"] if len(value) > MAX_VALUES else []
        return ", ".join([cell(x, name) for x in value[:MAX_VALUES]] + cut)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not _is_number(value):
        return "" if value is None else str(value)
    unit = unit_of(name)
    if unit is None:
        return number(value)
    prefix, scale = _prefix(abs(value), unit)
    return f"{number(value * scale)} {prefix}{unit.symbol}"


def number(value: float) -> str:
    """Four digits; whole numbers whole."""
    if isinstance(value, int) or (value == round(value) and abs(value) < 1e15) or 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def unit_of(name: str) -> Unit | None:
    """What a name ends in, or else what it is in: `_s`, `_bytes_per_s`; `_joules_per_query` is in joules."""
    units = "|".join(UNITS)
    for part in reversed(name.split(": ")):
        if found := re.search(rf"(?:^|(?<!per)_)({units})(?:_per_[a-z_]+)?$", part):
            return UNITS[found[1]]
    return None


def _prefix(largest: float, unit: Unit) -> tuple[str, float]:
    """The largest prefix that leaves at least 1 of the largest number, and what to multiply the numbers by."""
    chosen = next((size for size in PREFIXES if largest * unit.factor >= size), 1.0)
    if unit.symbol.startswith("B"):
        chosen = max(chosen, 1.0)  # no thousandths of a byte
    return PREFIXES[chosen], unit.factor / chosen


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    right = [all(row[i] == "" or row[i][0] in "-0123456789" for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if at_right else "---" for at_right in right], *rows]
    return "\n".join(
        "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in line) + " |" for line in lines
    )
