"""The families with a LayerNorm: StableLM, GPT-2, OPT and GPT-NeoX."""

from collections.abc import Mapping
from typing import Any

from anyprec_jax.models.families.family import DEFAULTS, GGUF_MODULES, MODULES, SETTINGS, Family, Layout


def _read_stablelm(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "residual": "parallel_one_norm" if document.get("use_parallel_residual") else "sequential",
        "head_norm": "separate" if document.get("qk_layernorm") else "none",
    }


STABLELM = Family(
    model_type="stablelm",
    architectures=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    settings={**SETTINGS, "norm_eps": "layer_norm_eps", "qkv_bias": "use_qkv_bias"},
    defaults={
        **DEFAULTS,
        "norm_eps": 1e-5,
        "num_kv_heads": 32,
        "max_position_embeddings": 4096,
        "qkv_bias": False,
        "bos_token_id": 0,
        "eos_token_ids": (0,),
    },
    flags={"norm": "layer"},
    read=_read_stablelm,
    write=lambda config: {
        "use_parallel_residual": config.residual != "sequential",
        "qk_layernorm": config.head_norm != "none",
    },
    layout=Layout(
        modules={
            **MODULES,
            "layers/q_norm": "model.layers.{layer}.self_attn.q_layernorm.norms.{index}",
            "layers/k_norm": "model.layers.{layer}.self_attn.k_layernorm.norms.{index}",
        },
        derived=(".rotary_emb.inv_freq",),
    ),
    partial_rotary=True,
    rotary_share=0.25,
    gguf_architecture="stablelm",
    gguf=Layout(modules=GGUF_MODULES),
)


def _read_gpt2(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if document.get(key):
            raise ValueError(f"{key} is not supported")
    hidden = fields["hidden_size"]
    inner = document.get("n_inner")
    return {
        "intermediate_size": 4 * hidden if inner is None and isinstance(hidden, int) else inner,
        "query_scale": None if document.get("scale_attn_weights", True) else 1.0,
    }


_C_ATTN = "transformer.h.{layer}.attn.c_attn"

GPT2 = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel",),
    settings={
        **{
            field: key
            for field, key in SETTINGS.items()
            if field not in ("head_dim", "intermediate_size", "num_kv_heads")
        },
        "hidden_size": "n_embd",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "activation": "activation_function",
    },
    defaults={
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "max_position_embeddings": 1024,
        "norm_eps": 1e-5,
        "activation": "gelu_new",
        "tie_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_ids": (50256,),
    },
    flags={
        "norm": "layer",
        "attention_bias": True,
        "mlp_bias": True,
        "gated_mlp": False,
        "rotary_dim": 0,
        "learned_positions": True,
    },
    read=_read_gpt2,
    write=lambda config: {"n_inner": config.intermediate_size, "scale_attn_weights": config.query_scale is None},
    layout=Layout(
        modules={
            "embedding": "transformer.wte",
            "position_embedding": "transformer.wpe",
            "layers/input_norm": "transformer.h.{layer}.ln_1",
            **dict.fromkeys(("layers/q_proj", "layers/k_proj", "layers/v_proj"), _C_ATTN),
            "layers/o_proj": "transformer.h.{layer}.attn.c_proj",
            "layers/post_attention_norm": "transformer.h.{layer}.ln_2",
            "layers/up_proj": "transformer.h.{layer}.mlp.c_fc",
            "layers/down_proj": "transformer.h.{layer}.mlp.c_proj",
            "final_norm": "transformer.ln_f",
            "head": "lm_head",
        },
        transposed=frozenset(f"layers/{name}_proj" for name in ("q", "k", "v", "o", "up", "down")),
        derived=(".attn.bias", ".attn.masked_bias"),  # the causal mask
    ),
    prefix="transformer.",
    activation_names={"gelu_tanh": "gelu_new"},
    gguf_architecture="gpt2",
    gguf=Layout(
        modules={
            **GGUF_MODULES,
            "position_embedding": "position_embd",
            **dict.fromkeys(("layers/q_proj", "layers/k_proj", "layers/v_proj"), "blk.{layer}.attn_qkv"),
        }
    ),
)


def _read_opt(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    if not document.get("layer_norm_elementwise_affine", True):
        raise ValueError("layer_norm_elementwise_affine false is not supported: norms have weights")
    is_before, has_bias = document.get("do_layer_norm_before", True), document.get("enable_bias", True)
    narrow = document.get("word_embed_proj_dim")
    return {
        "norm_order": "input" if is_before else "sum",
        "final_norm": bool(is_before and not document.get("_remove_final_layer_norm", False)),
        "attention_bias": has_bias,
        "mlp_bias": has_bias,
        "embedding_size": None if narrow == fields["hidden_size"] else narrow,
    }


_OPT_LAYER = "model.decoder.layers.{layer}"

OPT = Family(
    model_type="opt",
    architectures=("OPTForCausalLM",),
    settings={
        **{field: key for field, key in SETTINGS.items() if field not in ("head_dim", "norm_eps", "num_kv_heads")},
        "intermediate_size": "ffn_dim",
        "activation": "activation_function",
    },
    defaults={
        "max_position_embeddings": 2048,
        "activation": "relu",
        "tie_embeddings": True,
        "bos_token_id": 2,
        "eos_token_ids": (2,),
        "pad_token_id": 1,
    },
    flags={
        "norm": "layer",
        "norm_eps": 1e-5,
        "gated_mlp": False,
        "rotary_dim": 0,
        "learned_positions": True,
        "position_offset": 2,
    },
    read=_read_opt,
    write=lambda config: {
        "do_layer_norm_before": config.norm_order == "input",
        "_remove_final_layer_norm": config.norm_order == "input" and not config.final_norm,
        "enable_bias": config.attention_bias,
        "word_embed_proj_dim": config.embedding_size or config.hidden_size,
    },
    layout=Layout(
        modules={
            "embedding": "model.decoder.embed_tokens",
            "position_embedding": "model.decoder.embed_positions",
            "project_in": "model.decoder.project_in",
            "project_out": "model.decoder.project_out",
            "layers/input_norm": f"{_OPT_LAYER}.self_attn_layer_norm",
            "layers/q_proj": f"{_OPT_LAYER}.self_attn.q_proj",
            "layers/k_proj": f"{_OPT_LAYER}.self_attn.k_proj",
            "layers/v_proj": f"{_OPT_LAYER}.self_attn.v_proj",
            "layers/o_proj": f"{_OPT_LAYER}.self_attn.out_proj",
            "layers/attention_output_norm": f"{_OPT_LAYER}.self_attn_layer_norm",
            "layers/post_attention_norm": f"{_OPT_LAYER}.final_layer_norm",
            "layers/mlp_output_norm": f"{_OPT_LAYER}.final_layer_norm",
            "layers/up_proj": f"{_OPT_LAYER}.fc1",
            "layers/down_proj": f"{_OPT_LAYER}.fc2",
            "final_norm": "model.decoder.final_layer_norm",
            "head": "lm_head",
        },
    ),
)

_NEOX_LAYER = "gpt_neox.layers.{layer}"
_NEOX_QKV = f"{_NEOX_LAYER}.attention.query_key_value"

GPT_NEOX = Family(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    settings={
        **{field: key for field, key in SETTINGS.items() if field not in ("head_dim", "num_kv_heads")},
        "norm_eps": "layer_norm_eps",
        "attention_bias": "attention_bias",
    },
    defaults={
        "max_position_embeddings": 2048,
        "norm_eps": 1e-5,
        "activation": "gelu",
        "tie_embeddings": False,
        "attention_bias": True,
        "bos_token_id": 0,
        "eos_token_ids": (2,),
    },
    flags={"norm": "layer", "mlp_bias": True, "gated_mlp": False},
    read=lambda document, fields: {
        "residual": "parallel" if document.get("use_parallel_residual", True) else "sequential"
    },
    write=lambda config: {"use_parallel_residual": config.residual == "parallel"},
    layout=Layout(
        modules={
            "embedding": "gpt_neox.embed_in",
            "layers/input_norm": f"{_NEOX_LAYER}.input_layernorm",
            **dict.fromkeys(("layers/q_proj", "layers/k_proj", "layers/v_proj"), _NEOX_QKV),
            "layers/o_proj": f"{_NEOX_LAYER}.attention.dense",
            "layers/post_attention_norm": f"{_NEOX_LAYER}.post_attention_layernorm",
            "layers/up_proj": f"{_NEOX_LAYER}.mlp.dense_h_to_4h",
            "layers/down_proj": f"{_NEOX_LAYER}.mlp.dense_4h_to_h",
            "final_norm": "gpt_neox.final_layer_norm",
            "head": "embed_out",
        },
        by_head=True,
        derived=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    ),
    prefix="gpt_neox.",
    partial_rotary=True,
    rotary_share=0.25,
    gguf_architecture="gptneox",
    gguf=Layout(
        modules={
            **GGUF_MODULES,
            **dict.fromkeys(("layers/q_proj", "layers/k_proj", "layers/v_proj"), "blk.{layer}.attn_qkv"),
        }
    ),
)
