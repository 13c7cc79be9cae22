"""Numbering of ids against Python's sorted sets."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ginex_jax.ingest import id_mapping
from ginex_jax.ingest.edge_blocks import RawEdgeBlock, clean
from ginex_jax.ingest.edge_files import read_edges
from ginex_jax.ingest.id_mapping import build_mapping
from ginex_jax.ingest.text_search import positions

RNG = np.random.default_rng(0)
PLENTY = 1 << 30


def blocks(sources, targets, size=7):
    return [
        RawEdgeBlock(sources[i : i + size], targets[i : i + size], None, "mine", i + 1)
        for i in range(0, len(sources), size)
    ]


def plain(ids):
    return ids.tolist() if isinstance(ids, np.ndarray) else ids.to_pylist()


@pytest.mark.parametrize("merge_after", [1, 20, 1 << 20])
@pytest.mark.parametrize("kind", ["int64", "int32", "float", "text", "category", "objects", "unicode"])
def test_numbers_ascend_with_ids(monkeypatch, kind, merge_after):
    monkeypatch.setattr(id_mapping, "_WAITING_IDS", merge_after)
    numbers = RNG.integers(-(2**30), 2**30, 60)
    sources, targets = RNG.choice(numbers, (2, 300))
    if kind in ("text", "category", "objects", "unicode"):
        sources, targets = ([f"név {n}" for n in ends] for ends in (sources, targets))
    expected = sorted({*np.asarray(sources).tolist(), *np.asarray(targets).tolist()})
    make = {
        "int64": np.asarray,
        "int32": lambda ids: np.asarray(ids, np.int32),
        "float": lambda ids: np.asarray(ids, float),
        "text": pa.array,
        "category": lambda ids: pa.array(ids).dictionary_encode(),
        "objects": lambda ids: np.array(ids, object),
        "unicode": np.array,
    }[kind]
    given = blocks(make(sources), make(targets))
    mapping = build_mapping(iter(given), PLENTY)
    assert plain(mapping.ids) == expected
    assert mapping.num_nodes == len(expected)
    assert mapping.has_string_ids == (kind in ("text", "category", "objects", "unicode"))
    for block in given:
        applied = mapping.apply(block)
        for before, after in ((block.sources, applied.sources), (block.targets, applied.targets)):
            assert [expected[number] for number in after] == list(before.tolist())
    backwards = build_mapping(reversed(given), PLENTY)
    assert plain(backwards.ids) == expected


@hypothesis.given(st.lists(st.text(max_size=5), max_size=60, unique=True), st.lists(st.text(max_size=5)))
@hypothesis.settings(max_examples=60, deadline=None)
def test_binary_search_of_text(texts, wanted):
    texts = sorted(texts)  # by code points, and so by UTF-8 bytes
    wanted += texts
    found = positions(pa.array(wanted, pa.large_string())[1:], pa.array(["", *texts], pa.large_string())[1:])
    assert found.tolist() == [texts.index(text) if text in texts else -1 for text in wanted[1:]]


def test_text_that_is_whole_numbers_counts_as_numbers(tmp_path):
    (tmp_path / "e.csv").write_text("src,dst\n10,9\n9,-3\n")
    pq.write_table(pa.table({"src": [9], "dst": [100]}), tmp_path / "e.parquet")
    paths = [tmp_path / "e.csv", tmp_path / "e.parquet"]
    mapping = build_mapping(read_edges(paths), PLENTY)
    assert mapping.ids.tolist() == [-3, 9, 10, 100]
    applied = [clean(mapping.apply(block), num_nodes=4, skip_bad_rows=False) for block in read_edges(paths)]
    assert [block.sources.tolist() for block in applied] == [[2, 1], [1]]
    assert [block.targets.tolist() for block in applied] == [[1, 0], [3]]
    assert mapping.numbers_of(np.array(["10", -3], object)).tolist() == [2, 0]


def test_one_text_makes_all_of_them_text():
    mapping = build_mapping(
        [*blocks(pa.array(["007", "b"]), pa.array(["7", "10"])), *blocks(*np.array([[7], [9]]))], PLENTY
    )
    assert plain(mapping.ids) == ["007", "10", "7", "9", "b"]
    assert mapping.numbers_of(np.array([7, 10])).tolist() == [2, 1]
    assert mapping.numbers_of(pa.array(["b", "007"])).tolist() == [4, 0]


def test_what_is_no_id_is_a_bad_row():
    sources = pa.array(["b", None, "", "a", "c"])
    block = RawEdgeBlock(sources, sources[::-1], None, "mine", 1)
    mapping = build_mapping([block], PLENTY)
    assert plain(mapping.ids) == ["a", "b", "c"]
    applied = mapping.apply(block)
    with pytest.raises(ValueError, match="mine row 2 .counting from 1.: value missing of source"):
        clean(applied, num_nodes=3, skip_bad_rows=False)
    assert clean(applied, num_nodes=3, skip_bad_rows=True).sources.tolist() == [1, 2]
    floats = RawEdgeBlock(np.array([1.5, np.nan, 3.0, np.inf]), np.arange(4), None, "mine", 1)
    assert build_mapping([floats], PLENTY).ids.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="row 1 .counting from 1.: value 1.5 of source"):
        clean(build_mapping([floats], PLENTY).apply(floats), num_nodes=4, skip_bad_rows=False)


def test_nodes_without_edges_and_ids_of_no_node():
    mapping = build_mapping(blocks(*np.array([[5], [8]])), PLENTY, [np.array([3, 8], object), np.array([9])])
    assert mapping.ids.tolist() == [3, 5, 8, 9]
    assert mapping.numbers_of(np.array([9, 3, 9])).tolist() == [3, 0, 3]
    assert mapping.numbers_of(np.empty(0, object)).tolist() == []
    with pytest.raises(ValueError, match="id 4 has no edge, and so it is no node; 2 are like it"):
        mapping.numbers_of(np.array([3, 4, 7]))
    with pytest.raises(ValueError, match="id 'x' has no edge"):
        mapping.numbers_of(np.array(["x"], object))
    assert build_mapping([], PLENTY).num_nodes == 0


def test_ids_too_large():
    with pytest.raises(ValueError, match=r"id 18446744073709551615 is above 2\^63 - 1: store such ids as text"):
        build_mapping(blocks(*np.array([[5], [2**64 - 1]], np.uint64)), PLENTY)
    with pytest.raises(ValueError, match="integers or text, got bool"):
        build_mapping(blocks(*np.array([[True], [False]])), PLENTY)


def test_more_ids_than_memory(monkeypatch):
    monkeypatch.setattr(id_mapping, "_WAITING_IDS", 1)
    ids = np.arange(100)
    assert build_mapping(blocks(ids, ids), 2400).num_nodes == 100
    with pytest.raises(ValueError, match=r"at least \d+ distinct ids need 2,\d+ bytes of memory, and 2,399 are given"):
        build_mapping(blocks(ids, ids), 2399)
    texts = pa.array([f"x{i}" for i in ids])
    with pytest.raises(ValueError, match=r"distinct ids need .* and 2,399 are given"):
        build_mapping(blocks(texts, texts), 2399)


@pytest.mark.parametrize("order", [None, np.array([2, 0, 1])])
@pytest.mark.parametrize("ids", [np.array([30, 10, 20]), np.array(["c", "a", "b"])])
def test_written_table(tmp_path, ids, order):
    mapping = build_mapping(blocks(ids, ids), PLENTY)
    mapping.write_parquet(tmp_path / "ids.parquet", order)
    written = pq.read_table(tmp_path / "ids.parquet").column("id").to_pylist()
    assert written == [sorted(ids.tolist())[v] for v in (range(3) if order is None else order)]
