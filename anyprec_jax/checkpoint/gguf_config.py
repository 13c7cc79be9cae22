"""The settings of a model, from the metadata and the tensors of its GGUF file."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor

from anyprec_jax.checkpoint.gguf_reader import required, shortest, value
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import FAMILIES, Family, Layout
from anyprec_jax.models.rope import frequencies
from anyprec_jax.models.rope_scaling import (
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
    yarn_attention_factor,
)

ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
# What llama.cpp knows of an architecture and its files do not say.
_GEMMA_27B = {
    "gemma2": 46,
    "gemma3": 62,
}  # layers of the models whose queries are scaled by the width of hidden / heads
_GEMMA3_PATTERN = 6
_SMOLLM3_PATTERN = 4
_ALWAYS_NORMALIZED = ("mixtral", "qwen3_moe")


def family_of(reader: GGUFReader) -> tuple[str, Family]:
    """The family of a file, by its architecture: a Llama with experts is a Mixtral.

    Raises:
      ValueError: an architecture that is not supported; those that are get named.
    """
    architecture = required(reader, "general.architecture", str)
    has_experts = bool(required(reader, f"{architecture}.expert_count", int, 0))
    for name, family in FAMILIES.items():
        if family.gguf_architecture == architecture and has_experts == ("num_experts" in family.settings):
            return name, family
    names = sorted({family.gguf_architecture for family in FAMILIES.values() if family.gguf_architecture})
    if architecture in names:
        raise ValueError(
            f"GGUF architecture {architecture!r} {'with' if has_experts else 'without'} experts is not supported"
        )
    raise ValueError(f"GGUF architecture {architecture!r} is not supported; supported are {', '.join(names)}")


def config_from_gguf(reader: GGUFReader, name: str, family: Family, stored: Mapping[str, ReaderTensor]) -> ModelConfig:
    """The model's settings.

    Args:
      reader: an open file.
      name, family: as `family_of` says.
      stored: its tensors by name.

    Raises:
      ValueError: metadata that are missing or not supported.
    """
    prefix, layout = family.gguf_architecture, family.gguf
    assert prefix is not None and layout is not None

    def number(key: str, default: int | None = None) -> int:
        return required(reader, f"{prefix}.{key}", int, default)

    if required(reader, "split.count", int, 1) > 1:
        raise ValueError("it is one part of a model that was split: join the parts (llama-gguf-split --merge)")
    hidden_size, num_heads = number("embedding_length"), number("attention.head_count")
    if num_heads < 1:
        raise ValueError(f"{prefix}.attention.head_count is {num_heads}")
    head_dim = number("attention.key_length", hidden_size // num_heads)
    if number("attention.value_length", head_dim) != head_dim:
        raise ValueError(
            f"{prefix}.attention.value_length {number('attention.value_length')} is not supported; supported is the width of a "
            f"head, {head_dim}"
        )
    embedding = stored.get(f"{layout.modules['embedding']}.weight")
    if embedding is None:
        raise ValueError(f"it lacks the tensor {layout.modules['embedding']}.weight")
    norm = "layer_norm_epsilon" if family.flags.get("norm") == "layer" else "layer_norm_rms_epsilon"
    ends = [value(reader, f"tokenizer.ggml.{key}_token_id", int) for key in ("eos", "eot", "eom")]
    fields: dict[str, Any] = {
        **family.flags,
        "vocab_size": int(embedding.shape[-1]),
        "hidden_size": hidden_size,
        "intermediate_size": number("expert_feed_forward_length", number("feed_forward_length", 0)),
        "num_layers": number("block_count"),
        "num_heads": num_heads,
        "num_kv_heads": number("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": number("context_length"),
        "norm_eps": shortest(required(reader, f"{prefix}.attention.{norm}", float)),
        "activation": _ACTIVATIONS.get(name, "silu"),
        "tie_embeddings": f"{layout.modules['head']}.weight" not in stored,
        **_biases(family, layout, stored),
        "bos_token_id": value(reader, "tokenizer.ggml.bos_token_id", int),
        "eos_token_ids": tuple(dict.fromkeys(end for end in ends if end is not None)),
        "pad_token_id": value(reader, "tokenizer.ggml.padding_token_id", int),
    }
    if fields.get("rotary_dim") is None:
        fields |= _rotary(reader, prefix, head_dim, stored, family)
    if "num_experts" in family.settings:
        fields |= {"num_experts": number("expert_count"), "experts_per_token": number("expert_used_count")}
        fields["normalized_experts"] = name in _ALWAYS_NORMALIZED
    fields |= _of_family(reader, name, prefix, fields, stored)
    return ModelConfig(family=name, **fields)


_ACTIVATIONS = {"gemma2": "gelu_tanh", "gemma3": "gelu_tanh", "gpt2": "gelu_tanh", "gpt_neox": "gelu"}


def _biases(family: Family, layout: Layout, stored: Mapping[str, ReaderTensor]) -> dict[str, bool]:
    """llama.cpp has each bias or not: what is there decides, where the family leaves it open."""

    def has(*names: str) -> bool:
        modules = (layout.modules.get(f"layers/{name}") for name in names)
        return any(module is not None and f"{module.format(layer=0)}.bias" in stored for module in modules)

    found = {}
    if "attention_bias" in family.settings:
        found["attention_bias"] = has("q_proj", "k_proj", "v_proj", "o_proj")
    if "qkv_bias" in family.settings:
        found["qkv_bias"] = has("q_proj", "k_proj", "v_proj")
    if "mlp_bias" in family.settings:
        found["mlp_bias"] = has("gate_proj", "up_proj", "down_proj")
    return found


def _of_family(
    reader: GGUFReader, name: str, prefix: str, fields: Mapping[str, Any], stored: Mapping[str, ReaderTensor]
) -> dict[str, Any]:
    """What one family has and others have not."""
    found: dict[str, Any] = {}
    layers = range(min(fields["num_layers"], 1_000_000))
    window = value(reader, f"{prefix}.attention.sliding_window", int)
    if name in ("gemma2", "gemma3"):
        is_27b = fields["num_layers"] == _GEMMA_27B[name]
        found["query_scale"] = (fields["hidden_size"] / fields["num_heads"] if is_27b else fields["head_dim"]) ** -0.5
        found["embedding_scale"] = math.sqrt(fields["hidden_size"])
        found["logit_cap"] = _number(reader, f"{prefix}.final_logit_softcapping")
        pattern = (
            2
            if name == "gemma2"
            else required(reader, f"{prefix}.attention.sliding_window_pattern", int, _GEMMA3_PATTERN)
        )
        found |= {"window": window, "global_layers": tuple(layer for layer in layers if (layer + 1) % pattern == 0)}
    if name == "gemma2":
        found["score_cap"] = _number(reader, f"{prefix}.attn_logit_softcapping")
    if name == "gemma3":
        found["window_rope_theta"] = _number(reader, f"{prefix}.rope.freq_base_swa") or 10_000.0
    if name in ("mistral", "mixtral", "phi3"):
        found["window"] = window or None
    if name == "smollm3":
        found["unrotated_layers"] = tuple(layer for layer in layers if (layer + 1) % _SMOLLM3_PATTERN == 0)
    if name == "stablelm":
        found["head_norm"] = "separate" if "blk.0.attn_q_norm.weight" in stored else "none"
        found["residual"] = "sequential" if "blk.0.ffn_norm.weight" in stored else "parallel_one_norm"
    if name == "gpt_neox":
        is_parallel = required(reader, f"{prefix}.use_parallel_residual", bool, True)
        found["residual"] = "parallel" if is_parallel else "sequential"
    if name == "olmoe":
        found["qkv_limit"] = _number(reader, f"{prefix}.attention.clamp_kqv")
    return found


def _number(reader: GGUFReader, key: str) -> float | None:
    found = value(reader, key, float)
    return None if found is None else shortest(found)


def _rotary(
    reader: GGUFReader, prefix: str, head_dim: int, stored: Mapping[str, ReaderTensor], family: Family
) -> dict[str, Any]:
    rotated = required(reader, f"{prefix}.rope.dimension_count", int, head_dim)
    if rotated != head_dim and not family.partial_rotary:
        raise ValueError(
            f"{prefix}.rope.dimension_count {rotated} is not supported; supported is the width of a head, {head_dim}"
        )
    theta = shortest(required(reader, f"{prefix}.rope.freq_base", float, 10_000.0))
    scaling = _rope_scaling(reader, prefix, rotated, theta, stored)
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": None if rotated == head_dim else rotated}


def _longrope(reader: GGUFReader, prefix: str, rotated: int, stored: Mapping[str, ReaderTensor]) -> LongRopeScaling:
    """Phi-3's: two tensors of factors."""
    factors = [
        tuple(map(shortest, np.asarray(stored[name].data, np.float32))) for name in (SHORT_FACTORS, LONG_FACTORS)
    ]
    return LongRopeScaling(
        short_factors=factors[0],
        long_factors=factors[1],
        original_max_position_embeddings=required(reader, f"{prefix}.rope.scaling.original_context_length", int),
        attention_factor=shortest(required(reader, f"{prefix}.rope.scaling.attn_factor", float, 1.0)),
    )


def _rope_scaling(
    reader: GGUFReader, prefix: str, rotated: int, theta: float, stored: Mapping[str, ReaderTensor]
) -> RopeScaling | None:
    if LONG_FACTORS in stored and SHORT_FACTORS in stored:
        return _longrope(reader, prefix, rotated, stored)
    factors = stored.get(ROPE_FACTORS)

    def number(key: str, default: float) -> float:
        return shortest(required(reader, f"{prefix}.rope.{key}", float, default))

    kind = required(reader, f"{prefix}.rope.scaling.type", str, "linear")
    factor = number("scaling.factor", number("scale_linear", 1.0)) or 1.0  # llama.cpp: 0 is none
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"rope scaling {kind!r} is not supported; supported are none, linear, yarn and {ROPE_FACTORS}")
    if kind == "none" or factor == 1.0:
        return None if factors is None else _scaling_by_factors(np.asarray(factors.data, np.float32), rotated, theta)
    if factors is not None:
        raise ValueError(f"rope scaling {kind!r} together with {ROPE_FACTORS} is not supported")
    if kind == "linear":
        return LinearScaling(factor=factor)
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=required(reader, f"{prefix}.rope.scaling.original_context_length", int),
        attention_factor=number("scaling.attn_factor", 1.0) * yarn_attention_factor(factor),
        beta_fast=number("scaling.yarn_beta_fast", 32.0),
        beta_slow=number("scaling.yarn_beta_slow", 1.0),
    )


def _scaling_by_factors(factors: np.ndarray, rotated: int, theta: float) -> RopeScaling | None:
    """The scaling that a tensor of factors stands for: Llama 3's by name if it is that one, so that other programs know it too."""
    if factors.shape != (rotated // 2,):
        raise ValueError(
            f"{ROPE_FACTORS} has shape {factors.shape}, and {rotated} rotated dimensions have {rotated // 2} pairs"
        )
    by_pair = FrequencyFactors(factors=tuple(shortest(factor) for factor in factors))
    if np.all(factors == 1):
        return None
    # Every Llama from 3.1 on was released with these three numbers; the file itself does not keep them.
    llama3 = Llama3Scaling(
        factor=max(by_pair.factors), low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    meant = frequencies(rotated, theta, None) / frequencies(rotated, theta, llama3)
    return llama3 if np.allclose(factors, meant, rtol=1e-5, atol=0) else by_pair
