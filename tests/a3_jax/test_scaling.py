"""Scaling: the identity is Table I, the directions are right, and nothing scaled goes without its label."""

import math

import pytest

from a3_jax.cost.closed_form import performance
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.modules import FIGURES, table_1
from a3_jax.cost.scaling import Geometry, scaled_modules
from a3_jax.cost.workload import Workload

CHANGES = [
    {"n": 640},
    {"d": 128},
    {"magnitude_bits": 16},
    {"sram_rows": 100},
    {"count_sign_bit": True},
    {"queue_depth": 8},
    {"post_scoring_width": 8},
    {"clock": 2e9},
    {"node": 7e-9},
]


def ratios(figure, **fields):
    modules, published = scaled_modules(Geometry(**fields)), table_1()
    return {name: getattr(modules[name], figure) / getattr(published[name], figure) for name in modules}


def test_table_1_is_its_own_scaling():
    assert scaled_modules(Geometry()) == table_1()
    assert Hardware().geometry == Geometry()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_figure_that_is_scaled_says_so(change):
    for module in scaled_modules(Geometry(**change)).values():
        assert module.estimated == set(FIGURES)
        assert next(iter(change)) in module.source


def test_the_rules_of_thumb():
    """From the text of the module: powers of what changes, alone."""
    twice_d = ratios("area", d=128)
    assert twice_d["dot_product"] == twice_d["output"] == pytest.approx(2)
    assert twice_d["key_memory"] == twice_d["sorted_memory"] == pytest.approx(2)
    wide = ratios("dynamic_power", magnitude_bits=17)  # operands of 18 bits, the sign included, in place of 9
    assert wide["dot_product"] == wide["output"] == wide["exponent"] == pytest.approx(4)
    assert wide["key_memory"] == pytest.approx(17 / 8)
    rows = ratios("area", n=640, sram_rows=640)
    assert rows["key_memory"] == pytest.approx(2)
    assert rows["sorted_memory"] == pytest.approx(2 * (8 + 9) / (8 + 8))  # one more bit for a row's number
    assert rows["dot_product"] == pytest.approx(1)
    # Bits that the selector holds or compares at n = 320: 13,824 in queues, 8,640 in scores, 2,304 in comparators.
    assert rows["selector"] == pytest.approx((512 * 28 + 640 * 28 + 2304) / (13824 + 8640 + 2304))
    assert ratios("dynamic_power", sram_rows=1280)["key_memory"] == pytest.approx(2)  # wires: square root of 4
    assert ratios("area", post_scoring_width=32)["post_scoring"] == pytest.approx(2)
    assert ratios("area", count_sign_bit=True)["sorted_memory"] == pytest.approx(45 / 40)


def test_technology_and_clock():
    shrunk = {figure: ratios(figure, node=20e-9) for figure in FIGURES}
    assert list(shrunk["area"].values()) == pytest.approx([0.25] * 8)
    volts = (0.80 + 0.05 * 6 / 8) / (0.95 + 0.05 * 8 / 13)  # 20 nm between 14 and 22, 40 nm between 32 and 45
    assert shrunk["dynamic_power"]["output"] == pytest.approx(0.5 * volts**2)
    assert shrunk["static_power"]["output"] == pytest.approx(0.5 * volts)
    fast = {figure: ratios(figure, clock=2e9) for figure in FIGURES}
    assert fast["dynamic_power"]["selector"] == pytest.approx(2)
    assert fast["area"]["selector"] == fast["static_power"]["selector"] == pytest.approx(1)


def test_half_the_clock_takes_the_same_energy_and_twice_the_time():
    workload = Workload(n=320, M=160, C=66, K=16)
    slow, fast = (performance(Hardware(clock=hertz), workload, pipeline="approximate") for hertz in (5e8, 1e9))
    assert slow.cost.total_energy == pytest.approx(fast.cost.total_energy)
    assert slow.cost.seconds == pytest.approx(2 * fast.cost.seconds)
    assert slow.cost.cycles == fast.cost.cycles


def test_labels_reach_a_sum_of_costs_and_its_json():
    workload = Workload(n=320, M=160, C=66, K=16)
    exact = performance(Hardware(), workload, pipeline="approximate").cost
    scaled = performance(Hardware(node=7e-9), workload, pipeline="approximate").cost
    assert not exact.estimated
    assert {"area", "energy.output", "energy.sorted_memory"} <= scaled.estimated
    assert (exact + scaled).estimated == scaled.estimated
    assert "energy.selector" in (exact + scaled).to_dict()["estimated"]
    assert math.isclose(exact.area, 2.082e-6)


def test_a_given_figure_is_no_estimate():
    given = table_1()["output"]
    cost = performance(Hardware(node=7e-9, given_modules=(given,)), Workload(n=320), pipeline="base").cost
    assert "energy.output" not in cost.estimated
    assert {"energy.dot_product", "area"} <= cost.estimated
