"""The accelerator's parameters: Table I, memories, and what is refused."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest

from a3_jax.cost.hardware import Hardware
from a3_jax.cost.modules import Module, table_1

ROOT = Path(__file__).parents[2]


def test_table_1_adds_up_to_the_printed_totals():
    """2.082 mm^2, 98.92 mW and 11.502 mW; to the last digit of what is printed."""
    modules = Hardware().modules.values()
    assert round(math.fsum(module.area for module in modules) * 1e6, 3) == 2.082
    # The column adds up to 98.917, which is printed with two digits.
    assert round(math.fsum(module.dynamic_power for module in modules) * 1e3, 2) == 98.92
    assert round(math.fsum(module.static_power for module in modules) * 1e3, 3) == 11.502
    assert all("Table I" in module.source and not module.estimated for module in modules)


def test_a_row_of_table_1():
    output = table_1()["output"]
    assert (output.area, output.dynamic_power, output.static_power) == (0.062e-6, 50.918e-3, 0.070e-3)


def test_memories_with_and_without_the_sign():
    """20 KB and 40 KB as in Table I are i + f bits; with sign and a ninth bit of the row 22.5 and 45."""
    bare = Hardware().memory_bytes
    assert (bare["key_memory"], bare["value_memory"], bare["sorted_memory"]) == (20480, 20480, 40960)
    signed = Hardware(count_sign_bit=True).memory_bytes
    assert (signed["key_memory"], signed["sorted_memory"]) == (22.5 * 1024, 45 * 1024)
    assert Hardware(sram_rows=160).memory_bytes["key_memory"] == 10240


def test_a_given_module_replaces_table_1s():
    mine = Module(name="output", area=1.0, dynamic_power=2.0, static_power=3.0, source="mine")
    hardware = Hardware(given_modules=(mine,), n=640)
    assert hardware.modules["output"] == mine
    assert list(hardware.modules) == list(table_1())
    assert dataclasses.replace(hardware, n=320).modules == table_1() | {"output": mine}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"n": 0}, "n should be at least 1, got 0"),
        ({"d": -64}, "d should be at least 1"),
        ({"queue_depth": 0}, "queue_depth should be at least 1"),
        ({"refill_latency": 0}, "refill_latency should be at least 1"),
        ({"lanes": 0}, "lanes should be at least 1"),
        ({"fraction_bits": -1}, "fraction_bits should be at least 0"),
        ({"integer_bits": 0, "fraction_bits": 0}, "integer_bits \\+ fraction_bits should be at least 1"),
        ({"clock": 0.0}, "clock should be above 0"),
        ({"clock": math.inf}, "clock should be above 0 and finite"),
        ({"dram_energy": -1.0}, "dram_energy should be at least 0"),
        ({"host_sort_time": math.nan}, "host_sort_time should be at least 0"),
        ({"sram_rows": 0}, "sram_rows should be at least 1"),
        ({"given_modules": (table_1()["output"],) * 2}, "given_modules should be distinct"),
    ],
)
def test_what_is_no_hardware_is_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        Hardware(**fields)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"name": "cache"}, "a module is one of dot_product"),
        ({"area": -1.0}, "area of output should be at least 0"),
        ({"static_power": math.nan}, "static_power of output"),
        ({"estimated": frozenset({"colour"})}, "output has no figure 'colour'"),
    ],
)
def test_what_is_no_module_is_refused(fields, complaint):
    good = {"name": "output", "area": 1.0, "dynamic_power": 1.0, "static_power": 1.0, "source": "here"}
    with pytest.raises(ValueError, match=complaint):
        Module(**good | fields)


def test_the_cost_model_needs_no_jax():
    code = (
        "import sys, types; package = types.ModuleType('a3_jax'); package.__path__ = ['a3_jax']; "
        "sys.modules['a3_jax'] = package; "  # without what its __init__ imports
        "import a3_jax.cost.closed_form, a3_jax.cost.pipeline, a3_jax.cost.plain; "
        "sys.exit('jax' in sys.modules or 'numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
