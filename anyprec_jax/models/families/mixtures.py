"""The families with mixtures of experts: Mixtral, Qwen3-MoE and OLMoE."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from anyprec_jax.models.families.dense import MISTRAL, QWEN3
from anyprec_jax.models.families.family import DEFAULTS, GGUF_MODULES, MODULES, QK_ROWS, SETTINGS, Family, Layout
from anyprec_jax.models.families.layer_types import window_of_all

_EXPERT_SETTINGS = {"experts_per_token": "num_experts_per_tok"}
_EXPERT = "model.layers.{layer}.mlp.experts.{index}"
_EXPERT_MODULES = {
    **MODULES,
    "layers/router": "model.layers.{layer}.mlp.gate",
    "layers/gate_proj": f"{_EXPERT}.gate_proj",
    "layers/up_proj": f"{_EXPERT}.up_proj",
    "layers/down_proj": f"{_EXPERT}.down_proj",
}
_EXPERT_GGUF = {
    **GGUF_MODULES,
    "layers/router": "blk.{layer}.ffn_gate_inp",
    "layers/gate_proj": "blk.{layer}.ffn_gate_exps",
    "layers/up_proj": "blk.{layer}.ffn_up_exps",
    "layers/down_proj": "blk.{layer}.ffn_down_exps",
}
_MIXTRAL_MOE = "model.layers.{layer}.block_sparse_moe"

MIXTRAL = dataclasses.replace(
    MISTRAL,
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    settings={**SETTINGS, **_EXPERT_SETTINGS, "num_experts": ("num_local_experts", "num_experts")},
    defaults={**MISTRAL.defaults, "norm_eps": 1e-5, "num_experts": 8, "experts_per_token": 2},
    flags={"normalized_experts": True},
    read=lambda document, fields: window_of_all(document, None),
    layout=Layout(
        modules={
            **MODULES,
            "layers/router": f"{_MIXTRAL_MOE}.gate",
            "layers/gate_proj": f"{_MIXTRAL_MOE}.experts.{{index}}.w1",
            "layers/up_proj": f"{_MIXTRAL_MOE}.experts.{{index}}.w3",
            "layers/down_proj": f"{_MIXTRAL_MOE}.experts.{{index}}.w2",
        }
    ),
    theta=1_000_000.0,
    gguf_architecture="llama",
    gguf=Layout(modules=_EXPERT_GGUF, paired=QK_ROWS),
)


def _read_qwen3_moe(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    if document.get("mlp_only_layers") or document.get("decoder_sparse_step", 1) != 1:
        raise ValueError(
            "mlp_only_layers and decoder_sparse_step are not supported: every layer should have experts, or none"
        )
    return window_of_all(document, 4096) if document.get("use_sliding_window") else {}


QWEN3_MOE = dataclasses.replace(
    QWEN3,
    model_type="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    settings={
        **QWEN3.settings,
        **_EXPERT_SETTINGS,
        "intermediate_size": "moe_intermediate_size",
        "num_experts": ("num_experts", "num_local_experts"),
        "normalized_experts": "norm_topk_prob",
    },
    defaults={
        **DEFAULTS,
        "num_kv_heads": 4,
        "max_position_embeddings": 32768,
        "intermediate_size": 768,
        "attention_bias": False,
        "num_experts": 128,
        "experts_per_token": 8,
        "normalized_experts": False,
    },
    read=_read_qwen3_moe,
    write=lambda config: {
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    },
    layout=Layout(modules=_EXPERT_MODULES),
    gguf_architecture="qwen3moe",
    gguf=Layout(modules=_EXPERT_GGUF),
)


def _read_olmoe(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    limit = document.get("clip_qkv")
    return {"qkv_limit": float(limit) if isinstance(limit, int) and not isinstance(limit, bool) else limit}


OLMOE = Family(
    model_type="olmoe",
    architectures=("OlmoeForCausalLM",),
    settings={
        **SETTINGS,
        **_EXPERT_SETTINGS,
        "attention_bias": "attention_bias",
        "num_experts": ("num_experts", "num_local_experts"),
        "normalized_experts": "norm_topk_prob",
    },
    defaults={
        **DEFAULTS,
        "norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "attention_bias": False,
        "num_experts": 64,
        "experts_per_token": 8,
        "normalized_experts": False,
        "eos_token_ids": (50279,),
        "pad_token_id": 1,
    },
    flags={"head_norm": "joint"},
    read=_read_olmoe,
    write=lambda config: {"clip_qkv": config.qkv_limit},
    layout=Layout(modules=_EXPERT_MODULES),
    gguf_architecture="olmoe",
    gguf=Layout(modules=_EXPERT_GGUF),
)
