"""The families with an RMSNorm and one gated MLP: Llama, and what was made of it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families.family import DEFAULTS, GGUF_MODULES, MODULES, QK_ROWS, SETTINGS, Family, Layout
from anyprec_jax.models.families.layer_types import (
    FULL,
    SLIDING,
    count_of,
    window_if_used,
    window_of_all,
    window_of_some,
    written_windows,
    written_windows_if_used,
)
from anyprec_jax.models.rope_scaling import real

_QKV = "model.layers.{layer}.self_attn.qkv_proj"
_GATE_UP = "model.layers.{layer}.mlp.gate_up_proj"
_BIAS_SETTINGS = {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"}

LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    settings={**SETTINGS, **_BIAS_SETTINGS},
    defaults={
        **DEFAULTS,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_ids": (2,),
    },
    layout=Layout(modules=MODULES, derived=(".rotary_emb.inv_freq",)),
    gguf_architecture="llama",
    gguf=Layout(modules=GGUF_MODULES, paired=QK_ROWS),
)


def _read_smollm3(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    count, rotated = count_of(fields), document.get("no_rope_layers")  # where 1 is a layer with rotary embedding
    if rotated is None:
        interval = document.get("no_rope_layer_interval", 4)
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f"no_rope_layer_interval should be a positive integer, got {interval!r}")
        rotated = [int((layer + 1) % interval != 0) for layer in range(count)]
    if not isinstance(rotated, list) or len(rotated) != count:
        raise ValueError(f"no_rope_layers should say 0 or 1 for each of {count} layers, got {rotated!r}")
    window = document.get("sliding_window") if document.get("use_sliding_window") else None
    usual = [FULL if turns or window is None else SLIDING for turns in rotated]
    unrotated = tuple(layer for layer, turns in enumerate(rotated) if not turns)
    return {"unrotated_layers": unrotated, **window_of_some(document, fields, window, usual)}


def _write_smollm3(config: ModelConfig) -> dict[str, Any]:
    rotated = [int(layer not in config.unrotated_layers) for layer in range(config.num_layers)]
    return {"no_rope_layers": rotated, **written_windows_if_used(config)}


SMOLLM3 = dataclasses.replace(
    LLAMA,
    model_type="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    defaults={
        **LLAMA.defaults,
        "num_kv_heads": 4,
        "max_position_embeddings": 32768,
        "tie_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_ids": (128001,),
        "pad_token_id": 128004,
    },
    read=_read_smollm3,
    write=_write_smollm3,
    theta=2_000_000.0,
    gguf_architecture="smollm3",
)

MISTRAL = dataclasses.replace(
    LLAMA,
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    settings=SETTINGS,
    defaults={
        **DEFAULTS,
        "num_kv_heads": 8,
        "max_position_embeddings": 131072,
        "bos_token_id": 1,
        "eos_token_ids": (2,),
    },
    read=lambda document, fields: window_of_all(document, 4096),
    write=lambda config: {"sliding_window": config.window},
    gguf_architecture="mistral",
)

QWEN2 = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    settings=SETTINGS,
    defaults={**DEFAULTS, "num_kv_heads": 32, "max_position_embeddings": 32768},
    flags={"qkv_bias": True},
    read=window_if_used,
    write=written_windows_if_used,
    layout=LLAMA.layout,
    gguf_architecture="qwen2",
    gguf=Layout(modules=GGUF_MODULES),
)

QWEN3 = dataclasses.replace(
    QWEN2,
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    settings={**SETTINGS, "attention_bias": "attention_bias"},
    defaults={**QWEN2.defaults, "head_dim": 128, "attention_bias": False},
    flags={"head_norm": "shared"},
    gguf_architecture="qwen3",
)

_GEMMA_MODULES = {
    **MODULES,
    "layers/attention_output_norm": "model.layers.{layer}.post_attention_layernorm",
    "layers/post_attention_norm": "model.layers.{layer}.pre_feedforward_layernorm",
    "layers/mlp_output_norm": "model.layers.{layer}.post_feedforward_layernorm",
}
_GEMMA_GGUF = {
    **GGUF_MODULES,
    "layers/attention_output_norm": "blk.{layer}.post_attention_norm",
    "layers/mlp_output_norm": "blk.{layer}.post_ffw_norm",
}


def _read_gemma(document: Mapping[str, Any], fields: Mapping[str, Any], usual: list[str]) -> dict[str, Any]:
    if document.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is not supported: the decoder's attention is causal")
    hidden_size = fields["hidden_size"]
    scalar = real(document, "query_pre_attn_scalar", 256.0)
    if scalar <= 0:
        raise ValueError(f"query_pre_attn_scalar should be positive, got {scalar}")
    return {
        "query_scale": scalar**-0.5,
        "embedding_scale": math.sqrt(hidden_size) if isinstance(hidden_size, int) and hidden_size > 0 else 1.0,
        **window_of_some(document, fields, document.get("sliding_window", 4096), usual),
    }


def _read_gemma2(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    usual = [FULL if layer % 2 else SLIDING for layer in range(count_of(fields))]
    return {
        **_read_gemma(document, fields, usual),
        "score_cap": _cap(document, "attn_logit_softcapping", 50.0),
        "logit_cap": _cap(document, "final_logit_softcapping", 30.0),
    }


def _cap(document: Mapping[str, Any], key: str, default: float | None) -> float | None:
    """null is no cap; silence is the default."""
    return None if document.get(key, default) is None else real(document, key, default)


def _query_scalar(config: ModelConfig) -> float | int:
    scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
    scalar = scale**-2
    return round(scalar) if math.isclose(scalar, round(scalar), rel_tol=1e-12) else scalar


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    return {
        "query_pre_attn_scalar": _query_scalar(config),
        "attn_logit_softcapping": config.score_cap,
        "final_logit_softcapping": config.logit_cap,
        **written_windows(config),
    }


GEMMA2 = Family(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM",),
    settings={**SETTINGS, "activation": "hidden_activation", "attention_bias": "attention_bias"},
    defaults={
        **DEFAULTS,
        "activation": "gelu_pytorch_tanh",
        "num_kv_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "tie_embeddings": True,
        "attention_bias": False,
        "bos_token_id": 2,
        "eos_token_ids": (1,),
        "pad_token_id": 0,
    },
    flags={"norm_plus_one": True, "norm_order": "both"},
    read=_read_gemma2,
    write=_write_gemma2,
    layout=Layout(modules=_GEMMA_MODULES, derived=(".rotary_emb.inv_freq",)),
    gguf_architecture="gemma2",
    gguf=Layout(modules=_GEMMA_GGUF, plus_one=True),
)


def _read_gemma3(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    pattern = document.get("sliding_window_pattern", document.get("_sliding_window_pattern", 6))
    if not isinstance(pattern, int) or pattern < 1:
        raise ValueError(f"sliding_window_pattern should be a positive integer, got {pattern!r}")
    usual = [SLIDING if (layer + 1) % pattern else FULL for layer in range(count_of(fields))]
    local = (document.get("rope_parameters") or {}).get(SLIDING) or {}
    if local.get("rope_type", "default") != "default":
        raise ValueError(f"rope scaling {local['rope_type']!r} of {SLIDING} is not supported; supported is default")
    theta = local.get("rope_theta", document.get("rope_local_base_freq"))
    return {
        **_read_gemma(document, fields, usual),
        "logit_cap": _cap(document, "final_logit_softcapping", None),
        "window_rope_theta": real({"rope_theta": theta}, "rope_theta", 10_000.0),
    }


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    """The rotary embedding by kind of layer; `attn_logit_softcapping` is never applied in this family."""
    return {
        "query_pre_attn_scalar": _query_scalar(config),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": config.logit_cap,
        "rope_local_base_freq": config.window_rope_theta,
        **written_windows(config),
    }


GEMMA3 = dataclasses.replace(
    GEMMA2,
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    defaults={**GEMMA2.defaults, "max_position_embeddings": 131072},
    flags={**GEMMA2.flags, "head_norm": "shared"},
    read=_read_gemma3,
    write=_write_gemma3,
    theta=1_000_000.0,
    gguf_architecture="gemma3",
)

PHI3 = Family(
    model_type="phi3",
    architectures=("Phi3ForCausalLM",),
    settings=SETTINGS,
    defaults={
        **DEFAULTS,
        "norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_ids": (32000,),
        "pad_token_id": 32000,
    },
    read=lambda document, fields: window_of_all(document, None),
    write=lambda config: {
        "sliding_window": config.window,
        "original_max_position_embeddings": getattr(
            config.rope_scaling, "original_max_position_embeddings", config.max_position_embeddings
        ),
    },
    layout=Layout(
        modules={
            **MODULES,
            **dict.fromkeys(("layers/q_proj", "layers/k_proj", "layers/v_proj"), _QKV),
            **dict.fromkeys(("layers/gate_proj", "layers/up_proj"), _GATE_UP),
        },
        derived=(".rotary_emb.inv_freq",),
    ),
    partial_rotary=True,
    gguf_architecture="phi3",
    gguf=Layout(
        modules={
            **GGUF_MODULES,
            **dict.fromkeys(("layers/q_proj", "layers/k_proj", "layers/v_proj"), "blk.{layer}.attn_qkv"),
            **dict.fromkeys(("layers/gate_proj", "layers/up_proj"), "blk.{layer}.ffn_up"),
        }
    ),
)

OLMO2 = Family(
    model_type="olmo2",
    architectures=("Olmo2ForCausalLM",),
    settings={**SETTINGS, "attention_bias": "attention_bias"},
    defaults={
        **DEFAULTS,
        "norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "eos_token_ids": (50279,),
        "pad_token_id": 1,
    },
    flags={"norm_order": "output", "head_norm": "joint"},
    layout=Layout(
        modules={
            **MODULES,
            "layers/attention_output_norm": "model.layers.{layer}.post_attention_layernorm",
            "layers/mlp_output_norm": "model.layers.{layer}.post_feedforward_layernorm",
        },
        derived=(".rotary_emb.inv_freq",),
    ),
    gguf_architecture="olmo2",
    gguf=Layout(modules=_GEMMA_GGUF),
)
