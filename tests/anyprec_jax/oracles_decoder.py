"""A Llama in slow float64 NumPy, written from the papers, and random weights for it. Tensors go by their Hugging Face names.

Loops over positions, heads and pairs; nothing is stacked, batched or cached.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def config(**changes: Any) -> dict[str, Any]:
    """The config.json of a small Llama with grouped queries and heads that are not hidden / heads wide."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | changes


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors."""
    hidden, wide, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        attention = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
        for letter, shape in attention.items():
            shapes[f"{prefix}.self_attn.{letter}_proj.weight"] = shape
            if config["attention_bias"]:
                shapes[f"{prefix}.self_attn.{letter}_proj.bias"] = shape[:1]
        for name, shape in {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}.items():
            shapes[f"{prefix}.mlp.{name}_proj.weight"] = shape
            if config["mlp_bias"]:
                shapes[f"{prefix}.mlp.{name}_proj.bias"] = shape[:1]
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights of a size that keeps every part of the model at work: norms away from 1, biases away from 0."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape)
        if "norm" in name:
            values = 1 + 0.3 * values
        elif name.endswith(".bias"):
            values = 0.3 * values
        elif "embed" not in name:
            values = 1.2 * values / math.sqrt(shape[1])
        weights[name] = values.astype(np.float32)
    return weights


def stacked(weights: Mapping[str, np.ndarray], num_layers: int) -> dict[str, Any]:
    """The tree that the decoder takes."""
    rename = {"input_layernorm": "input_norm", "post_attention_layernorm": "post_attention_norm"}
    layers: dict[str, np.ndarray] = {}
    for name in weights:
        if name.startswith("model.layers.0."):
            *_, module, kind = name.split(".")
            leaf = rename.get(module, module) + ("_bias" if kind == "bias" else "")
            layers[leaf] = np.stack([weights[name.replace(".0.", f".{layer}.", 1)] for layer in range(num_layers)])
    params = {
        "embedding": weights["model.embed_tokens.weight"],
        "final_norm": weights["model.norm.weight"],
        "layers": layers,
    }
    if "lm_head.weight" in weights:
        params["head"] = weights["lm_head.weight"]
    return params


def frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any] | None) -> list[float]:
    """Radians per position of every pair."""
    result = []
    for pair in range(head_dim // 2):
        frequency = theta ** (-2 * pair / head_dim)
        kind = scaling["rope_type"] if scaling else "default"
        if kind == "linear":
            frequency /= scaling["factor"]
        elif kind == "llama3":
            wavelength = 2 * math.pi / frequency
            longest = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
            shortest = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
            if wavelength > longest:
                frequency /= scaling["factor"]
            elif wavelength > shortest:
                blend = scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"]
                blend /= scaling["high_freq_factor"] - scaling["low_freq_factor"]
                frequency = (1 - blend) * frequency / scaling["factor"] + blend * frequency
        elif kind == "longrope":
            frequency /= scaling["long_factor"][pair]
        else:
            assert kind == "default"
        result.append(frequency)
    return result


def logits(weights: Mapping[str, np.ndarray], config: Mapping[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Logits [seq, vocab] of one sequence, float64."""
    weights = {name: values.astype(np.float64) for name, values in weights.items()}
    per_position = frequencies(config["head_dim"], config["rope_theta"], config.get("rope_scaling"))
    hidden = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        named = {
            name.removeprefix(f"model.layers.{layer}."): values
            for name, values in weights.items()
            if f".{layer}." in name
        }
        hidden = hidden + _attention(
            named, config, per_position, _norm(hidden, named["input_layernorm.weight"], config)
        )
        normed = _norm(hidden, named["post_attention_layernorm.weight"], config)
        gate = _linear(named, "mlp.gate_proj", normed)
        hidden = hidden + _linear(
            named, "mlp.down_proj", gate / (1 + np.exp(-gate)) * _linear(named, "mlp.up_proj", normed)
        )
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return _norm(hidden, weights["model.norm.weight"], config) @ head.T


def _norm(x: np.ndarray, weight: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight


def _linear(layer: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ layer[f"{name}.weight"].T + layer.get(f"{name}.bias", 0.0)


def _rotated(vector: np.ndarray, position: int, per_position: list[float]) -> np.ndarray:
    """One head: pair i is the complex number `vector[i] + 1j * vector[i + pairs]`."""
    turned = (vector[: len(per_position)] + 1j * vector[len(per_position) :]) * np.exp(
        1j * position * np.array(per_position)
    )
    return np.concatenate([turned.real, turned.imag])


def _attention(
    layer: Mapping[str, np.ndarray], config: Mapping[str, Any], per_position: list[float], x: np.ndarray
) -> np.ndarray:
    width, heads, kv_heads = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
    queries, keys, values = (_linear(layer, f"self_attn.{letter}_proj", x) for letter in "qkv")
    mixed = np.zeros((len(x), heads * width))
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        shared = slice(head // (heads // kv_heads) * width, (head // (heads // kv_heads) + 1) * width)
        rotated_keys = [_rotated(keys[position, shared], position, per_position) for position in range(len(x))]
        for position in range(len(x)):
            query = _rotated(queries[position, own], position, per_position)
            scores = np.array([query @ rotated_keys[past] / math.sqrt(width) for past in range(position + 1)])
            weights = np.exp(scores - scores.max())
            mixed[position, own] = weights / weights.sum() @ values[: position + 1, shared]
    return _linear(layer, "self_attn.o_proj", mixed)
