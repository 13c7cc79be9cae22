"""The example for a model and a text of one's own: what it prints is what NumPy finds in the artefact that it leaves."""

import re
from pathlib import Path

import numpy as np
import pytest

from anyprec_jax import forward, load
from examples import quantize_your_own
from tests.anyprec_jax.tiny import TEXT, save_tiny_model

LENGTH = 32


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_a_model_and_a_text_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_model(tmp_path / "model")
    text, out = 12 * TEXT, tmp_path / "artefact"
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    places = [str(tmp_path / "model"), str(tmp_path / "text.txt"), str(out)]
    quantize_your_own.main([*places, "--windows", "4", "--length", str(LENGTH)])
    header, reference, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split() == ["read", "at", "bits", "a", "weight", "perplexity", "KL,", "nats"]
    assert reference.split()[:2] == ["reference", "32.00"]
    tokens = len(text) - len(text) * 3 // 4  # a byte each
    assert last == f"{tokens} tokens scored; {out} is the artefact"

    found = [list(map(float, re.findall(r"\d+\.\d+|^ *\d+", row))) for row in rows]
    assert [row[0] for row in found] == [3, 4, 8]
    kl = [row[-1] for row in found]
    assert kl[0] > kl[1] > kl[2] > 0
    for precision, value in zip((3, 4, 8), kl, strict=True):
        assert value == pytest.approx(
            kl_of_last_quarter(tmp_path / "model", out, text, precision), abs=6e-5
        )  # 4 decimals


def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is written."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    for model, text, complaint in (("model", "no.txt", "no.txt"), ("no-model", "text.txt", "no-model")):
        with pytest.raises(SystemExit) as ended:
            quantize_your_own.main([str(tmp_path / name) for name in (model, text, "artefact")])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and complaint in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def kl_of_last_quarter(model: Path, artefact: Path, text: str, precision: int) -> float:
    """Chunk by chunk, the mean over all places whose next token is in the chunk."""
    theirs, ours = load(model), load(artefact)
    assert ours.tokenizer is not None
    tokens = np.asarray(ours.tokenizer.encode(text[len(text) * 3 // 4 :], special_tokens=False), np.int32)
    values: list[float] = []
    for start in range(0, len(tokens), LENGTH):
        chunk = tokens[start : start + LENGTH][None]
        exact = log_probabilities(np.asarray(forward(theirs.params, chunk, theirs.config, precision=None), np.float64))
        read = log_probabilities(np.asarray(forward(ours.params, chunk, ours.config, precision=precision), np.float64))
        values += (np.exp(exact) * (exact - read)).sum(-1)[0, :-1].tolist()
    return float(np.mean(values))
