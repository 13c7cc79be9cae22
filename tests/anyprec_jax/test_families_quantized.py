"""A small model of every family, quantized, saved and read: what it says is close to what the model says."""

import math
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.calibration import calibration_windows
from anyprec_jax.checkpoint import load
from anyprec_jax.checkpoint import manifest as manifests
from anyprec_jax.checkpoint.huggingface import save_folder
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.evaluate import evaluate
from anyprec_jax.model_quantization import Calibration, quantize_model
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import forward, init_cache
from anyprec_jax.models.families import FAMILIES, LAYERS, parameter_shapes
from anyprec_jax.models.fusion import linears
from anyprec_jax.models.model import Model, dequantized
from anyprec_jax.quantization import quantize_jointly
from anyprec_jax.sensitivity import mean_nll, sequence_accumulator, zeros
from tests.anyprec_jax.tiny import TEXT, byte_tokenizer

CONFIG = QuantizeConfig(seed_precision=3, parent_precision=8)
_GEMMA = {
    "window": 5,
    "global_layers": (1,),
    "activation": "gelu_tanh",
    "embedding_scale": math.sqrt(48),
    "query_scale": 0.2,
}
# What makes a model of each family unlike a Llama, beyond its flags.
MORE: dict[str, dict[str, Any]] = {
    "smollm3": {"unrotated_layers": (1,)},
    "mistral": {"window": 5},
    "qwen2": {"window": 5, "global_layers": (0,)},
    "gemma2": {**_GEMMA, "score_cap": 5.0, "logit_cap": 9.0},
    "gemma3": {**_GEMMA, "window_rope_theta": 100.0},
    "phi3": {"rotary_dim": 6},
    "stablelm": {"rotary_dim": 2, "head_norm": "separate", "qkv_bias": True},
    "gpt2": {"activation": "gelu_tanh", "num_kv_heads": 6},
    "opt": {"activation": "relu", "num_kv_heads": 6, "embedding_size": 20},
    "gpt_neox": {
        "activation": "gelu",
        "num_kv_heads": 6,
        "rotary_dim": 2,
        "residual": "parallel",
        "attention_bias": True,
    },
    "mixtral": {"num_experts": 4, "experts_per_token": 2},
    "qwen3_moe": {"num_experts": 3, "experts_per_token": 2},
    "olmoe": {"num_experts": 3, "experts_per_token": 1, "qkv_limit": 1.0},
}


def small_config(family: str, **changes: Any) -> ModelConfig:
    sizes = {
        "vocab_size": 260,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_layers": 2,
        "num_heads": 6,
        "num_kv_heads": 2,
    }
    settings = {"family": family, "head_dim": 8, "max_position_embeddings": 64, "tie_embeddings": True, **sizes}
    return ModelConfig(**{**settings, **FAMILIES[family].flags, **MORE.get(family, {}), **changes})


def small_model(family: str, **changes: Any) -> Model:
    config, rng = small_config(family, **changes), np.random.default_rng(0)
    params: dict[str, Any] = {"layers": {}}
    for path, shape in parameter_shapes(config).items():
        center = 1.0 if path.endswith("norm") and not config.norm_plus_one else 0.0
        place = params["layers"] if path.startswith(LAYERS) else params
        place[path.removeprefix(LAYERS)] = jnp.asarray(center + rng.normal(scale=0.15, size=shape), jnp.float32)
    return Model(config=config, params=params, tokenizer=byte_tokenizer())


def tokens_of(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, 256, shape), jnp.int32)


def largest_difference(got: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(got) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


# These have between them windows, caps, experts, biases, transposed and shared tensors, and a norm of either kind.
QUICK = ("gemma3", "gpt2", "mixtral")


def few_of(families: Iterable[str], quick: Container[str] = QUICK) -> list:
    """The others are slow tests."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in families]


@pytest.mark.parametrize("family", few_of(FAMILIES))
def test_every_family_can_be_quantized(family: str, tmp_path: Path) -> None:
    model = small_model(family)
    save_folder(tmp_path / "plain", model)
    quantize_model(tmp_path / "plain", tmp_path / "quantized", CONFIG, calibration=None, head_precision=None)
    quantized = load(tmp_path / "quantized")
    assert quantized.config == model.config
    stacks = linears(quantized.params["layers"])
    assert all(not isinstance(stack, jax.Array) for stack in stacks.values())

    tokens = tokens_of(1, 12)
    expected = forward(model.params, tokens, model.config, precision=None)
    logits = forward(quantized.params, tokens, model.config, precision=8)
    # A weight is off by at most a 2**-8 part of its row's range, some 6 standard deviations; at 3 bits by a 2**-3 part.
    assert largest_difference(logits, expected) < 0.05
    assert largest_difference(forward(quantized.params, tokens, model.config, precision=3), expected) > 0.05

    cache = init_cache(model.config, batch=1, length=12)
    for position in range(12):  # of experts, those that a token needs
        step, cache = forward(
            quantized.params, tokens[:, position : position + 1], model.config, precision=8, cache=cache
        )
        # One row goes through the native product, which rounds activations to 16 bits.
        assert largest_difference(step[:, 0], logits[:, position]) < 5e-3


def test_experts_are_evaluated_and_dequantized(tmp_path: Path) -> None:
    model = small_model("qwen3_moe")
    save_folder(tmp_path / "plain", model)
    quantize_model(tmp_path / "plain", tmp_path / "quantized", CONFIG, calibration=None, head_precision=None)
    quantized = load(tmp_path / "quantized")
    dense = dequantized(quantized, precision=4)
    tokens = tokens_of(1, 12)
    expected = forward(dense.params, tokens, model.config, precision=None)
    # Up to 16 rows go through the native product, which rounds activations to 16 bits.
    assert largest_difference(forward(quantized.params, tokens, model.config, precision=4), expected) < 5e-3
    text = np.asarray(tokens_of(40))
    read, plain = (
        evaluate(quantized, text, precisions=[4], sequence_length=40),
        evaluate(dense, text, sequence_length=40),
    )
    assert read[0].perplexity == pytest.approx(plain[0].perplexity, rel=1e-5)


@pytest.mark.parametrize("family", few_of(["gemma3", "gpt2", "stablelm", "mixtral"], ("gemma3", "mixtral")))
def test_sensitivity_is_the_squared_gradient(family: str) -> None:
    model = small_model(family)
    tokens = tokens_of(10)
    total = zeros(model.params)
    sequence_accumulator(model.params, model.config)(tokens, total)

    def loss(weights: dict[str, jax.Array]) -> jax.Array:
        params = model.params | {"layers": model.params["layers"] | weights}
        logits = forward(params, tokens[None], model.config, precision=None)
        assert isinstance(logits, jax.Array)
        return mean_nll(logits[0], tokens)

    weights = linears(model.params["layers"])
    gradients = jax.grad(loss)(weights)
    assert set(total) == set(weights)
    for name, gradient in gradients.items():
        expected = np.square(np.asarray(gradient))
        assert expected.max() > 0
        np.testing.assert_allclose(total[name], expected, atol=1e-4 * expected.max())


def unrouted(tmp_path: Path) -> tuple[Path, Calibration]:
    """A folder with a model whose router's logits are a, -a, 0 and 0: of two experts the last is never one; and a text."""
    model = small_model("mixtral")
    router = np.zeros(model.params["layers"]["router"].shape, np.float32)
    router[:, 0] = np.random.default_rng(2).normal(size=router.shape[-1])
    router[:, 1] = -router[:, 0]
    params = model.params | {"layers": model.params["layers"] | {"router": jnp.asarray(router)}}
    save_folder(tmp_path / "plain", Model(config=model.config, params=params, tokenizer=model.tokenizer))
    (tmp_path / "text").write_text(TEXT * 20)
    return tmp_path / "plain", Calibration(text=tmp_path / "text", num_sequences=2, sequence_length=32)


def test_every_expert_has_its_own_moments(tmp_path: Path) -> None:
    """Best: an expert is what its moments make of it alone; one without any has the identity's."""
    plain, calibration = unrouted(tmp_path)
    config = QuantizeConfig(seed_precision=2, parent_precision=3)
    quantize_model(plain, tmp_path / "best", config, calibration=calibration, quality="best")
    model, stack = load(plain), load(tmp_path / "best").params["layers"]["down_proj"]

    assert model.tokenizer is not None
    tokens = np.asarray(model.tokenizer.encode(TEXT * 20, special_tokens=False), np.int32)
    total = zeros(model.params, "moment")
    accumulate = sequence_accumulator(model.params, model.config, ("moment",))
    for window in calibration_windows(tokens, num_sequences=2, sequence_length=32, seed=0):
        accumulate(jnp.asarray(window), total)
    moments = total["down_proj"]
    assert moments.shape == (2, 4, 40, 40)
    reached = np.any(moments, axis=(2, 3))
    np.testing.assert_array_equal(reached, [[True, True, True, False]] * 2)
    for layer, expert in np.ndindex(2, 4):
        moment = moments[layer, expert] if expert < 3 else np.eye(40, dtype=np.float32)
        weights = np.asarray(model.params["layers"]["down_proj"][layer, expert], np.float32)
        alone = quantize_jointly(weights, moment, config)
        np.testing.assert_array_equal(stack.bitplanes[layer, expert], alone.bitplanes)
        for bits, book in alone.codebooks.items():
            np.testing.assert_array_equal(stack.codebooks[bits][layer, expert], book)


def test_an_expert_that_calibration_never_reached_is_quantized_all_the_same(tmp_path: Path) -> None:
    source, calibration = unrouted(tmp_path)
    quantize_model(source, tmp_path / "measured", CONFIG, calibration=calibration, quality="fast")
    quantize_model(source, tmp_path / "uniform", CONFIG, calibration=None)

    assert manifests.read(tmp_path / "measured").provenance["unrouted_experts"] == [[0, 3], [1, 3]]
    measured, uniform = load(tmp_path / "measured"), load(tmp_path / "uniform")
    for name in ("gate_up_proj", "down_proj"):
        ours, plain = measured.params["layers"][name], uniform.params["layers"][name]
        for leaf in ours.codebooks:
            np.testing.assert_array_equal(ours.codebooks[leaf][:, 3], plain.codebooks[leaf][:, 3])
            assert np.any(np.asarray(ours.codebooks[leaf][:, 0]) != np.asarray(plain.codebooks[leaf][:, 0]))
    # The same command again finds its work done.
    quantize_model(source, tmp_path / "measured", CONFIG, calibration=calibration, quality="fast")


def test_a_stack_of_experts_is_described_by_its_shape(tmp_path: Path) -> None:
    model = small_model("mixtral")
    save_folder(tmp_path / "plain", model)
    quantize_model(tmp_path / "plain", tmp_path / "quantized", CONFIG, calibration=None)
    stack = load(tmp_path / "quantized").params["layers"]["down_proj"]
    assert stack.shape == (2, 4, 48, 40)
    assert not isinstance(stack, AnyPrecArray) or stack.bitplanes.ndim == 5
