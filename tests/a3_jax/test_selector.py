"""The cycle-level candidate selector against the paper's pseudo-code, and its cycles against queues looked at once a cycle."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from a3_jax.candidates.selection import greedy_scores
from a3_jax.cost.selector import SelectorOptions, simulate_selector
from a3_jax.sorted_keys import sort_keys
from tests.a3_jax.selector_oracles import pseudo_code, queue_cycles, scan_cycles

# Figure 6 of the paper.
KEY = np.array([[-0.6, 0.1, 0.8], [0.1, -0.2, -0.9], [0.8, 0.6, 0.7], [0.5, 0.7, 0.5]], np.float32)
QUERY = np.array([[0.8, -0.3, 0.4]], np.float32)


def random_case(seed, *, integers):
    """Few values, so that ties are everywhere, or many; in units of 0.1, which floats round."""
    rng = np.random.default_rng(seed)
    n, d = rng.integers(1, 10), rng.integers(1, 6)
    largest = rng.choice([1, 4, 200])
    numbers = rng.integers(-largest, largest + 1, (n + 1, d))
    if rng.random() < 0.2:  # no product is positive
        numbers = np.concatenate([-abs(numbers[:-1]), abs(numbers[-1:])])
    numbers = numbers.astype(np.int32) if integers else (numbers * 0.1).astype(np.float32)
    valid = rng.random(n) < rng.choice([0.7, 1])
    return numbers[-1], numbers[:-1], valid, int(rng.integers(1, n * d + 4)), bool(rng.random() < 0.7)


def check_pops(trace, pops, scores):
    assert trace.iterations[0] == len(pops)
    for iteration, pair in enumerate(pops):
        for side, pop in enumerate(pair):
            found = [array[0, side, iteration] for array in (trace.popped_rows, trace.popped_columns)]
            assert found == ([-1, -1] if pop is None else list(pop[:2]))
            assert trace.popped_values[0, side, iteration] == (0 if pop is None else pop[2])
    assert trace.greedy_scores[0].tolist() == [float(score) for score in scores]
    assert trace.candidates[0].tolist() == [score > 0 for score in scores]


def check_cycles(trace, pops, num_valid, d, options):
    cycles, waits = queue_cycles(pops, num_valid, d, depth=options.queue_depth, latency=options.refill_latency)
    fill = int(trace.fill_cycles[0])
    assert trace.pop_cycles[0].tolist() == [fill + cycle for cycle in cycles]
    assert trace.stalls[0].tolist() == waits
    assert trace.stall_cycles[0] == np.sum(waits)
    sent, scanned = scan_cycles(trace.candidates[0].tolist(), options.scan_width)
    start = fill + len(pops) + int(np.sum(waits))
    assert trace.emit_cycles[0].tolist() == [
        start + sent[row] if row in sent else -1 for row in range(len(trace.candidates[0]))
    ]
    assert trace.scan_cycles[0] == scanned
    assert trace.total_cycles[0] == start + scanned


@pytest.mark.parametrize("integers", [False, True])
def test_equals_the_pseudo_code_and_queues_looked_at_once_a_cycle(integers):
    for seed in range(700):
        query, key, valid, num_iterations, skip = random_case(seed, integers=integers)
        depth, latency, width = (int(size) for size in np.random.default_rng(seed).integers(1, 7, 3))
        options = SelectorOptions(
            queue_depth=depth, refill_latency=latency, scan_width=width, fill="own", skip_heuristic=skip
        )
        trace = simulate_selector(query[None], key, valid[None], num_iterations=num_iterations, options=options)
        pops, scores = pseudo_code(query, key, num_iterations, valid=valid, skip=skip)
        check_pops(trace, pops, scores)
        check_cycles(trace, pops, int(valid.sum()), key.shape[1], options)
        if depth >= latency:
            assert trace.stall_cycles[0] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_same_bits_as_the_algorithm(dtype):
    """Shapes that the oracle in Python has not: many queries and iterations of floats that round, and integers full of ties."""
    rng = np.random.default_rng(3)
    queries, key = (rng.normal(size=shape) * 4 for shape in ((200, 16), (48, 16)))
    queries, key = queries.astype(dtype), key.astype(dtype)
    mask = rng.random((200, 48)) < 0.8
    trace = simulate_selector(queries, key, mask, num_iterations=96, options=SelectorOptions(queue_depth=2))

    def scores(query, valid, sorted_keys):
        return greedy_scores(query, sorted_keys, mask=valid, num_iterations=96, implementation="sequential")

    expected = jax.vmap(scores, in_axes=(0, 0, None))(queries, mask, sort_keys(jax.numpy.asarray(key)))
    assert (np.asarray(expected) == trace.greedy_scores).all()
    assert trace.stall_cycles.sum() > 0


def test_worked_example():
    """Figure 6, without the heuristic, which it does not use; iteration by iteration."""
    expected = {1: [-0.48, 0, 0.64, 0], 2: [-0.48, -0.36, 0.64, 0.40], 3: [-0.16, -0.36, 0.64, 0.19]}
    for iterations, scores in expected.items():
        trace = simulate_selector(QUERY, KEY, num_iterations=iterations)
        np.testing.assert_allclose(trace.greedy_scores[0], scores, atol=1e-6)
    assert np.flatnonzero(trace.candidates[0]).tolist() == [2, 3]
    assert trace.popped_rows[0, 0].tolist() == [2, 3, 0]


def test_one_column_that_dominates_stalls_shallow_queues():
    """All maxima in one column: of a queue of 2 that is refilled in 4, two leave and two cycles are lost, again and again."""
    key = np.ones((64, 3), np.int32)
    key[:, 1] = np.arange(100, 164)
    options = SelectorOptions(queue_depth=2, skip_heuristic=False)
    trace = simulate_selector(np.ones((1, 3), np.int32), key, num_iterations=40, options=options)
    assert trace.stalls[0, 0].tolist() == [0, 0] + [2, 0] * 19
    assert trace.busy_cycles[0] == 40 + 38
    deep = simulate_selector(np.ones((1, 3), np.int32), key, num_iterations=40)
    assert deep.stall_cycles[0] == 0
    assert deep.total_cycles[0] == 4 + 40 + deep.scan_cycles[0]


def test_a_minimum_that_is_skipped_is_not_waited_for():
    """One column: the largest product is negative, so that after the first maximum nothing is positive, and no minimum is taken."""
    key = np.array([[-1], [-2], [-3]], np.int32)
    options = SelectorOptions(queue_depth=1, refill_latency=5)
    trace = simulate_selector(np.ones((1, 1), np.int32), key, num_iterations=3, options=options)
    # Nothing positive, nothing negative: 0 does not skip. Then -3 makes the sum negative.
    assert trace.popped_rows[0].tolist() == [[0, 1, 2], [2, -1, -1]]
    assert trace.stalls[0].tolist() == [[0, 4, 4], [0, 0, 0]]


def test_filling():
    """Four rounds of 2d products by the d + d multipliers that other modules lend, or 4d cycles by the selector's two."""
    shared = simulate_selector(QUERY, np.tile(KEY, (5, 1)), num_iterations=3)
    own = simulate_selector(QUERY, np.tile(KEY, (5, 1)), num_iterations=3, options=SelectorOptions(fill="own"))
    assert (shared.fill_cycles[0], shared.borrowed_cycles[0]) == (4, 4)
    assert (own.fill_cycles[0], own.borrowed_cycles[0]) == (12, 0)
    assert own.pop_cycles[0].tolist() == [12, 13, 14]


def test_queries_do_not_touch_each_other():
    rng = np.random.default_rng(0)
    key = rng.normal(size=(9, 5)).astype(np.float32)
    queries = rng.normal(size=(6, 5)).astype(np.float32)
    mask = rng.random((6, 9)) < 0.5
    mask[2] = False
    together = simulate_selector(queries, key, mask, num_iterations=20)
    assert together.iterations.tolist() == np.minimum(20, 5 * mask.sum(1)).tolist()
    assert together.total_cycles[2] == 1  # to scan 9 scores
    for query in range(6):
        alone = simulate_selector(queries[query : query + 1], key, mask[query : query + 1], num_iterations=20)
        stop = alone.iterations[0]
        assert (together.popped_rows[query, :, :stop] == alone.popped_rows[0, :, :stop]).all()
        assert (together.popped_rows[query, :, stop:] == -1).all()
        assert (together.pop_cycles[query, stop:] == -1).all()
        assert (together.emit_cycles[query] == alone.emit_cycles[0]).all()


def test_read_only_and_strided_arrays_are_taken():
    key = np.asfortranarray(KEY)
    key.flags.writeable = False
    again = simulate_selector(np.repeat(QUERY, 2, 1)[:, ::2], key, num_iterations=3)
    assert (again.greedy_scores == simulate_selector(QUERY, KEY, num_iterations=3).greedy_scores).all()


@pytest.mark.parametrize(
    ("queries", "key", "num_iterations", "complaint"),
    [
        (QUERY, KEY.astype(np.int32), 1, "one type, got float32 and int32"),
        (QUERY, KEY, 0, "num_iterations should be at least 1, got 0"),
        (QUERY * np.nan, KEY, 1, "finite"),
        (QUERY, KEY[:0], 1, "0 x 3"),
        (np.full((1, 3), 2**20, np.int32), np.full((4, 3), 2**10, np.int32), 1, "32 bits"),
    ],
)
def test_what_cannot_be(queries, key, num_iterations, complaint):
    with pytest.raises(ValueError, match=complaint):
        simulate_selector(queries, key, num_iterations=num_iterations)


@pytest.mark.parametrize("name", ["queue_depth", "refill_latency", "scan_width"])
def test_sizes_start_at_1(name):
    with pytest.raises(ValueError, match=f"{name} should be at least 1, got 0"):
        SelectorOptions(**{name: 0})


def test_importing_the_selector_leaves_numba_alone():
    program = "import sys, a3_jax.cost.selector; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
