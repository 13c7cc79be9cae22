"""Passages, ranks and the figures of a run, counted by hand; a small encoder in the place of MiniLM."""

import json
from pathlib import Path

import numpy as np
import pytest

from a3_jax.cost.hardware import Hardware
from a3_jax.workloads import retrieval
from a3_jax.workloads.encoder import exact_heads
from a3_jax.workloads.encoder_attention import Setting
from a3_jax.workloads.encoder_files import load_encoder
from a3_jax.workloads.passages import Passage, read_passages, split_sentences
from a3_jax.workloads.retrieval import QueryCounts, embed, ranks_of, retrieve
from a3_jax.workloads.retrieval_report import (
    CONSERVATIVE,
    EXACT,
    quantised_settings,
    report_of,
    run_costs,
    sweep_settings,
    text_rows,
)
from tests.a3_jax.small_encoders import write_encoder

START, END = 1, 2


def by_word(text: str) -> list[int]:
    """A token a word, the number in it."""
    return [START, *(int("".join(filter(str.isdigit, word)) or 0) for word in text.split()), END]


def write_speech(folder: Path, name: str, lengths: list[int]) -> None:
    """Sentences of so many words; the words of sentence s are 100 s, 100 s + 1 and so on."""
    sentences = (
        " ".join(f"W{100 * number + word}" for word in range(length)) + "." for number, length in enumerate(lengths)
    )
    (folder / name).write_text(" ".join(sentences), encoding="utf-8")


def test_sentences() -> None:
    text = 'To the Senate:\n\nPeace reigns. "Is it so?" It is! The 3 per cent. loan of Mr. Gallatin\nwas paid.'
    assert split_sentences(text) == [
        "To the Senate:",
        "Peace reigns.",
        '"Is it so?',
        "It is!",
        "The 3 per cent. loan of Mr.",
        "Gallatin\nwas paid.",
    ]


def test_a_passage_lacks_the_sentence_next_to_its_middle(tmp_path: Path) -> None:
    write_speech(tmp_path, "a.txt", [5, 4, 2, 4, 5, 5, 5, 5, 5])
    found = read_passages(tmp_path, by_word, num_passages=2, tokens=(12, 16), sentence_tokens=(6, 7))
    # Of 5 + 4 + 2 + 4 words without start and end the first is the only one of 4 or 5 ...
    first, second = found
    for passage in found:
        assert 12 <= len(passage.tokens) <= 16
        assert 6 <= len(passage.sentence) <= 7
        assert passage.source == "a.txt"
        assert (passage.tokens[0], passage.tokens[-1]) == (START, END)
        assert not set(passage.tokens[1:-1]) & set(passage.sentence[1:-1])
    assert first.tokens[1:-1] == [*range(5), 200, 201, *range(300, 304)]
    assert first.sentence[1:-1] == [*range(100, 104)]
    # ... and the next passage starts with the next sentence.
    assert second.tokens[1:-1] == [*range(400, 405), *range(600, 605)]
    assert second.sentence[1:-1] == [*range(500, 505)]


def test_of_each_speech_a_few_in_an_order_that_repeats(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        write_speech(tmp_path, name, [5] * 12)
    options = {"tokens": (12, 16), "sentence_tokens": (6, 7), "most_of_a_speech": 2}
    found = read_passages(tmp_path, by_word, num_passages=5, **options)
    assert found == read_passages(tmp_path, by_word, num_passages=5, **options)
    assert sorted(passage.source for passage in found).count(found[-1].source) == 1
    with pytest.raises(ValueError, match="has 6 passages, wanted 7"):
        read_passages(tmp_path, by_word, num_passages=7, **options)
    with pytest.raises(FileNotFoundError, match=r"has no \.txt file"):
        read_passages(tmp_path / "nowhere", by_word)


def test_a_passage_as_near_as_its_own_comes_before_it() -> None:
    passages = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    sentences = np.array([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(ranks_of(passages, sentences), [1, 2, 3])


def test_texts_of_the_last_batch_are_counted_once(tmp_path: Path) -> None:
    encoder = load_encoder(write_encoder(tmp_path / "encoder", None))
    lengths = [3, 9, 5] * 27  # 80 fill a batch of 16 tokens each, and one is left
    texts = [[1, *range(3, length + 1), 2] for length in lengths]
    embeddings, counts = embed(encoder, texts, exact_heads, length=16)
    assert embeddings.shape == (81, 12)
    np.testing.assert_allclose(embeddings[0], embeddings[-3], atol=1e-6)
    layers, heads = 2, 3
    assert counts.keys == layers * heads * len(texts)
    assert len(counts.n) == layers * heads * sum(lengths)
    np.testing.assert_array_equal(counts.n, counts.K)
    assert counts.n.astype(int).sum() == layers * heads * sum(length**2 for length in lengths)


def test_a_run_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "PASSAGE_LENGTH", 16)
    monkeypatch.setattr(retrieval, "SENTENCE_LENGTH", 8)
    monkeypatch.setattr(retrieval, "_BATCH_TOKENS", 48)
    encoder = load_encoder(write_encoder(tmp_path / "encoder"))
    rng = np.random.default_rng(2)
    passages = [Passage("", *(rng.integers(1, 37, size).tolist() for size in (14, 6))) for _ in range(4)]
    calls = []
    exact = retrieve(encoder, passages, EXACT, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(3, 8), (4, 8), (8, 8)]
    similarity = exact.sentences @ exact.passages.T
    expected = [1 + sum(row > row[place]) for place, row in enumerate(similarity)]
    np.testing.assert_array_equal(exact.ranks, expected)
    assert exact.recall(1) == sum(rank == 1 for rank in expected) / 4
    assert exact.mean_reciprocal_rank == pytest.approx(sum(1 / rank for rank in expected) / 4)
    run = retrieve(encoder, passages, CONSERVATIVE)
    assert set(zip(run.counts.n.tolist(), run.counts.M.tolist(), strict=True)) == {(14, 7), (6, 3)}
    report = report_of(CONSERVATIVE, run, run_costs(run.counts, CONSERVATIVE, Hardware(), head_dim=4), exact=exact)
    assert report["first_gained"] - report["first_lost"] == round(4 * (run.recall(1) - exact.recall(1)))
    assert report["queries"] == 2 * 3 * 4 * (14 + 6)
    assert report["cycles_per_text"] == pytest.approx(report["cycles_per_query"] * 2 * 3 * 10)
    assert -1 <= report["cosine_with_exact"] < 1
    assert len(text_rows([report])) == 2
    assert len({len(row) for row in text_rows([report])}) == 1
    json.dumps(report)


def counts_of(n: list[int], m: list[int], c: list[int], k: list[int]) -> QueryCounts:
    return QueryCounts(*(np.array(values, np.int32) for values in (n, m, c, k)), keys=2)


def test_costs_are_those_of_the_papers_formulas() -> None:
    counts = counts_of([300, 300, 260, 260], [150, 150, 130, 130], [80, 100, 60, 160], [10, 30, 20, 20])
    exact = run_costs(
        counts_of([300, 300, 260, 260], [0] * 4, *[[300, 300, 260, 260]] * 2), EXACT, Hardware(), head_dim=32
    )
    assert exact.performance.interval == 280 + 9
    # One of the longest queries in all three stages, and every other one in the stage that it waits for.
    assert exact.simulated_cycles == pytest.approx((3 * 309 + 309 + 269 + 269) / 4)
    assert (exact.bytes, exact.exact_bytes) == (2 * 280 * 32 * 2, 2 * 280 * 32 * 2)
    run = run_costs(counts, CONSERVATIVE, Hardware(), head_dim=32)
    # Two queries share a key here: half of a sort each, of 280 rows.
    assert run.performance.interval == pytest.approx(140 + 4 + run.performance.preprocessing)
    assert run.performance.preprocessing > 0
    assert run.bytes == 2 * 140 * (2 + 4) + 100 * 32 * 2 + 20 * 32 * 2
    modules = Hardware().modules
    rows = {"selector": 140, "sorted_memory": 140, "dot_product": 100, "key_memory": 100}
    rows |= {"exponent": 20, "output": 20, "post_scoring": 20, "value_memory": 20}
    expected = sum(modules[name].dynamic_power * cycles * 1e-9 for name, cycles in rows.items())
    assert run.performance.cost.total_energy == pytest.approx(expected)
    quantised = Setting(name="", iterations=0.5, arithmetic="input-quantised float", fraction_bits=3)
    assert run_costs(counts, quantised, Hardware(), head_dim=32).bytes == 2 * 140 * 17 / 8 + 120 * 32
    no_search = run_costs(counts, Setting(name="", threshold_percent=5), Hardware(), head_dim=32)
    assert no_search.performance.preprocessing == 0


def test_settings() -> None:
    assert [s.name for s in sweep_settings()][:3] == ["M = n", "M = 3n/4", "M = n/2"]
    settings = list(quantised_settings(CONSERVATIVE, num_rows=320, head_dim=32))
    assert len({s.name for s in settings}) == len(settings)
    by_arithmetic = {
        kind: [s.fraction_bits for s in settings if (s.arithmetic, s.division) == kind]
        for kind in [("input-quantised float", "early"), ("fixed point", "early"), ("fixed point", "late")]
    }
    # In 31 bits there is room for 160 products of (4 + f) + (4 + f) bits up to f = 7, and for a sum of 320 scores of 2 f bits times
    # a value of 4 + f up to f = 6.
    assert list(by_arithmetic.values()) == [[2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6]]
