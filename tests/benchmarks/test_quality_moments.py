"""What is measured on calibration windows: plain moments against the inputs of a decoder written out, and the file they are kept in."""

from pathlib import Path

import numpy as np

from anyprec_jax.models import LINEARS, Model
from benchmarks.quality_moments import READS_WITH, input_moments, kept
from tests.anyprec_jax.tiny import tiny_model

WINDOWS = np.random.default_rng(0).integers(0, 260, (3, 12)).astype(np.int32)


def normed(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def turned(x: np.ndarray, theta: float) -> np.ndarray:
    """[tokens, heads, head_dim]: dimension i with i + head_dim / 2, as a complex number, by its angle."""
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    pairs = pairs * np.exp(1j * np.arange(len(x))[:, None, None] * theta ** (-np.arange(half) / half))
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def slow_inputs(model: Model, tokens: np.ndarray) -> list[dict[str, np.ndarray]]:
    """What the linears of every layer read of one window, [tokens, k], float64."""
    c, layers = model.config, {name: np.asarray(leaf, np.float64) for name, leaf in model.params["layers"].items()}
    hidden, inputs = np.asarray(model.params["embedding"], np.float64)[tokens], []
    for layer in range(c.num_layers):
        w = {name: leaf[layer] for name, leaf in layers.items()}
        reads = {"q_proj": normed(hidden, w["input_norm"], c.norm_eps)}
        q, k, v = (
            (reads["q_proj"] @ w[name].T).reshape(len(tokens), -1, c.head_dim)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = turned(q, c.rope_theta), turned(k, c.rope_theta)
        mixed = np.empty_like(q)
        for head in range(c.num_heads):
            group = head * c.num_kv_heads // c.num_heads
            scores = q[:, head] @ k[:, group].T / np.sqrt(c.head_dim)
            weights = np.tril(np.exp(scores - scores.max()))
            mixed[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, group]
        reads["o_proj"] = mixed.reshape(len(tokens), -1)
        hidden = hidden + reads["o_proj"] @ w["o_proj"].T
        reads["gate_proj"] = normed(hidden, w["post_attention_norm"], c.norm_eps)
        gate = reads["gate_proj"] @ w["gate_proj"].T
        reads["down_proj"] = gate / (1 + np.exp(-gate)) * (reads["gate_proj"] @ w["up_proj"].T)
        hidden = hidden + reads["down_proj"] @ w["down_proj"].T
        inputs.append(reads)
    return inputs


def test_moments_of_the_inputs() -> None:
    """Every kind and layer: the mean over all tokens of all windows."""
    model = tiny_model()
    found = input_moments(model, WINDOWS)
    windows = [slow_inputs(model, window) for window in WINDOWS]
    assert set(found) == set(READS_WITH.values()) == set(windows[0][0])
    for name, stack in found.items():
        for layer, moment in enumerate(stack):
            rows = np.concatenate([window[layer][name] for window in windows])
            expected = rows.T @ rows / WINDOWS.size
            # Three layers of float32 sums of up to 72 terms, squared.
            np.testing.assert_allclose(moment, expected, atol=2 * 3 * 72 * 2**-24 * np.abs(expected).max())


def test_every_linear_reads_with_one_that_is_measured() -> None:
    assert set(READS_WITH) == set(LINEARS)


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    calls = []

    def measure() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"q_proj": np.full((1, 2), len(calls), np.float32)}

    first = kept(tmp_path, "a", WINDOWS, measure)
    again = kept(tmp_path, "a", WINDOWS.copy(), measure)
    np.testing.assert_array_equal(first["q_proj"], again["q_proj"])
    assert len(calls) == 1
    kept(tmp_path, "a", WINDOWS + 1, measure)
    kept(tmp_path, "b", WINDOWS, measure)
    assert len(calls) == 3
    assert len(list(tmp_path.iterdir())) == 3
