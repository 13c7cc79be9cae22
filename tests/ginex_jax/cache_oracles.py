"""Caches by hand: an exhaustive search, and a cache that holds node ids where a real one holds their rows."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from hypothesis import strategies as st

from ginex_jax.belady.steps import CacheStep


def fewest_misses(trace: Sequence[np.ndarray], capacity: int, num_nodes: int, initial: Iterable[int] | None) -> int:
    """Dynamic programming over all contents that the cache can have; None starts from the best of them."""

    def contents(ids: Iterable[int]) -> Iterable[frozenset[int]]:
        ids = sorted(ids)
        return (frozenset(kept) for n in range(min(capacity, len(ids)) + 1) for kept in itertools.combinations(ids, n))

    starts = contents(range(num_nodes)) if initial is None else [frozenset(initial)]
    misses = dict.fromkeys(starts, 0)
    for ids in trace:
        batch, after = frozenset(ids.tolist()), {}
        for held, count in misses.items():
            for kept in contents(held | batch):
                after[kept] = min(after.get(kept, count + len(batch)), count + len(batch - held))
        misses = after
    return min(misses.values())


def replay(
    trace: Sequence[np.ndarray], steps: Sequence[CacheStep], capacity: int, initial: Iterable[int] = ()
) -> tuple[list[int], np.ndarray]:
    """Carries out the steps on an array of "rows"; returns the misses of each batch, and the ids in the slots, -1 for none."""
    slots = np.full(capacity, -1)
    slots[: len(list(initial))] = list(initial)
    misses = []
    for ids, (hits, writes) in zip(trace, steps, strict=True):
        assert hits.dtype == writes.dtype == np.int32
        hit = hits >= 0
        np.testing.assert_array_equal(slots[hits[hit]], ids[hit])
        misses.append(int((~hit).sum()))
        written = writes >= 0
        assert not (written & hit).any()
        assert len(set(writes[written].tolist())) == written.sum()
        slots[writes[written]] = ids[written]
        held = slots[slots >= 0]
        assert len(set(held.tolist())) == len(held)
    return misses, slots


@st.composite
def traces(draw: st.DrawFn, *, most_nodes: int = 6, most_batches: int = 6) -> tuple[list[np.ndarray], int]:
    """A tiny trace, empty ones and empty batches included, and the number of nodes."""
    num_nodes = draw(st.integers(1, most_nodes))
    batch = st.lists(st.integers(0, num_nodes - 1), unique=True, max_size=num_nodes)
    dtype = draw(st.sampled_from([np.int32, np.int64]))
    return [np.array(ids, dtype) for ids in draw(st.lists(batch, max_size=most_batches))], num_nodes


def skewed_trace(
    *, num_nodes: int = 2000, num_batches: int = 40, batch_size: int = 250, exponent: float = 0.8, seed: int = 0
) -> list[np.ndarray]:
    """Popularity falls with a power of the rank, as it does in graphs; ids in no order."""
    rng = np.random.default_rng(seed)
    popularity = np.arange(1, num_nodes + 1) ** -exponent
    names = rng.permutation(num_nodes)
    draws = (np.unique(rng.choice(num_nodes, batch_size, p=popularity / popularity.sum())) for _ in range(num_batches))
    return [names[rng.permutation(ids)] for ids in draws]
