"""The short examples on a small random artefact: each runs as its docstring says, and means what it prints."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import Model, QuantizeConfig, forward, load, quantize_model
from examples import sliding_window, two_precisions
from tests.anyprec_jax.tiny import save_tiny_model


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    save_tiny_model(folder / "tiny")
    config = QuantizeConfig(seed_precision=2, parent_precision=4)
    quantize_model(folder / "tiny", folder / "artefact", config, calibration=None)
    return folder / "artefact"


@pytest.fixture(scope="module")
def model(artefact: Path) -> Model:
    return load(artefact)


def last_logits(model: Model, tokens: np.ndarray, window: int) -> np.ndarray:
    attention = functools.partial(sliding_window.sliding_window, window=window)
    logits = forward(model.params, tokens[None], model.config, precision=4, attention=attention)
    assert isinstance(logits, jax.Array)
    return np.asarray(logits[0, -1])


def test_a_window_reaches_just_as_far_as_the_layers_carry_it(model: Model) -> None:
    """Through 3 layers with windows of 5 the last position hears of the 3 * (5 - 1) before it, and of no other."""
    tokens = np.random.default_rng(0).integers(0, 260, 40)
    reach = model.config.num_layers * (5 - 1)
    for distance, is_heard in ((reach, True), (reach + 1, False)):
        changed = tokens.copy()
        changed[-1 - distance] += 1 if changed[-1 - distance] < 259 else -1
        before, after = last_logits(model, tokens, 5), last_logits(model, changed, 5)
        assert np.array_equal(before, after) != is_heard


def test_a_window_as_long_as_the_text_is_full_attention(model: Model) -> None:
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 260, 30))
    full, wide = (sliding_window.mean_nll(model, tokens, precision=4, window=w) for w in (None, 30))
    assert wide == pytest.approx(full, rel=1e-6)
    assert sliding_window.mean_nll(model, tokens, precision=4, window=2) != pytest.approx(full, rel=1e-3)


def test_sliding_window(artefact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sliding_window.main([str(artefact), "--precision", "3", "--window", "8"])
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"full attention: \d+\.\d{4} nats per token", first)
    assert re.fullmatch(r"window of 8: \d+\.\d{4} nats per token", second)


def test_two_precisions(artefact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_precisions.main([str(artefact), "--low", "2", "--high", "4"])
    *places, last = capsys.readouterr().out.splitlines()
    counts = re.fullmatch(r"2 and 4 bits go on differently after (\d+) of (\d+) tokens", last)
    assert counts is not None
    assert 0 < len(places) == int(counts.group(1)) <= int(counts.group(2))
    assert all("2 bits" in place and "4 bits" in place for place in places)


def test_a_precision_agrees_with_itself(artefact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_precisions.main([str(artefact), "--low", "3", "--high", "3"])
    assert "differently after 0 of" in capsys.readouterr().out
