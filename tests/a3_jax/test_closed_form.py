"""Throughput, latency, energy and area by formula: against what the paper prints, and formulas written out by hand.

The paper's figures: throughput and energy efficiency over the base pipeline are printed (sections VI-C and VI-D), latency is read off
figure 14, C off figure 11 and K off the bars of figure 15. BERT pays 1/320 of a sort a query.
"""

import json
import math

import numpy as np
import pytest

from a3_jax.cost.closed_form import performance
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.stages import latency_constant, stage_constants, stage_cycles
from a3_jax.cost.workload import Workload

# n, M, C, K, queries a key; throughput, latency and energy over the base pipeline.
PAPER = {
    "kv_memn2n conservative": (186, 186 / 2, 0.364 * 186, 18.4, None, 2.01, 2.63, 2.89),
    "kv_memn2n aggressive": (186, 186 / 8, 0.112 * 186, 6.7, None, 7.03, 7.36, 9.86),
    "bert conservative": (320, 320 / 2, 0.205 * 320, 15.7, 320, 1.85, 3.35, 3.74),
    "bert aggressive": (320, 320 / 8, 0.093 * 320, 7.5, 320, 5.69, 8.21, 11.65),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_ratios(name):
    n, M, C, K, queries_per_key, throughput, latency, energy = PAPER[name]
    base = performance(Hardware(), Workload(n=n), pipeline="base")
    workload = Workload(n=n, M=M, C=C, K=K, queries_per_key=queries_per_key)
    ours = performance(Hardware(), workload, pipeline="approximate")
    assert ours.throughput / base.throughput == pytest.approx(throughput, rel=0.02)
    assert base.latency / ours.latency == pytest.approx(latency, rel=0.05)
    assert base.cost.total_energy / ours.cost.total_energy == pytest.approx(energy, rel=0.02)
    assert not ours.estimated


@pytest.mark.parametrize(("n", "interval", "latency"), [(320, 329, 987), (186, 195, 585), (20, 29, 87), (1, 10, 30)])
def test_the_base_pipeline_takes_n_plus_9(n, interval, latency):
    base = performance(Hardware(), Workload(n=n), pipeline="base")
    assert (base.interval, base.latency) == (interval, latency)
    assert base.throughput == 1e9 / interval
    assert base.bottleneck == "output"
    assert base.cost.seconds == pytest.approx(interval * 1e-9)


def test_the_base_pipelines_energy_share():
    """Figure 15: 20.1, 0.3, 71.4 and 8.1 %; 22.8 nJ for BERT and 13.3 for KV-MemN2N."""
    cost = performance(Hardware(), Workload(n=320), pipeline="base").cost
    share = {name: 100 * joules / cost.total_energy for name, joules in cost.energy.items()}
    memory = share["key_memory"] + share["value_memory"]
    found = [share["dot_product"], share["exponent"], share["output"], memory]
    assert found == pytest.approx([20.1, 0.3, 71.4, 8.1], abs=0.06)
    assert cost.total_energy == pytest.approx(22.8e-9, rel=0.005)
    kv = performance(Hardware(), Workload(n=186), pipeline="base").cost
    assert kv.total_energy == pytest.approx(13.3e-9, rel=0.005)


def test_energy_of_the_approximate_pipeline_by_hand():
    """M (P_sel + P_sorted) + C (P_dot + P_key) + K (P_exp + P_post + P_out + P_val), milliwatts times nanoseconds."""
    M, C, K = 160, 66, 16
    cost = performance(Hardware(), Workload(n=320, M=M, C=C, K=K), pipeline="approximate").cost
    picojoules = M * (19.48 + 6.1) + C * (14.338 + 2.901) + K * (0.224 + 2.055 + 50.918 + 2.901)
    assert cost.total_energy == pytest.approx(picojoules * 1e-12)
    assert cost.area == pytest.approx(2.082e-6)


def test_stages_and_latency_by_hand():
    hardware, workload = Hardware(), Workload(n=320, M=160, C=66, K=16)
    assert stage_constants(hardware) == {"selector": 4, "dot_product": 7, "exponent": 3, "output": 9}
    assert latency_constant(hardware) == 23
    found = performance(hardware, workload, pipeline="approximate")
    assert found.stage_cycles == {"selector": 164, "dot_product": 73, "exponent": 19, "output": 25}
    assert found.latency == 160 + 66 + 2 * 16 + 23
    assert (found.interval, found.bottleneck) == (164, "selector")
    assert found.utilisation["selector"] == 160 / 164
    assert found.utilisation["key_memory"] == 66 / 164
    assert found.utilisation["value_memory"] == 16 / 164


@pytest.mark.parametrize(
    ("counts", "bottleneck", "interval"),
    [
        ((320, 10, 60, 3), "dot_product", 67),
        ((320, 2, 2, 1), "dot_product", 20 + 7),  # the scan of 320 scores takes 20
        ((320, 60, 60, 60), "output", 69),
        ((320, 300, 300, 0), "dot_product", 307),
    ],
)
def test_the_bottleneck_moves(counts, bottleneck, interval):
    workload = Workload(**dict(zip("nMCK", counts, strict=True)))
    found = performance(Hardware(), workload, pipeline="approximate")
    assert (found.bottleneck, found.interval) == (bottleneck, interval)


def test_post_scoring_takes_16_a_cycle():
    cycles = stage_cycles(Hardware(), Workload(n=320, M=200, C=161, K=2), pipeline="approximate")
    assert cycles["exponent"].tolist() == [11 + 3]


def test_sorting_is_shared_by_the_queries_of_a_key():
    """The "24 %" of section VI: M = 40 takes 44 cycles and, with 1/320 of a sort, 44 / 0.76; about 4.4 us a sort."""
    counts = {"n": 320, "M": 40, "C": 29.8, "K": 7.5}
    ahead = performance(Hardware(), Workload(**counts), pipeline="approximate")
    shared = performance(Hardware(), Workload(**counts, queries_per_key=320), pipeline="approximate")
    assert 1 - shared.throughput / ahead.throughput == pytest.approx(0.24)
    assert shared.latency - ahead.latency == shared.preprocessing == pytest.approx(13.9, abs=0.01)
    alone = performance(Hardware(), Workload(**counts, queries_per_key=1), pipeline="approximate")
    assert alone.bottleneck == "preprocessing"
    assert alone.preprocessing == pytest.approx(4446, abs=1)
    # Base attention sorts nothing.
    assert performance(Hardware(), Workload(n=320, queries_per_key=1), pipeline="base").interval == 329


def test_sorting_on_the_chip_is_an_estimate():
    """9 passes over 320 x 64 words, 16 a cycle."""
    workload = Workload(n=320, M=40, C=29.8, K=7.5, queries_per_key=320)
    found = performance(Hardware(sort="chip"), workload, pipeline="approximate")
    assert found.preprocessing == 9 * 320 * 64 / 16 / 320
    assert {"cycles", "seconds", "area", "energy.sorter"} <= found.cost.estimated
    assert found.cost.area == pytest.approx(2.082e-6 + 0.010e-6)
    assert found.cost.energy["sorter"] == pytest.approx(36 * (2.055e-12 + 16 * 6.1e-12))
    assert "interval" in found.estimated
    other = performance(Hardware(), Workload(n=160, M=40, C=20, K=7, queries_per_key=320), pipeline="approximate")
    assert "cycles" in other.cost.estimated  # a sort of another size than was measured
    measured = Hardware().host_sort_time * 1e9 / 320
    assert other.preprocessing == pytest.approx(measured * (160 * math.log2(160)) / (320 * math.log2(320)))


@pytest.mark.parametrize(
    ("fields", "pipelines"),
    [
        ({}, ()),
        ({"units": 3}, ()),
        ({"lanes": 2}, ("base", "approximate")),
        ({"buffering": "single"}, ("base", "approximate")),
        ({"selectors": 2}, ("approximate",)),
        ({"queue_depth": 3}, ("approximate",)),
        ({"refill_latency": 3}, ()),
        ({"sram_rows": 100}, ("base", "approximate")),
    ],
)
def test_cycles_of_what_the_paper_did_not_build_are_estimates(fields, pipelines):
    workload = Workload(n=320, M=160, C=66, K=16)
    for pipeline in ("base", "approximate"):
        cost = performance(Hardware(**fields), workload, pipeline=pipeline).cost
        assert ("cycles" in cost.estimated) == ("seconds" in cost.estimated) == (pipeline in pipelines)


def test_a_host_that_sorts_takes_energy_if_it_is_said_how_much():
    workload = Workload(n=320, M=40, C=29.8, K=7.5, queries_per_key=320)
    assert "host_sort" not in performance(Hardware(), workload, pipeline="approximate").cost.energy
    powered = performance(Hardware(host_sort_power=250.0), workload, pipeline="approximate").cost
    assert powered.energy["host_sort"] == pytest.approx(250 * Hardware().host_sort_time / 320)


def test_units_share_the_queries_and_add_up_in_silicon():
    workload = Workload(n=320, M=160, C=66, K=16)
    one, seven = (performance(Hardware(units=u), workload, pipeline="approximate") for u in (1, 7))
    assert seven.throughput == pytest.approx(7 * one.throughput)
    assert seven.latency == one.latency
    assert seven.cost.area == pytest.approx(7 * one.cost.area)
    assert seven.cost.total_energy == one.cost.total_energy
    assert seven.utilisation == pytest.approx(one.utilisation)


def test_units_do_not_share_a_sort_on_the_host():
    """One host sorts for all: the cycles of a sort are not divided. Sorters on chips with keys of their own are."""
    workload = Workload(n=320, M=160, C=66, K=16, queries_per_key=320)
    host = performance(Hardware(units=4), workload, pipeline="approximate")
    assert host.interval == pytest.approx(164 / 4 + host.preprocessing)
    own = performance(Hardware(units=4, sort="chip", unit_keys="own"), workload, pipeline="approximate")
    assert own.interval == pytest.approx((164 + 36) / 4)


def test_selectors_and_lanes():
    workload = Workload(n=320, M=160, C=66, K=16)
    two = performance(Hardware(selectors=2), workload, pipeline="approximate")
    assert (two.interval, two.bottleneck) == (82, "selector")
    assert two.utilisation["selector"] == 160 / 164
    three = performance(Hardware(selectors=3), workload, pipeline="approximate")
    assert (three.interval, three.bottleneck) == (73, "dot_product")
    wide = performance(Hardware(selectors=3, lanes=2), workload, pipeline="approximate")
    assert wide.interval == 164 / 3
    assert wide.stage_cycles["dot_product"] == 33 + 7
    assert wide.cost.total_energy == pytest.approx(two.cost.total_energy)
    more = 2 * (0.277 + 0.919) + 0.098 + 0.016 + 0.062 + 0.010
    assert wide.cost.area == pytest.approx((2.082 + more) * 1e-6)
    assert {"cycles", "area"} <= wide.cost.estimated


def test_a_single_buffer_keeps_two_neighbours_from_working_at_once():
    found = performance(Hardware(buffering="single"), Workload(n=320, M=160, C=66, K=16), pipeline="approximate")
    assert (found.interval, found.bottleneck) == (164 + 73, "selector+dot_product")
    two = performance(
        Hardware(buffering="single", selectors=2), Workload(n=320, M=160, C=66, K=16), pipeline="approximate"
    )
    assert two.interval == (164 + 73) / 2
    base = performance(Hardware(buffering="single"), Workload(n=320), pipeline="base")
    assert base.interval == 2 * 329


def test_what_leaks_is_left_out_or_counted():
    """Beyond the paper: 11.502 mW all the time, against some 34 mW on average for conservative BERT."""
    workload = Workload(n=320, M=160, C=65.6, K=15.7, queries_per_key=320)
    without = performance(Hardware(), workload, pipeline="approximate").cost
    counted = performance(Hardware(), workload, pipeline="approximate", static_energy=True).cost
    leaked = counted.total_energy - without.total_energy
    assert leaked == pytest.approx(11.502e-3 * without.seconds)
    assert leaked / without.total_energy == pytest.approx(0.33, abs=0.02)
    pair = performance(Hardware(selectors=2), workload, pipeline="approximate", static_energy=True).cost
    assert pair.energy["selector.static"] == pytest.approx(2 * 5.08e-3 * pair.seconds)
    four = performance(Hardware(units=4), Workload(n=320), pipeline="base", static_energy=True).cost
    one = performance(Hardware(), Workload(n=320), pipeline="base", static_energy=True).cost
    assert four.total_energy == pytest.approx(one.total_energy)


def test_base_streams_what_the_memories_do_not_hold():
    """680 of 1000 rows of key and of value, 64 bytes each, at 10 GB/s: 8,704 cycles at 1 GHz, over 1,009."""
    hardware = Hardware(dram_bandwidth=10e9)
    found = performance(hardware, Workload(n=1000), pipeline="base")
    assert found.interval == pytest.approx(8704)
    assert found.latency == pytest.approx(2 * 8704 + 1009)
    assert found.bottleneck == "dram"
    assert found.cost.energy["dram"] == pytest.approx(680 * 128 * 160e-12)
    assert {"cycles", "seconds", "energy.dram"} <= found.cost.estimated
    fast = performance(Hardware(dram_bandwidth=1e12), Workload(n=1000), pipeline="base")
    assert (fast.interval, fast.bottleneck) == (1009, "output")
    signed = performance(Hardware(dram_bandwidth=10e9, count_sign_bit=True), Workload(n=1000), pipeline="base")
    assert signed.interval == pytest.approx(8704 * 9 / 8)
    two = performance(Hardware(dram_bandwidth=10e9, units=2), Workload(n=1000), pipeline="base")
    assert two.interval == pytest.approx(8704)  # they share the bandwidth


def test_the_approximate_pipeline_streams_its_share():
    """Half the rows lie outside: half of 2 x 300 entries of 16 bits, 100 keys and 20 values of 64 bytes."""
    hardware, counts = Hardware(dram_bandwidth=1e9), {"n": 640, "M": 300, "C": 100, "K": 20}
    found = performance(hardware, Workload(**counts), pipeline="approximate")
    assert found.stage_cycles["dram"] == pytest.approx((2 * 300 * 2 + 100 * 64 + 20 * 64) / 2)
    assert found.bottleneck == "dram"
    assert found.interval == found.stage_cycles["dram"]
    assert found.latency == 3 * found.interval + 20 + 3  # the exponent module reads nothing
    assert "cycles" in found.cost.estimated


def test_queries_that_differ_are_averaged():
    """Mean times, and not the time of the mean: max(K, C / 16) is bent."""
    C, K = np.array([160, 16]), np.array([1, 16])
    found = performance(Hardware(), Workload(n=320, M=200, C=C, K=K), pipeline="approximate")
    assert found.stage_cycles["exponent"] == (10 + 16) / 2 + 3
    # 16 candidates are fewer than the 20 cycles of the scan.
    assert found.latency == 204 + (160 + 20) / 2 + 7 + 13 + 3 + (1 + 16) / 2 + 9
    each = [
        performance(Hardware(), Workload(n=320, M=200, C=c, K=k), pipeline="approximate")
        for c, k in zip(C, K, strict=True)
    ]
    assert found.cost.total_energy == pytest.approx(math.fsum(one.cost.total_energy for one in each) / 2)


def test_everything_reaches_json():
    found = performance(Hardware(node=7e-9), Workload(n=1000, M=9, C=8, K=7, queries_per_key=9), pipeline="approximate")
    written = json.loads(json.dumps(found.to_dict()))
    assert written["bottleneck"] == found.bottleneck
    assert {"cost.area", "cost.energy.output", "interval"} <= set(written["estimated"])


def test_counts_that_are_missing_are_asked_for():
    with pytest.raises(ValueError, match="the approximate pipeline needs [MCK]: give M, C and K"):
        performance(Hardware(), Workload(n=320), pipeline="approximate")
