"""Hardware and workloads from files and flags."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from a3_jax.cli.files import read_mapping, to_yaml
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.plain import hardware_from_dict, hardware_to_dict, workload_from_dict
from a3_jax.cost.workload import Workload

_HEADER = """\
# Hardware for `a3 ... --hardware FILE`; what is left out is as in A3 (HPCA 2020). The unit ends the key: clock_ghz, clock_mhz ...
# Figures of modules given here stay as they are when sizes above are changed. Remove a module, or some of its figures, to have them
# follow from Table I, as estimates.
"""


def read_hardware(file: Path | None) -> Hardware:
    """The paper's hardware, or what a file makes of it. ValueError and OSError name the file."""
    return Hardware() if file is None else _named(file, hardware_from_dict, read_mapping(file))


def hardware_text(hardware: Hardware) -> str:
    """A file that `read_hardware` reads, every module with its figures and their source."""
    return _HEADER + to_yaml(hardware_to_dict(hardware, all_modules=True))


def read_workload(file: Path | None, flags: Mapping[str, Any], hardware: Hardware) -> Workload:
    """Flags that are not None win over the file. ValueError also for what `require_iterations` refuses."""
    given = {name: value for name, value in flags.items() if value is not None}
    mapping = given if file is None else dict(read_mapping(file)) | given
    workload = workload_from_dict(mapping) if file is None else _named(file, workload_from_dict, mapping)
    require_iterations(workload, hardware)
    return workload


def require_iterations(workload: Workload, hardware: Hardware) -> None:
    """ValueError if the selector is asked for more products than there are, n d."""
    if workload.M is None:
        return
    iterations, products = workload.counts("M"), workload.counts("n") * hardware.d
    if (iterations > products).any():
        raise ValueError(f"M should be at most n d = {products.min():g}, got {iterations.max():g}")


def finds_too_many(workload: Workload) -> bool:
    """Whether there are more candidates than iterations, of which each finds at most one: no run counts so, but figures may say so."""
    if workload.M is None or workload.C is None:
        return False
    return bool((workload.counts("C") > workload.counts("M")).any())


def _named(file: Path, build: Any, mapping: Mapping[str, Any]) -> Any:
    try:
        return build(mapping)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
