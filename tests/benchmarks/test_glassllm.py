"""A model in glassllm's layout, in files of our own making: read as a Llama, it computes what glassllm's equations say."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import forward, load
from benchmarks import glassllm
from benchmarks.llamacpp_build import PeerError

THEIRS = {"vocab_size": 50, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_len": 40}
THEIRS |= {"rope_base": 10000.0, "eps": 1e-6, "init_std": 0.02}
HEAD, INNER = 8, 85  # int(8 * 32 / 3)
ALPHABET = ["\n", "a", "b", "c", "e", "▁"]
MERGED = [["a", "b"], ["▁", "ab"], ["b", "c"], ["ab", "c"], ["▁", "▁"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "glassllm/weights").mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {"E": rng.standard_normal((50, 32)), "norm_f.gamma": 1 + 0.1 * rng.standard_normal(32)}
    for layer in range(2):
        shapes = {"attn.W_Q": (32, 32), "attn.W_K": (32, 16), "attn.W_V": (32, 16), "attn.W_O": (32, 32)}
        shapes |= {"ffn.W1": (32, INNER), "ffn.W3": (32, INNER), "ffn.W2": (INNER, 32)}
        for name, shape in shapes.items():
            arrays[f"blocks.{layer}.{name}"] = rng.standard_normal(shape) / np.sqrt(shape[0])
        for name in ("norm1.gamma", "norm2.gamma"):
            arrays[f"blocks.{layer}.{name}"] = 1 + 0.1 * rng.standard_normal(32)
    halves = {name: values.astype(np.float16) for name, values in arrays.items()}
    np.savez(folder / glassllm.WEIGHTS, __config__=np.array(json.dumps(THEIRS)), **halves)
    (folder / glassllm.MERGES).write_text(json.dumps({"version": 1, "alphabet": ALPHABET, "merges": MERGED}))
    return folder


def norm(x: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gamma


def turned(x: np.ndarray) -> np.ndarray:
    """[positions, heads, HEAD]: each adjacent pair, as a complex number, by its angle."""
    pairs = x[..., ::2] + 1j * x[..., 1::2]
    angles = np.arange(len(x))[:, None, None] * 10000.0 ** (-2.0 * np.arange(HEAD // 2) / HEAD)
    pairs = pairs * np.exp(1j * angles)
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)


def slow_logits(w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """glassllm's equations, float64."""
    x = w["E"][tokens]
    for layer in range(2):
        block = {name.split(".", 2)[2]: values for name, values in w.items() if name.startswith(f"blocks.{layer}.")}
        h = norm(x, block["norm1.gamma"])
        q = turned((h @ block["attn.W_Q"]).reshape(-1, 4, HEAD))
        k = turned((h @ block["attn.W_K"]).reshape(-1, 2, HEAD))
        v = (h @ block["attn.W_V"]).reshape(-1, 2, HEAD)
        mixed = np.zeros_like(q)
        for position in range(len(tokens)):
            for head in range(4):
                scores = k[: position + 1, head // 2] @ q[position, head] / np.sqrt(HEAD)
                weights = np.exp(scores - scores.max())
                mixed[position, head] = weights / weights.sum() @ v[: position + 1, head // 2]
        x = x + mixed.reshape(len(tokens), -1) @ block["attn.W_O"]
        h = norm(x, block["norm2.gamma"])
        gate = h @ block["ffn.W1"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ block["ffn.W3"])) @ block["ffn.W2"]
    return norm(x, w["norm_f.gamma"]) @ w["E"].T


def test_logits(data: Path, tmp_path: Path) -> None:
    model = load(glassllm.write_gguf(data, tmp_path / "tiny.gguf"))
    tokens = [3, 49, 7, 7, 0, 21]
    with np.load(data / glassllm.WEIGHTS) as stored:
        weights = {name: stored[name].astype(np.float64) for name in stored.files if name != "__config__"}
    expected = slow_logits(weights, tokens)
    logits = forward(model.params, jnp.asarray([tokens]), model.config, precision=None)
    # Some ten float32 sums of up to 85 terms, one after the other.
    np.testing.assert_allclose(np.asarray(logits)[0], expected, atol=10 * 85 * 2**-24 * np.abs(expected).max())


def slow_encode(text: str) -> list[int]:
    """The pair that was merged first is merged first, chunk by chunk."""
    vocabulary = ["<pad>", "<unk>", "<bos>", "<eos>", *ALPHABET, *("".join(pair) for pair in MERGED)]
    ids = []
    for chunk in re.findall("\n|▁*[^▁\n]+|▁+", text.replace(" ", "▁")):
        symbols = list(chunk)
        for pair in sorted((MERGED.index([a, b]) for a, b in MERGED), key=int):
            left, right = MERGED[pair]
            position = 0
            while position < len(symbols) - 1:
                if symbols[position] == left and symbols[position + 1] == right:
                    symbols[position : position + 2] = [left + right]
                position += 1
        ids += [vocabulary.index(symbol) if symbol in vocabulary else 1 for symbol in symbols]
    return ids


@pytest.mark.parametrize("text", ["abc bc ab", "  ab\n\n abcab  ", "a z! é", "bca   cab\nab"])
def test_tokens(data: Path, text: str) -> None:
    assert glassllm.read_tokenizer(data).encode(text, special_tokens=False) == slow_encode(text)


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"en\.npz is not there: `pip install .*glassllm-requirements\.txt` fetches it"):
        glassllm.write_gguf(tmp_path, tmp_path / "tiny.gguf")
