"""The pipeline stage by stage: against one stepped a cycle at a time, the closed form, and bounds that need no simulation."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a3_jax.cost.closed_form import performance, run_cycles
from a3_jax.cost.hardware import Hardware
from a3_jax.cost.pipeline import run_cost, simulate, simulate_stages
from a3_jax.cost.stages import STAGES
from a3_jax.cost.workload import Workload
from tests.a3_jax.pipeline_oracle import stepped

NAMES = "abcdef"


def random_hardware(rng, **fields):
    choices = {
        "buffering": str(rng.choice(["double", "single"])),
        "unit_keys": str(rng.choice(["same", "own"])),
        "selectors": int(rng.integers(1, 4)),
        "units": int(rng.integers(1, 4)),
        "lanes": int(rng.integers(1, 4)),
        "queue_depth": int(rng.integers(1, 9)),
        "d": int(2 ** rng.integers(0, 8)),
        "scan_width": int(rng.integers(1, 33)),
        "post_scoring_width": int(rng.integers(1, 33)),
        "division_latency": int(rng.integers(0, 12)),
        "exponent_latency": int(rng.integers(0, 6)),
        # In powers of two, so that the cycles of a read are exact and sums come out alike in any order.
        "dram_bandwidth": float(2 ** rng.integers(27, 36)),
        "clock": float(2**30),
        "sram_rows": int(2 ** rng.integers(4, 9)),
        "n": 512,
    }
    return Hardware(**choices | fields)


def random_counts(rng, num_queries):
    """n, M, C, K of as many queries; n a power of two."""
    n = 2 ** rng.integers(3, 10, num_queries)
    candidates = rng.integers(0, n + 1)
    return n, rng.integers(1, 2 * n), candidates, rng.integers(0, candidates + 1)


def uneven_workload(rng, num_queries):
    return Workload(**dict(zip("nMCK", random_counts(rng, num_queries), strict=True)))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 14),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_it_is_the_pipeline_stepped_a_cycle_at_a_time(seed, queries, stages, first, buffers, units, in_turn):
    """Starts, ends, units, and every idle cycle with its cause."""
    longest = np.random.default_rng(seed).integers(1, 12, stages)
    cycles = np.random.default_rng(seed + 1).integers(1, longest + 1, (queries, stages))
    start, finish, unit, idle = stepped(cycles, first, buffers, units, in_turn)
    trace = simulate_stages(
        cycles, stages=tuple(NAMES[:stages]), first_servers=first, buffers=buffers, units=units, in_turn=in_turn
    )
    np.testing.assert_array_equal(trace.start, start)
    np.testing.assert_array_equal(trace.finish, finish)
    np.testing.assert_array_equal(trace.unit, unit)
    for cause, expected in idle.items():
        np.testing.assert_array_equal(trace.accounts[cause], expected, cause)
    in_stage = finish - start
    busy = [[in_stage[unit == which, stage].sum() for stage in range(stages)] for which in range(units)]
    np.testing.assert_array_equal(trace.accounts["busy"], busy)


def test_a_run_by_hand():
    """Two stages of 2 and 3 cycles, then 4 and 1. With two buffers the second query starts at once, with one when the first left."""
    cycles = np.array([[2, 3], [4, 1]])
    double = simulate_stages(cycles, stages=("first", "second"))
    assert double.start.tolist() == [[0, 2], [2, 6]]
    assert double.finish.tolist() == [[2, 5], [6, 7]]
    single = simulate_stages(cycles, stages=("first", "second"), buffers=1)
    assert single.start.tolist() == [[0, 2], [5, 9]]
    assert single.accounts["blocked"].tolist() == [[3, 0]]
    assert single.accounts["starved"].tolist() == [[0, 4]]
    assert single.latencies.tolist() == [5, 5]


@pytest.mark.parametrize("pipeline", ["base", "approximate"])
def test_queries_that_are_alike_end_when_the_closed_form_says(pipeline):
    """150 random accelerators and workloads, fill and drain included, to the last bit."""
    rng = np.random.default_rng(len(pipeline))
    for _ in range(150):
        hardware = random_hardware(rng)
        n, M, C, K = (int(count[0]) for count in random_counts(rng, 1))
        workload = Workload(n=n, M=M, C=C, K=K, queries=int(rng.integers(1, 30)))
        assert simulate(hardware, workload, pipeline=pipeline).total_cycles == run_cycles(
            hardware, workload, pipeline=pipeline
        )


@pytest.mark.parametrize("pipeline", ["base", "approximate"])
def test_alike_queries_come_an_interval_apart(pipeline):
    """total = latency + (queries - 1) interval, where queries are dealt evenly; the text of the requirement, not of `run_cycles`."""
    rng = np.random.default_rng(5)
    for _ in range(80):
        hardware = random_hardware(rng, selectors=1, lanes=1)
        n, M, C, K = (int(count[0]) for count in random_counts(rng, 1))
        rounds = int(rng.integers(1, 30))
        workload = Workload(n=n, M=M, C=C, K=K, queries=rounds * hardware.units)
        found = performance(hardware, workload, pipeline=pipeline)
        expected = found.latency + (rounds - 1) * found.interval * hardware.units
        assert simulate(hardware, workload, pipeline=pipeline).total_cycles == pytest.approx(expected, rel=1e-12)


def test_several_selectors_reach_their_interval():
    hardware, workload = Hardware(selectors=3), Workload(n=320, M=160, C=20, K=4, queries=3 * 400 + 1)
    found = performance(hardware, workload, pipeline="approximate")
    assert found.interval == pytest.approx(164 / 3)
    trace = simulate(hardware, workload, pipeline="approximate")
    assert trace.total_cycles == found.latency + 400 * 164


def test_the_base_pipeline_of_the_paper_has_three_queries_in_flight():
    trace = simulate(Hardware(), Workload(n=320, queries=5), pipeline="base")
    assert trace.start[:, 0].tolist() == [0, 329, 658, 987, 1316]
    assert trace.latencies.tolist() == [987] * 5
    assert trace.total_cycles == 987 + 4 * 329


@given(st.integers(0, 2**32 - 1), st.integers(1, 200))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_measured_run_lies_between_the_mean_and_synchronous_advance(seed, num_queries):
    """The bounds are worked out here again, by loops; the gap above the lower one is what the busiest stage waited."""
    rng = np.random.default_rng(seed)
    hardware = random_hardware(rng, units=1, selectors=int(rng.integers(1, 3)))
    trace = simulate(hardware, uneven_workload(rng, num_queries), pipeline="approximate")
    cycles = trace.finish - trace.start
    spacing = 1 if hardware.buffering == "double" else 2
    servers = np.array([hardware.selectors, 1, 1, 1])
    least = max(
        cycles[:, stage].mean() * num_queries / servers[stage]
        if neighbour == stage
        else (cycles[:, stage] + cycles[:, neighbour]).mean() * num_queries / servers[stage]
        for stage, neighbour in ((s, s + extra) for s in range(4) for extra in range(spacing) if s + extra < 4)
    )
    synchronous = sum(
        max(cycles[(step - s) // spacing, s] for s in range(4) if in_flight(step, s, spacing, num_queries))
        for step in range(spacing * (num_queries - 1) + 4)
        if any(in_flight(step, s, spacing, num_queries) for s in range(4))
    )
    assert trace.least_cycles == pytest.approx(least, rel=1e-12)
    assert trace.synchronous_cycles == pytest.approx(synchronous, rel=1e-12)
    assert least * (1 - 1e-12) <= trace.total_cycles <= synchronous * (1 + 1e-12)
    busiest = max(cycles.sum(0) / servers)
    assert sum(trace.gap.values()) == pytest.approx(trace.total_cycles - busiest, rel=1e-9, abs=1e-6)
    assert min(trace.gap.values()) >= 0


def in_flight(step, stage, spacing, num_queries):
    return step >= stage and (step - stage) % spacing == 0 and (step - stage) // spacing < num_queries


@pytest.mark.parametrize(("selectors", "units", "unit_keys"), list(itertools.product([1, 3], [1, 2], ["same", "own"])))
def test_every_cycle_of_every_stage_has_one_cause(selectors, units, unit_keys):
    rng = np.random.default_rng(3)
    hardware = random_hardware(rng, selectors=selectors, units=units, unit_keys=unit_keys)
    trace = simulate(hardware, uneven_workload(rng, 60), pipeline="approximate")
    everything = sum(trace.accounts.values())
    expected = np.tile(np.array([selectors, 1, 1, 1]) * trace.total_cycles, (units, 1))
    np.testing.assert_allclose(everything, expected, rtol=1e-12)
    assert min(cycles.min() for cycles in trace.accounts.values()) >= 0


def test_units_take_turns_or_whatever_is_next():
    workload = Workload(n=320, M=np.array([160, 10, 10, 10]), C=5, K=2)
    shared = simulate(Hardware(units=2), workload, pipeline="approximate")
    assert shared.unit.tolist() == [0, 1, 1, 1]
    own = simulate(Hardware(units=2, unit_keys="own"), workload, pipeline="approximate")
    assert own.unit.tolist() == [0, 1, 0, 1]


def test_more_of_anything_is_never_slower():
    """Buffers, selectors and lanes on one unit."""
    rng = np.random.default_rng(11)
    for _ in range(20):
        workload, plain = uneven_workload(rng, 50), {"buffering": "single", "selectors": 1, "lanes": 1, "units": 1}
        hardware = random_hardware(np.random.default_rng(0), **plain)
        before = simulate(hardware, workload, pipeline="approximate").total_cycles
        for more in ({"buffering": "double"}, {"selectors": 2}, {"lanes": 2}):
            faster = random_hardware(np.random.default_rng(0), **plain | more)
            assert simulate(faster, workload, pipeline="approximate").total_cycles <= before


def test_the_cost_of_a_run_is_its_cycles_and_everybodys_energy():
    rng = np.random.default_rng(1)
    hardware, workload = Hardware(), uneven_workload(rng, 40)
    trace = simulate(hardware, workload, pipeline="approximate")
    cost = run_cost(hardware, workload, trace, pipeline="approximate")
    assert cost.cycles == pytest.approx(trace.total_cycles)
    assert cost.seconds == pytest.approx(trace.total_cycles * 1e-9)
    assert cost.queries == 40
    # Table I: milliwatts of the output module, a nanosecond a row.
    assert cost.energy["output"] == pytest.approx(50.918e-12 * workload.counts("K").sum())


def test_the_cost_of_a_run_has_its_share_of_the_sort():
    workload = Workload(n=320, M=40, C=30, K=8, queries=320, queries_per_key=320)
    trace = simulate(Hardware(), workload, pipeline="approximate")
    sort = Hardware().host_sort_time * 1e9
    cost = run_cost(Hardware(), workload, trace, pipeline="approximate")
    assert cost.cycles == pytest.approx(40 + 30 + 16 + 23 + 319 * 44 + sort)


def test_a_trace_is_json():
    trace = simulate(Hardware(units=2), uneven_workload(np.random.default_rng(2), 9), pipeline="approximate")
    summary = json.loads(json.dumps(trace.to_dict()))
    assert summary["queries"] == 9
    assert list(summary["stage_cycles"]) == list(STAGES["approximate"])
    assert summary["gap_cycles"].keys() == {"fill", "starved", "blocked", "drain"}


@pytest.mark.parametrize("bad", [{"stages": ("a",)}, {"first_servers": 0}, {"buffers": 0}, {"units": 0}])
def test_what_is_no_pipeline_is_refused(bad):
    with pytest.raises(ValueError, match="a name for each stage"):
        simulate_stages(np.ones((3, 2)), **{"stages": ("a", "b")} | bad)


def test_no_query_is_refused():
    with pytest.raises(ValueError, match="there should be a query"):
        simulate_stages(np.ones((0, 1)), stages=("a",))


def test_runs_of_queries_that_differ_have_no_closed_form():
    with pytest.raises(ValueError, match="simulate these"):
        run_cycles(Hardware(), uneven_workload(np.random.default_rng(0), 9), pipeline="approximate")
