"""Blocks of edges: checked value by value, against plain loops; and what is added to them or dropped."""

import collections
import math

import numpy as np
import pyarrow as pa
import pytest

from ginex_jax.ingest import edge_blocks
from ginex_jax.ingest.edge_blocks import (
    BadRow,
    EdgeBlock,
    RawEdgeBlock,
    clean,
    in_memory_edges,
    self_loops,
    shown,
    with_reverse,
    without_self_loops,
)

RNG = np.random.default_rng(0)
SOURCES, TARGETS = RNG.integers(0, 1000, (2, 537))
WEIGHTS = RNG.random(537, np.float32)


def joined(blocks):
    return [
        None if any(column is None for column in columns) else np.concatenate(columns).tolist()
        for columns in zip(*blocks, strict=True)
    ]


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1.0, 1e300, None, "nan", "-inf", "heavy", ""])
def test_bad_weights(weight):
    raw = RawEdgeBlock(np.arange(3), np.arange(3), np.array([1.0, weight, 0.0], object), "mine", 11)
    with pytest.raises(
        ValueError, match=r"^mine row 12 .counting from 1.: value .* of weight: it should be finite in float32"
    ):
        clean(raw, num_nodes=None, skip_bad_rows=False)
    assert joined([clean(raw, num_nodes=None, skip_bad_rows=True)]) == [[0, 2], [0, 2], [1, 0]]


def test_arrays_in_memory():
    blocks = list(in_memory_edges(SOURCES, TARGETS, WEIGHTS, edges_per_block=100))
    assert [block.first_row for block in blocks] == [1, 101, 201, 301, 401, 501]
    cleaned = [clean(block, num_nodes=1000, skip_bad_rows=False) for block in blocks]
    assert joined(cleaned) == [SOURCES.tolist(), TARGETS.tolist(), WEIGHTS.tolist()]


def test_reversed_edges_follow_their_edges_wherever_blocks_begin():
    sources, targets = RNG.integers(0, 5, (2, 40))
    weights = RNG.random(40, np.float32)
    expected = []
    for source, target, weight in zip(sources, targets, weights, strict=True):
        expected += [(source, target, weight)] + ([(target, source, weight)] if source != target else [])
    whole = EdgeBlock(sources, targets, weights)
    for size in (1, 7, 40):
        parts = [EdgeBlock(*(column[i : i + size] for column in whole)) for i in range(0, 40, size)]
        assert list(zip(*joined(map(with_reverse, parts)), strict=True)) == expected
    assert with_reverse(EdgeBlock(sources, targets, None)).weights is None


def test_self_loops(monkeypatch):
    monkeypatch.setattr(edge_blocks, "_EDGES_AT_ONCE", 4)
    assert joined(self_loops(10, True)) == [list(range(10)), list(range(10)), [1.0] * 10]
    assert joined(self_loops(3, False)) == [[0, 1, 2], [0, 1, 2], None]
    block = EdgeBlock(np.array([1, 2, 3]), np.array([1, 3, 3]), np.array([1, 2, 3], np.float32))
    assert joined([without_self_loops(block)]) == [[2], [3], [2.0]]
    assert without_self_loops(block._replace(weights=None)).weights is None
    lone = EdgeBlock(np.array([1]), np.array([2]), None)
    assert without_self_loops(lone) is lone


def test_arrays_in_memory_of_different_lengths():
    with pytest.raises(ValueError, match=r"one length, got \[3, 4\]"):
        list(in_memory_edges(np.arange(3), np.arange(4)))


ODD = [0, 1, 9, 10, -1, 1.0, 2.5, math.nan, math.inf, 1e300, None, "3", "03", " 4 ", "+5", "1e0", "6.0", "x", "", "0x1"]


def is_good(value, num_nodes):
    """As a person reads it."""
    try:
        number = float(value)  # float("0x1") is none, and neither is float(None)
    except (TypeError, ValueError):
        return False
    return math.isfinite(number) and number == math.floor(number) and 0 <= number < num_nodes


@pytest.mark.parametrize("kind", ["objects", "text", "alone"])
def test_ids_of_every_kind(kind):
    """Every odd value is kept or dropped as a plain loop would, whatever stands beside it."""
    values = ODD if kind != "text" else [value if value is None else str(value) for value in ODD]
    for chosen in [values] if kind != "alone" else [[value] for value in values]:
        column = pa.array(chosen, pa.string()) if kind == "text" else np.array(chosen, object)
        block = RawEdgeBlock(column, np.arange(len(chosen)), None, "mine", 1)
        skipped = collections.Counter()
        num_nodes = max(10, len(chosen))
        found = clean(block, num_nodes=num_nodes, skip_bad_rows=True, skipped=skipped)
        expected = [(int(float(v)), i) for i, v in enumerate(chosen) if is_good(v, num_nodes)]
        assert list(zip(found.sources.tolist(), found.targets.tolist(), strict=True)) == expected
        assert skipped["edges"] == len(chosen) - len(expected)


def test_the_first_bad_row_is_named_rows_that_could_not_be_split_among_them():
    bad = (BadRow(2, "a,b,c", "3 columns, and the first row has 2"), BadRow(4, "d", "1 column"))
    block = RawEdgeBlock(np.array([1, 2, -3]), np.array([1, 2, 3]), None, "mine", 1, bad)
    assert [block.row_of(index) for index in range(3)] == [1, 3, 5]
    with pytest.raises(ValueError, match=r"^mine row 2 \(counting from 1\): value 'a,b,c': 3 columns"):
        clean(block, num_nodes=9, skip_bad_rows=False)
    with pytest.raises(ValueError, match=r"^mine row 5 \(counting from 1\): value -3 of source"):
        clean(block._replace(first_row=3, bad_rows=()), num_nodes=9, skip_bad_rows=False)


def test_long_values_are_cut():
    assert shown(np.array(["x" * 500], object), 0) == repr("x" * 60 + "...")
    assert shown(pa.array([None, "a"]), 0) == "missing"
    assert shown(np.array([2**64 - 1], np.uint64), 0) == "18446744073709551615"
