"""Logits against `transformers` in float32, through the files it writes and the ones we write."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.checkpoint import huggingface
from anyprec_jax.models.decoder import forward, init_cache

torch = pytest.importorskip("torch", reason="the parity tests compare with torch: install the extra 'parity'")
transformers = pytest.importorskip(
    "transformers", reason="the parity tests compare with transformers: install the extra 'parity'"
)

PARITY = 2e-5  # of the largest logit
ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0},
    "longrope": {
        "rope_type": "longrope",
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.5, 2.0, 3.0, 8.0],
        "long_factor": [1.0, 1.5, 2.0, 3.0, 8.0],
    },
}
LLAMAS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "one key head": {"num_key_value_heads": 1},
    "all key heads": {"num_key_value_heads": 6},
    "usual heads": {"head_dim": 8},
    "tied": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "everything": {
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rope": "llama3",
        "theta": 500.0,
    },
    **{f"rope {name}": {"rope": name} for name in ROPE if name != "default"},
}


def random_llama(name: str, **changes: Any) -> Any:
    """A small Llama whose norms are away from 1 and biases away from 0."""
    changes = LLAMAS[name] | changes
    rope = ROPE[changes.pop("rope", "default")] | {"rope_theta": changes.pop("theta", 10000.0)}
    settings = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_parameters": rope,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings | changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in path else (0.3 if path.endswith("bias") else 0.15) * noise)
    return model


def their_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def error(got: Any, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    return float(np.abs(np.asarray(got) - expected).max() / np.abs(expected).max())


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 97, shape).astype(np.int32)


@pytest.mark.parametrize("name", LLAMAS)
def test_llama(name: str, tmp_path: Path) -> None:
    theirs = random_llama(name)
    theirs.save_pretrained(tmp_path)
    ours = huggingface.load_folder(tmp_path)
    tokens = random_tokens(2, 40)
    expected = their_logits(theirs, tokens)
    assert error(forward(ours.params, jnp.asarray(tokens), ours.config, precision=None), expected) <= PARITY
    cache = init_cache(ours.config, batch=2, length=40)
    for position in range(40):
        step = jnp.asarray(tokens[:, position : position + 1])
        logits, cache = forward(ours.params, step, ours.config, precision=None, cache=cache)
        assert error(logits, expected[:, position : position + 1]) <= PARITY


def test_greedy_texts_are_equal(tmp_path: Path) -> None:
    theirs = random_llama("everything")
    theirs.save_pretrained(tmp_path)
    ours = huggingface.load_folder(tmp_path)
    prompt = random_tokens(1, 5)
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(prompt), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    logits, cache = forward(
        ours.params, jnp.asarray(prompt), ours.config, precision=None, cache=init_cache(ours.config, batch=1, length=25)
    )
    found = [*prompt[0]]
    for _ in range(20):
        found.append(int(jnp.argmax(logits[0, -1])))
        logits, cache = forward(
            ours.params, jnp.asarray([found[-1:]], jnp.int32), ours.config, precision=None, cache=cache
        )
    assert found == expected[0].tolist()


def test_long_text(tmp_path: Path) -> None:
    """At position 4000 a frequency that is off by one unit in the last place turns by a quarter of a milliradian."""
    theirs = random_llama("usual heads", num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=4096)
    theirs.save_pretrained(tmp_path)
    ours = huggingface.load_folder(tmp_path)
    tokens = random_tokens(1, 4000)
    assert (
        error(forward(ours.params, jnp.asarray(tokens), ours.config, precision=None), their_logits(theirs, tokens))
        <= PARITY
    )


@pytest.mark.parametrize("name", LLAMAS)
def test_saved_folder_is_read_by_transformers(name: str, tmp_path: Path) -> None:
    theirs = random_llama(name)
    theirs.save_pretrained(tmp_path / "theirs")
    huggingface.save_folder(tmp_path / "ours", huggingface.load_folder(tmp_path / "theirs"))
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert back.dtype == torch.float32
    tokens = random_tokens(1, 40)
    np.testing.assert_array_equal(their_logits(back, tokens), their_logits(theirs, tokens))


def test_saved_shards_are_read_by_transformers(tmp_path: Path) -> None:
    theirs = random_llama("tied")
    theirs.save_pretrained(tmp_path / "theirs")
    model = huggingface.load_folder(tmp_path / "theirs", dtype=jnp.bfloat16)
    huggingface.save_folder(tmp_path / "ours", model, max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert back.dtype == torch.bfloat16
    for name, values in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], values.bfloat16()), name
