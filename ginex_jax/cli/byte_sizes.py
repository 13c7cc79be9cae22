"""Sizes as people write them: 2GiB, 500MB, 1048576."""

import re

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)},
}
_TOO_MUCH = 2.0**63


def parse_bytes(text: str) -> int:
    """Bytes of a size such as "2GiB" (2^31) or "2 GB" (2e9).

    Raises:
      ValueError: it is not a positive size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    units = {name.lower(): factor for name, factor in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise ValueError(f"a size is a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, got {text!r}")
    size = float(match[1]) * units[match[2].lower()]
    if not 1 <= size < _TOO_MUCH:
        raise ValueError(f"a size should be at least one byte and less than 2^63, got {text[:50]!r}")
    return int(size)
