"""Costs add up."""

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a3_jax.cost.cost import Cost

# Sums of these are exact, so that equality can be asked for.
numbers = st.integers(0, 2**20).map(float)
costs = st.builds(
    Cost,
    queries=numbers,
    cycles=numbers,
    seconds=numbers,
    area=numbers,
    energy=st.dictionaries(st.sampled_from("abc"), numbers),
    estimated=st.sets(st.sampled_from(["cycles", "energy.a", "area"])).map(frozenset),
)


@given(costs, costs, costs)
def test_sums_are_associative_commutative_and_nothing_changes_nothing(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Cost() == a


@given(costs, costs)
def test_a_sum_has_the_sums_and_every_label(a, b):
    total = a + b
    assert (total.cycles, total.seconds, total.queries) == (
        a.cycles + b.cycles,
        a.seconds + b.seconds,
        a.queries + b.queries,
    )
    assert total.total_energy == a.total_energy + b.total_energy
    assert total.area == max(a.area, b.area)
    assert total.estimated == a.estimated | b.estimated


@given(costs, st.integers(1, 16))
def test_so_many_times_is_so_many_sums(cost, times):
    total = cost
    for _ in range(times - 1):
        total += cost
    assert cost * times == total


def test_a_share():
    total = Cost(queries=3, cycles=987, seconds=3.0, energy={"a": 6.0}, area=2.0, estimated=frozenset({"area"}))
    assert total.per_query == Cost(
        queries=1, cycles=329, seconds=1.0, energy={"a": 2.0}, area=2.0, estimated=frozenset({"area"})
    )
    with pytest.raises(ValueError, match="no query"):
        _ = Cost().per_query


def test_it_cannot_be_changed():
    energy = {"a": 1.0}
    cost = Cost(energy=energy)
    energy["a"] = 2.0
    assert cost.energy["a"] == 1.0
    with pytest.raises(TypeError):
        cost.energy["a"] = 3.0  # pyright: ignore[reportIndexIssue]
    with pytest.raises(AttributeError):
        cost.cycles = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert copy.copy(cost) == cost


@given(costs, costs)
def test_labels_reach_json(a, b):
    written = json.loads(json.dumps((a + b).to_dict()))
    assert written["estimated"] == sorted(a.estimated | b.estimated)
    assert written["total_energy_joules"] == math.fsum(written["energy_joules"].values())


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"cycles": -1}, "cycles"), ({"seconds": math.nan}, "seconds"), ({"energy": {"x": math.inf}}, "energy.x")],
)
def test_what_is_no_cost_is_refused(fields, name):
    with pytest.raises(ValueError, match=f"{name} should be at least 0 and finite"):
        Cost(**fields)
