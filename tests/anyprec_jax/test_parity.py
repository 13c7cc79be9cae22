"""Logits against `transformers` in float32, through the files it writes and the ones we write: every family by name."""

import copy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.checkpoint import huggingface
from anyprec_jax.models.decoder import forward, init_cache
from anyprec_jax.models.families import FAMILIES
from anyprec_jax.models.model import Model

torch = pytest.importorskip("torch", reason="the parity tests compare with torch: install the extra 'parity'")
transformers = pytest.importorskip(
    "transformers", reason="the parity tests compare with transformers: install the extra 'parity'"
)
from tests.anyprec_jax import parity_models  # noqa: E402  (needs both)
from tests.anyprec_jax.parity_models import MODELS, random_model  # noqa: E402

PARITY = 2e-5  # of the largest logit
LENGTH = 24  # past the windows, the short contexts of dynamic and longrope, and no further


def their_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def their_steps(model: Any, tokens: np.ndarray, start: int) -> np.ndarray:
    """Logits from `start` on, one token at a time after a prefix: not those of the whole text where the rotary embedding depends on the
    length."""
    found = []
    with torch.no_grad():
        cache = model(torch.tensor(tokens[:, :start]), use_cache=True).past_key_values
        for position in range(start, tokens.shape[1]):
            step = model(torch.tensor(tokens[:, position : position + 1]), past_key_values=cache, use_cache=True)
            found.append(step.logits[:, 0].numpy())
    return np.stack(found, axis=1)


def error(got: Any, expected: np.ndarray) -> float:
    assert got.shape == expected.shape
    return float(np.abs(np.asarray(got) - expected).max() / np.abs(expected).max())


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, parity_models.VOCABULARY, shape).astype(np.int32)


def first_of(family: str) -> str:
    return next(name for name, model in MODELS.items() if model.family == family)


def step(model: Model, tokens: np.ndarray, cache: Any) -> Any:
    return forward(model.params, jnp.asarray(tokens), model.config, precision=None, cache=cache)


def test_every_family_is_here() -> None:
    assert {model.family for model in MODELS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, tmp_path: Path) -> None:
    """Whole texts, step by step after a prefix, and greedy; and a folder of ours, which `transformers` reads to the same model."""
    theirs = random_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = huggingface.load_folder(tmp_path / "theirs")
    assert ours.config.family == MODELS[name].family
    tokens = random_tokens(2, LENGTH)
    expected = their_logits(theirs, tokens)
    assert error(forward(ours.params, jnp.asarray(tokens), ours.config, precision=None), expected) <= PARITY

    # A piece of several tokens is another program to compile: for the first model of each family only.
    prefix = 5 if name == first_of(MODELS[name].family) else 1
    steps = their_steps(copy.deepcopy(theirs), tokens, prefix)
    cache = init_cache(ours.config, batch=2, length=LENGTH)
    logits, cache = step(ours, tokens[:, :prefix], cache)
    assert error(logits, their_logits(theirs, tokens[:, :prefix])) <= PARITY
    for position in range(prefix, LENGTH):
        logits, cache = step(ours, tokens[:, position : position + 1], cache)
        assert error(logits, steps[:, position - prefix : position - prefix + 1]) <= PARITY
        best = np.sort(steps[:, position - prefix], axis=-1)
        decided = best[:, -1] - best[:, -2] > 2 * PARITY * np.abs(best).max()
        same = np.argmax(logits[:, 0], axis=-1) == np.argmax(steps[:, position - prefix], axis=-1)
        assert (same | ~decided).all()

    huggingface.save_folder(tmp_path / "ours", ours)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert back.dtype == torch.float32
    np.testing.assert_array_equal(their_logits(back, tokens), expected)


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.wrong])
def test_every_setting_matters(name: str, tmp_path: Path) -> None:
    """With any one of the settings that the model has and Llama has not taken away, the logits are others.

    Operation by operation: every setting would be a program to compile, and most operations have been.
    """
    random_model(name).save_pretrained(tmp_path)
    ours = huggingface.load_folder(tmp_path)
    tokens = jnp.asarray(random_tokens(2, LENGTH))
    with jax.disable_jit():
        expected = np.asarray(forward(ours.params, tokens, ours.config, precision=None))
        for setting, change in MODELS[name].wrong.items():
            params, config = change(ours.params, ours.config)
            got = forward(params, tokens, config, precision=None)
            assert error(got, expected) > 100 * PARITY, setting


def test_greedy_texts_are_equal(tmp_path: Path) -> None:
    theirs = random_model("llama: everything")
    theirs.save_pretrained(tmp_path)
    ours = huggingface.load_folder(tmp_path)
    prompt = random_tokens(1, 5)
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(prompt), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    logits, cache = step(ours, prompt, init_cache(ours.config, batch=1, length=25))
    found = [*prompt[0]]
    for _ in range(20):
        found.append(int(jnp.argmax(logits[0, -1])))
        logits, cache = step(ours, np.asarray([found[-1:]], np.int32), cache)
    assert found == expected[0].tolist()


def test_long_text(tmp_path: Path) -> None:
    """At position 4000 a frequency that is off by one unit in the last place turns by a quarter of a milliradian."""
    theirs = random_model(
        "llama: usual heads", num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=4096
    )
    theirs.save_pretrained(tmp_path)
    ours = huggingface.load_folder(tmp_path)
    tokens = random_tokens(1, 4000)
    got = forward(ours.params, jnp.asarray(tokens), ours.config, precision=None)
    assert error(got, their_logits(theirs, tokens)) <= PARITY


def test_windows_over_several_blocks(tmp_path: Path) -> None:
    """Longer than a block of attention, with a window in every layer, and in some."""
    for name, window in (("mistral: window", 70), ("gemma2: everything", 150)):
        theirs = random_model(name, sliding_window=window, max_position_embeddings=512)
        theirs.save_pretrained(tmp_path / name)
        ours = huggingface.load_folder(tmp_path / name)
        tokens = random_tokens(1, 300)
        expected = their_logits(theirs, tokens)
        assert error(forward(ours.params, jnp.asarray(tokens), ours.config, precision=None), expected) <= PARITY
        cache = init_cache(ours.config, batch=1, length=400)
        logits, cache = step(ours, tokens[:, :290], cache)
        assert error(logits, expected[:, :290]) <= PARITY
        for position in range(290, 300):
            logits, cache = step(ours, tokens[:, position : position + 1], cache)
            assert error(logits[:, 0], expected[:, position]) <= PARITY


def test_saved_shards_are_read_by_transformers(tmp_path: Path) -> None:
    theirs = random_model("llama: tied")
    theirs.save_pretrained(tmp_path / "theirs")
    model = huggingface.load_folder(tmp_path / "theirs", dtype=jnp.bfloat16)
    huggingface.save_folder(tmp_path / "ours", model, max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert back.dtype == torch.bfloat16
    for name, values in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], values.bfloat16()), name
