"""Files: what is written is read back, units are meant, and what is wrong is said in a line."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3_jax.cost.hardware import Hardware
from a3_jax.cost.modules import MODULE_NAMES, Module, table_1
from a3_jax.cost.plain import hardware_from_dict, hardware_to_dict, workload_from_dict, workload_to_dict
from a3_jax.cost.workload import Workload

positive = st.floats(1e-15, 1e15)
# Fields, and not the values themselves: the shape checks draw random numbers, which strategies may not.
modules = st.fixed_dictionaries(
    {
        "name": st.sampled_from(MODULE_NAMES),
        "area": positive,
        "dynamic_power": positive,
        "static_power": st.floats(0, 1),
        "source": st.text(max_size=5),
        "estimated": st.sets(st.sampled_from(["area", "static_power"])).map(frozenset),
    }
)
fields = st.fixed_dictionaries(
    {
        "n": st.integers(1, 10**6),
        "fraction_bits": st.integers(1, 20),
        "sram_rows": st.none() | st.integers(1, 1000),
        "count_sign_bit": st.booleans(),
        "buffering": st.sampled_from(["double", "single"]),
        "unit_keys": st.sampled_from(["same", "own"]),
        "sort": st.sampled_from(["host", "chip"]),
        "clock": positive,
        "node": positive,
        "dram_bandwidth": positive,
        "dram_energy": st.floats(0, 1),
        "host_sort_time": st.floats(0, 1),
        "host_sort_power": positive,
    }
)


@given(fields, st.lists(modules, unique_by=lambda module: module["name"], max_size=3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_hardware_is_read_back_to_the_last_bit(fields, given_modules):
    value = Hardware(**fields, given_modules=tuple(Module(**module) for module in given_modules))
    assert hardware_from_dict(json.loads(json.dumps(hardware_to_dict(value)))) == value


def test_the_paper_is_written_as_it_was_printed():
    written = hardware_to_dict(Hardware(), all_modules=True)
    assert written["modules"]["dot_product"] == {
        "area_mm2": 0.098,
        "dynamic_power_mw": 14.338,
        "static_power_mw": 1.265,
        "source": table_1()["dot_product"].source,
        "estimated": [],
    }
    assert (written["clock_ghz"], written["node_nm"]) == (1.0, 40.0)
    assert hardware_from_dict(written).modules == Hardware().modules


def test_nothing_is_the_papers_hardware():
    assert hardware_from_dict({}) == Hardware()


@pytest.mark.parametrize(
    ("mapping", "name", "value"),
    [
        ({"clock_mhz": 500}, "clock", 5e8),
        ({"clock_hz": "1e9"}, "clock", 1e9),  # YAML takes it for text
        ({"node_nm": 28}, "node", 28e-9),
        ({"dram_bandwidth_gb_per_s": 900}, "dram_bandwidth", 9e11),
        ({"dram_energy_pj_per_byte": 31.2}, "dram_energy", 31.2e-12),
        ({"host_sort_time_ns": 4400}, "host_sort_time", 4.4e-6),
        ({"host_sort_power_w": 250}, "host_sort_power", 250.0),
        ({"sram_rows": None}, "sram_rows", None),
    ],
)
def test_units(mapping, name, value):
    assert getattr(hardware_from_dict(mapping), name) == value


def test_figures_that_are_left_out_follow_from_table_1():
    changed = hardware_from_dict({"n": 640, "modules": {"selector": {"dynamic_power_uw": 5}}}).modules["selector"]
    assert changed.dynamic_power == 5e-6
    assert changed.area == Hardware(n=640).modules["selector"].area
    assert changed.estimated == {"area", "static_power"}
    assert changed.source.startswith("dynamic_power given in a file; estimate from")
    cited = hardware_from_dict({"modules": {"output": {"area_mm2": 1, "source": "our layout"}}})
    assert cited.modules["output"].source == "our layout"


@pytest.mark.parametrize(
    ("mapping", "complaint"),
    [
        ([1], "hardware should be a mapping of names to values, got [1]"),
        ({"unit": 2}, "hardware: unknown key 'unit': did you mean 'units'?"),
        ({"modules": {"output": {"colour": 1}}}, "modules: output: unknown key 'colour'"),
        ({"modules": {"outputs": {}}}, "modules: unknown key 'outputs': did you mean 'output'?"),
        ({"modules": {"output": 3}}, "modules: output should be a mapping"),
        ({"modules": None}, "modules should be a mapping"),
        ({"clock": 1}, "hardware: 'clock' should end in its unit: clock_ghz or clock_mhz or clock_hz"),
        ({"clock_mm2": 1}, "hardware: 'clock_mm2' should end in its unit: clock_ghz"),
        ({"modules": {"output": {"area_mw": 1}}}, "modules: output: 'area_mw' should end in its unit: area_mm2"),
        ({"clock_ghz": 1, "clock_hz": 1}, "hardware: clock is given twice, as clock_ghz and clock_hz"),
        ({"clock_ghz": -1}, "hardware: clock_ghz should be a finite number, at least 0, got -1"),
        ({"clock_ghz": 0}, "hardware: clock should be above 0 and finite, got 0.0"),
        ({"clock_ghz": "fast"}, "clock_ghz should be a finite number, at least 0, got 'fast'"),
        ({"clock_ghz": True}, "clock_ghz should be a finite number, at least 0, got True"),
        ({"clock_ghz": "nan"}, "clock_ghz should be a finite number, at least 0, got nan"),
        ({"n": -320}, "hardware: n should be a whole number, at least 0, got -320"),
        ({"n": 0}, "hardware: n should be at least 1, got 0"),
        ({"n": 320.5}, "hardware: n should be a whole number, at least 0, got 320.5"),
        ({"n": True}, "hardware: n should be a whole number"),
        ({"buffering": "triple"}, "hardware: buffering should be double or single, got 'triple'"),
        ({"sort": 3}, "hardware: sort should be host or chip, got 3"),
        ({"count_sign_bit": 1}, "hardware: count_sign_bit should be true or false, got 1"),
        ({"modules": {"output": {"area_mm2": -1}}}, "modules: output: area_mm2 should be a finite number"),
        ({"modules": {"output": {"estimated": "area"}}}, "modules: output: estimated should be a list"),
        ({1: 2}, "hardware: unknown key 1"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(mapping, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        hardware_from_dict(mapping)
    assert "\n" not in str(caught.value)


def test_workloads_are_read_back():
    mapping = {"n": 320, "M": 160, "C": [60, 70], "K": [3.0, 4.0], "queries_per_key": 320, "origin": "measured"}
    read = workload_from_dict(mapping)
    assert read.num_queries == 2
    np.testing.assert_array_equal(read.counts("K"), [3, 4])
    assert workload_to_dict(read) == mapping
    plain = {"n": 20, "queries": 4, "origin": "assumed"}
    assert workload_to_dict(workload_from_dict(plain)) == plain
    assert workload_to_dict(Workload(n=np.array([3, 4]))) == {"n": [3, 4], "origin": "assumed"}


@pytest.mark.parametrize(
    ("mapping", "complaint"),
    [
        ("n", "workload should be a mapping"),
        ({"M": 3}, "workload: n is missing"),
        ({"n": 3, "m": 1}, "workload: unknown key 'm'"),
        ({"n": 3, "C": -1}, "workload: C should be a finite number, at least 0, got -1"),
        ({"n": 3, "C": [1, "x"]}, "workload: C should be a finite number, at least 0, got 'x'"),
        ({"n": 3, "C": 4}, "workload: C should be at most n"),
        ({"n": 3, "C": []}, "workload: C should be finite"),
        ({"n": 3, "queries": 1.5}, "workload: queries should be a whole number"),
        ({"n": 3, "origin": "guessed"}, "workload: origin should be measured or assumed, got 'guessed'"),
    ],
)
def test_wrong_workloads_are_said_in_a_line(mapping, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        workload_from_dict(mapping)
