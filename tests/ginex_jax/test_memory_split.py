"""Memory is divided within the budget, whatever it is."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ginex_jax.pipeline.memory_split import Demand, best_split, candidate_splits

DEMAND = Demand(
    graph_bytes=8 << 20,
    list_bytes=64 << 20,
    reserved_bytes=10 << 20,
    row_bytes=512,
    num_rows=1 << 20,
    policy_node_bytes=12,
    policy_slot_bytes=16,
    batch_rows=20_000,
    largest_batch_rows=100_000,
    batch_bytes=300_000,
    padded_batch_bytes=1_000_000,
    num_samplers=2,
    lookahead=True,
    steps=1000,
)


def least(demand: Demand) -> int:
    with pytest.raises(ValueError, match="are the least") as caught:
        candidate_splits(0, demand)
    return int(str(caught.value).split("too few: ")[1].split(" ")[0].replace(",", ""))


@given(
    st.integers(0, 4 << 30), st.booleans(), st.integers(1, 10_000), st.integers(1, 4096), st.sampled_from([0.0, 0.125])
)
def test_no_split_exceeds_the_budget(extra: int, lookahead: bool, steps: int, row_bytes: int, share: float) -> None:
    demand = dataclasses.replace(DEMAND, lookahead=lookahead, steps=steps, row_bytes=row_bytes, spare_share=share)
    budget = least(demand) + extra
    splits = candidate_splits(budget, demand)
    for split in splits:
        assert split.total <= budget
        assert split.spare == int(extra * share)
        assert split.ring_rows >= demand.largest_batch_rows + 2 * demand.batch_rows
        assert split.ring == split.ring_rows * row_bytes
        assert split.cache == split.capacity * row_bytes
        assert split.capacity <= demand.num_rows
        assert 0 <= split.lists <= demand.list_bytes
        assert (split.window >= 1) == lookahead and split.window <= steps
    assert [split.lists for split in splits] == sorted(split.lists for split in splits)


def test_one_byte_less_than_the_least_is_refused_with_the_least() -> None:
    minimum = least(DEMAND)
    assert candidate_splits(minimum, DEMAND)[0].capacity == 0
    with pytest.raises(ValueError, match=f"{minimum:,} are the least"):
        candidate_splits(minimum - 1, DEMAND)


def test_without_a_cache_no_memory_is_kept_for_one() -> None:
    for split in candidate_splits(600 << 20, dataclasses.replace(DEMAND, cached=False)):
        assert split.capacity == split.cache == 0


def test_with_memory_for_everything_everything_is_in_it() -> None:
    split = candidate_splits(8 << 30, DEMAND)[-1]
    assert split.lists == DEMAND.list_bytes
    assert split.capacity == DEMAND.num_rows


def test_the_split_with_the_fewest_reads_wins_and_a_tie_goes_to_the_cache() -> None:
    splits = candidate_splits(600 << 20, DEMAND)
    assert best_split(splits, [5.0, 4.0, 3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0]) is splits[4]
    assert best_split(splits, [3.0] * 9) is splits[0]
