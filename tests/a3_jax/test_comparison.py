"""Tasks done by each method, against the same tasks done by other code."""

import dataclasses

import numpy as np
import pytest

from a3_jax.metrics import bytes_touched
from a3_jax.workloads import comparison, memory_evaluation
from a3_jax.workloads.compared_attention import Baseline, Search
from a3_jax.workloads.comparison import compare_decoder, compare_encoder, compare_memory_network, methods
from a3_jax.workloads.decode import Attend, Text, decode_texts
from a3_jax.workloads.decode_attention import StepSetting
from a3_jax.workloads.decode_inputs import StepInputs
from a3_jax.workloads.encoder_attention import Setting as EncoderSetting
from a3_jax.workloads.encoder_files import load_encoder
from a3_jax.workloads.memory_evaluation import Setting, evaluate, memory_sizes
from a3_jax.workloads.passages import Passage
from a3_jax.workloads.retrieval import retrieve
from tests.a3_jax.small_encoders import CONFIG, write_encoder
from tests.a3_jax.small_networks import DIM, random_network, some_questions


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last chunk is filled up, and so is the last batch."""
    monkeypatch.setattr(memory_evaluation, "_CHUNK", 16)
    monkeypatch.setattr(memory_evaluation, "_WIDTHS", (50,))
    monkeypatch.setattr(comparison, "_BATCH_TOKENS", 40)
    monkeypatch.setattr(comparison, "PASSAGE_LENGTH", 20)
    monkeypatch.setattr(comparison, "SENTENCE_LENGTH", 20)


@pytest.mark.usefixtures("few_at_once")
def test_a_search_does_what_the_evaluation_of_the_memory_network_does() -> None:
    """Which is in JAX, and whose selections are tested against the paper's pseudo-code."""
    questions = some_questions()
    network, parameters = random_network(questions)
    settings = [Setting(None, None), Setting(0.5, 5.0)]
    exact, wanted = evaluate(questions, network, parameters, settings, sizes=memory_sizes(questions))
    chosen = [Search(iterations=0.5), Baseline(name="oracle top k", share=1)]
    found, everything = compare_memory_network(questions, network, parameters, chosen)
    spent = bytes_touched(wanted.M, wanted.C, wanted.K, key_dim=DIM, value_dim=DIM)
    assert found["accuracy"] == pytest.approx(wanted.accuracy)
    assert found["exact_accuracy"] == everything["accuracy"] == pytest.approx(exact.accuracy)
    assert found["bytes"] == pytest.approx(spent.mean())
    assert found["bytes_over_exact"] == pytest.approx(spent.mean() / (4 * DIM * questions.story_sizes.mean()))
    assert found["mass"] < 1
    assert everything["mass"] == pytest.approx(1, abs=1e-5)
    assert everything["recall"] == 1
    assert everything["error"] == pytest.approx(0, abs=1e-5)


@pytest.mark.usefixtures("few_at_once")
def test_a_search_does_what_retrieval_does(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PASSAGE_LENGTH", "SENTENCE_LENGTH"):
        monkeypatch.setattr(f"a3_jax.workloads.retrieval.{name}", 20)
    encoder = load_encoder(write_encoder(tmp_path / "model"))
    rng = np.random.default_rng(3)

    def text(length: int) -> list[int]:
        return rng.integers(0, CONFIG["vocab_size"], length).tolist()

    passages = [Passage("speech", text(length), text(6)) for length in (20, 17, 12, 19, 20)]
    setting = EncoderSetting(name="half", iterations=0.5, threshold_percent=5)
    exact, wanted = (retrieve(encoder, passages, one) for one in (EncoderSetting(name="exact"), setting))
    chosen = [Search(iterations=0.5), Baseline(name="oracle top k", share=1)]
    found, everything = compare_encoder(encoder, passages, chosen)
    of_passages = [
        field[: len(field) * sum(len(p.tokens) for p in passages) // _tokens(passages)] for field in wanted.counts[:4]
    ]
    n, m, c, k = of_passages
    head_dim = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    spent = bytes_touched(m, c, k, key_dim=head_dim, value_dim=head_dim)
    assert found["bytes"] == pytest.approx(spent.mean())
    assert found["bytes_over_exact"] == pytest.approx(spent.sum() / (4 * head_dim * n.sum()))
    cosines = np.sum(wanted.passages * exact.passages, axis=1)
    assert found["cosine_with_exact"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert found["cosine_with_exact"] < 0.9999
    for count in (1, 10):
        assert found[f"recall_at_{count}"] == wanted.recall(count)
        assert everything[f"recall_at_{count}"] == exact.recall(count)
    assert everything["cosine_with_exact"] == pytest.approx(1, abs=1e-5)


def _tokens(passages: list[Passage]) -> int:
    return sum(len(passage.tokens) + len(passage.sentence) for passage in passages)


def test_methods() -> None:
    chosen = list(methods(page_size=4, shares=(0.5, 0.25), shared=True))
    assert len(chosen) == len(set(chosen)) == 2 * (6 + 8)
    assert {method.name for method in chosen} >= {"A3", "A3, centred, rotated", "Quest", "SparQ, mean value"}
    assert all(method.page_size == 4 for method in chosen if isinstance(method, Baseline))
    assert set(methods()) < {*methods(shared=True)}
    assert dataclasses.replace(chosen[0], shared=True) not in chosen


def test_a_search_does_what_decoding_does() -> None:
    """A model of two layers, the second of which asks with what the first has found."""
    rng = np.random.default_rng(5)
    heads, steps, rows, dim = 2, 3, 12, 4
    query, key, value = (
        rng.normal(size=(2, count, length, dim)).astype(np.float32)
        for count, length in ((heads, steps), (1, rows), (1, rows))
    )
    head = rng.normal(size=(heads * dim, 7)).astype(np.float32)

    def read(attend: Attend) -> np.ndarray:
        found = attend(StepInputs(query[0], key[0], value[0]))
        found = attend(StepInputs(query[1] + found, key[1], value[1]))
        return np.moveaxis(found, 0, 1).reshape(steps, -1) @ head

    texts = [Text(read, np.array([1, 4, 6]))]
    setting = EncoderSetting(name="half", iterations=0.5, threshold_percent=5)
    settings = [StepSetting(selection=one) for one in (EncoderSetting(name="exact"), setting)]
    exact, wanted = decode_texts(texts, settings).runs
    chosen = [Search(iterations=0.5), Baseline(name="oracle top k", share=1)]
    found, everything = compare_decoder(texts, chosen)
    assert found["kl"] == pytest.approx(wanted.kl.mean(), rel=1e-4)
    assert found["kl"] > 0.001
    assert found["perplexity"] == pytest.approx(wanted.perplexity, rel=1e-4)
    assert found["mass"] == pytest.approx(wanted.mass.mean(), rel=1e-4)
    assert everything["kl"] == pytest.approx(0, abs=1e-6)
    assert everything["perplexity"] == pytest.approx(exact.perplexity, rel=1e-4)
