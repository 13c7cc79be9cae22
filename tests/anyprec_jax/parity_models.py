"""Small random models of every family, made by `transformers`, with norms away from 1 and biases away from 0."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from anyprec_jax.models.config import ModelConfig

VOCABULARY = 97
Change = Callable[[Any, ModelConfig], tuple[Any, ModelConfig]]

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0}
_FACTORS = [1.0, 1.5, 2.0, 3.0, 8.0]
ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": _YARN,
    "factors": {
        "rope_type": "longrope",
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": 64,
        "short_factor": _FACTORS,
        "long_factor": _FACTORS,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 12,
        "short_factor": [1.0, 1.1, 1.2, 1.5, 2.0],
        "long_factor": _FACTORS,
    },
}


@dataclasses.dataclass(frozen=True)
class SmallModel:
    """A model's family, its settings, and what would change it: by the name of the setting, how to take it away."""

    family: str
    config: str  # class in transformers
    settings: Mapping[str, Any]
    wrong: Mapping[str, Change] = dataclasses.field(default_factory=dict)


def without(**fields: Any) -> Change:
    """Other values of fields of the config."""
    return lambda params, config: (params, dataclasses.replace(config, **fields))


def dropping(*names: str) -> Change:
    """Without parameters of the layers."""

    def change(params: Any, config: ModelConfig) -> tuple[Any, ModelConfig]:
        assert set(names) <= set(params["layers"]), names
        return params | {"layers": {k: v for k, v in params["layers"].items() if k not in names}}, config

    return change


def dropping_top(name: str) -> Change:
    """Without a parameter outside the layers."""

    def change(params: Any, config: ModelConfig) -> tuple[Any, ModelConfig]:
        assert name in params
        return {key: value for key, value in params.items() if key != name}, config

    return change


_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
# Heads of hidden / heads, for families that have no head_dim; an odd number of them.
_PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 60,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 64,
}
_NAMES = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_QKV_BIASES = ("q_proj_bias", "k_proj_bias", "v_proj_bias")
_HEAD_NORMS = {"q_norm": dropping("q_norm"), "k_norm": dropping("k_norm")}


def _rope(kind: str, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": ROPE[kind] | {"rope_theta": theta} | more}


def _llama(**changes: Any) -> SmallModel:
    wrong: dict[str, Change] = {}
    kind = changes.pop("rope", "default")
    if kind != "default":
        wrong["scaling"] = without(rope_scaling=None)
    settings = _LLAMA | _rope(kind, changes.pop("theta", 10000.0)) | changes
    return SmallModel("llama", "LlamaConfig", settings, wrong)


_WINDOWED = {"sliding_window": 7}
_LAYERS = {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_WINDOW_WRONG = {"window": without(window=None, global_layers=()), "window size": without(window=8)}
_MIXED_WRONG = _WINDOW_WRONG | {
    "windows everywhere": without(global_layers=()),
    "windows elsewhere": without(global_layers=(0,)),
}
_QWEN = _LLAMA | {"use_sliding_window": True, **_WINDOWED, **_LAYERS, "max_window_layers": 1}
_GEMMA2 = (
    _LLAMA
    | _WINDOWED
    | _LAYERS
    | {
        "query_pre_attn_scalar": 7,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 3.0,
        "attention_bias": True,
    }
)
_GEMMA_WRONG = _MIXED_WRONG | {
    "plus one": without(norm_plus_one=False),
    "embedding scale": without(embedding_scale=1.0),
    "query scale": without(query_scale=None),
    "activation": without(activation="silu"),
    "attention output norm": dropping("attention_output_norm"),
    "mlp output norm": dropping("mlp_output_norm"),
    "logit cap": without(logit_cap=None),
}
_PHI3 = _LLAMA | {"hidden_size": 60, **_NAMES, "num_key_value_heads": 3}
del _PHI3["head_dim"]
_OLMO2 = _PLAIN | _NAMES | {"num_attention_heads": 6, "num_key_value_heads": 3, "rms_norm_eps": 1e-5}
_STABLELM = _PLAIN | {
    "partial_rotary_factor": 0.5,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "hidden_size": 72,
}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 60, "n_layer": 2, "n_head": 5, "n_positions": 64, **_NAMES}
_OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 60,
    "ffn_dim": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "max_position_embeddings": 64,
    **_NAMES,
}
_OPT_WRONG = {
    "offset": without(position_offset=0, max_position_embeddings=66),
    "activation": without(activation="gelu"),
    "positions": without(learned_positions=False),
}
_NEOX = {key: value for key, value in _PLAIN.items() if key != "num_key_value_heads"} | _NAMES
_NEOX_WRONG = {"rotary part": without(rotary_dim=12), "residual": without(residual="sequential")}
_MOE = _LLAMA | _NAMES | {"intermediate_size": 24, "num_experts_per_tok": 2}
_OLMOE = _OLMO2 | {"intermediate_size": 24, "num_experts_per_tok": 3, "num_experts": 5}
_FEWER = {"experts per token": without(experts_per_token=1)}

MODELS: dict[str, SmallModel] = {
    "llama: grouped queries": _llama(),
    "llama: one key head": _llama(num_key_value_heads=1),
    "llama: all key heads": _llama(num_key_value_heads=6),
    "llama: usual heads": _llama(head_dim=8),
    "llama: tied": _llama(tie_word_embeddings=True),
    "llama: attention bias": _llama(attention_bias=True),
    "llama: mlp bias": _llama(mlp_bias=True),
    "llama: everything": _llama(
        attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope="llama3", theta=500.0
    ),
    **{
        f"llama: rope {name}": _llama(rope=name, **({"max_position_embeddings": 12} if name == "dynamic" else {}))
        for name in ROPE
        if name not in ("default", "longrope")
    },
    "llama: rope longrope": _llama(rope="longrope", max_position_embeddings=64),
    "smollm3": SmallModel(
        "smollm3",
        "SmolLM3Config",
        _PLAIN
        | _NAMES
        | _rope("default", 500.0)
        | {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "num_attention_heads": 6, "num_key_value_heads": 2},
        {
            "unrotated layers": without(unrotated_layers=()),
            "which": without(unrotated_layers=(0,)),
        },
    ),
    "smollm3: window and biases": SmallModel(
        "smollm3",
        "SmolLM3Config",
        _PLAIN
        | _NAMES
        | {"num_hidden_layers": 3, "no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True}
        | {"use_sliding_window": True, "tie_word_embeddings": False, **_WINDOWED},
        _MIXED_WRONG | {"biases": dropping(*_QKV_BIASES), "unrotated layers": without(unrotated_layers=())},
    ),
    "mistral": SmallModel("mistral", "MistralConfig", _LLAMA | {"sliding_window": None}),
    "mistral: window": SmallModel(
        "mistral", "MistralConfig", _LLAMA | _WINDOWED | {"tie_word_embeddings": True}, _WINDOW_WRONG
    ),
    "qwen2": SmallModel(
        "qwen2",
        "Qwen2Config",
        _LLAMA | _rope("yarn"),
        {"biases": dropping(*_QKV_BIASES), "scaling": without(rope_scaling=None)},
    ),
    "qwen2: tied, windows": SmallModel("qwen2", "Qwen2Config", _QWEN | {"tie_word_embeddings": True}, _MIXED_WRONG),
    "qwen3": SmallModel("qwen3", "Qwen3Config", _LLAMA, _HEAD_NORMS),
    "qwen3: tied, biases, windows": SmallModel(
        "qwen3",
        "Qwen3Config",
        _QWEN | {"tie_word_embeddings": True, "attention_bias": True},
        _HEAD_NORMS | _MIXED_WRONG | {"biases": dropping(*_QKV_BIASES)},
    ),
    "gemma2: everything": SmallModel(
        "gemma2",
        "Gemma2Config",
        _GEMMA2,
        _GEMMA_WRONG | {"score cap": without(score_cap=None), "biases": dropping(*_QKV_BIASES)},
    ),
    "gemma2: no caps, untied": SmallModel(
        "gemma2",
        "Gemma2Config",
        _GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False},
    ),
    "gemma3": SmallModel(
        "gemma3",
        "Gemma3TextConfig",
        _GEMMA2
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            }
        },
        _GEMMA_WRONG
        | _HEAD_NORMS
        | {
            "scaling": without(rope_scaling=None),
            "theta": without(rope_theta=100.0),
            "theta in windows": without(window_rope_theta=5000.0),
        },
    ),
    "phi3": SmallModel("phi3", "Phi3Config", _PHI3),
    "phi3: longrope, part of a head": SmallModel(
        "phi3",
        "Phi3Config",
        _PHI3
        | _rope(
            "longrope", partial_rotary_factor=0.8, short_factor=[1.0, 1.1, 1.2, 1.5], long_factor=[1.0, 1.5, 2.0, 8.0]
        )
        | {"original_max_position_embeddings": 12, "tie_word_embeddings": True, **_WINDOWED},
        _WINDOW_WRONG
        | {"scaling": without(rope_scaling=None), "rotary part": without(rope_scaling=None, rotary_dim=10)},
    ),
    "olmo2": SmallModel(
        "olmo2",
        "Olmo2Config",
        _OLMO2,
        _HEAD_NORMS
        | {
            "attention output norm": dropping("attention_output_norm"),
            "mlp output norm": dropping("mlp_output_norm"),
        },
    ),
    "olmo2: tied, biases, linear": SmallModel(
        "olmo2",
        "Olmo2Config",
        _OLMO2 | _rope("linear") | {"tie_word_embeddings": True, "attention_bias": True},
        {"biases": dropping(*_QKV_BIASES), "scaling": without(rope_scaling=None)},
    ),
    "stablelm": SmallModel(
        "stablelm",
        "StableLmConfig",
        _STABLELM | {"use_qkv_bias": True},
        {
            "kind of norm": without(norm="rms"),
            "norm bias": dropping("input_norm_bias"),
            "rotary part": without(rotary_dim=None),
            "biases": dropping(*_QKV_BIASES),
        },
    ),
    "stablelm: parallel, head norms, tied": SmallModel(
        "stablelm",
        "StableLmConfig",
        _STABLELM | {"use_parallel_residual": True, "qk_layernorm": True, "tie_word_embeddings": True},
        {"residual": without(residual="sequential"), **_HEAD_NORMS},
    ),
    "gpt2": SmallModel(
        "gpt2",
        "GPT2Config",
        _GPT2,
        {
            "positions": without(learned_positions=False),
            "activation": without(activation="relu"),
            "norm bias": dropping("input_norm_bias"),
            "biases": dropping(*_QKV_BIASES),
        },
    ),
    "gpt2: untied, exact gelu, unscaled": SmallModel(
        "gpt2",
        "GPT2Config",
        _GPT2
        | {"n_inner": 40, "activation_function": "gelu", "scale_attn_weights": False, "tie_word_embeddings": False},
        {"query scale": without(query_scale=None), "activation": without(activation="silu")},
    ),
    "opt": SmallModel("opt", "OPTConfig", _OPT, _OPT_WRONG | {"final norm": dropping_top("final_norm")}),
    "opt: norms of sums, narrow embedding": SmallModel(
        "opt",
        "OPTConfig",
        _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 28},
        _OPT_WRONG | {"order": without(norm_order="output")},
    ),
    "opt: no biases, no final norm, untied": SmallModel(
        "opt",
        "OPTConfig",
        _OPT | {"enable_bias": False, "_remove_final_layer_norm": True, "tie_word_embeddings": False},
    ),
    "gpt_neox": SmallModel(
        "gpt_neox", "GPTNeoXConfig", _NEOX | _rope("default", partial_rotary_factor=0.5), _NEOX_WRONG
    ),
    "gpt_neox: sequential, tied, linear": SmallModel(
        "gpt_neox",
        "GPTNeoXConfig",
        _NEOX
        | _rope("linear", partial_rotary_factor=0.5)
        | {"use_parallel_residual": False, "tie_word_embeddings": True, "attention_bias": False},
        {"residual": without(residual="parallel"), "scaling": without(rope_scaling=None)},
    ),
    "mixtral": SmallModel(
        "mixtral",
        "MixtralConfig",
        _MOE | {"num_local_experts": 5},
        _FEWER | {"normalized weights": without(normalized_experts=False)},
    ),
    "mixtral: window, tied": SmallModel(
        "mixtral",
        "MixtralConfig",
        _MOE | {"num_local_experts": 3, "tie_word_embeddings": True, **_WINDOWED},
        _WINDOW_WRONG,
    ),
    "qwen3_moe": SmallModel(
        "qwen3_moe",
        "Qwen3MoeConfig",
        _MOE | {"num_experts": 5, "moe_intermediate_size": 24, "intermediate_size": 99, "norm_topk_prob": True},
        _HEAD_NORMS | _FEWER | {"normalized weights": without(normalized_experts=False)},
    ),
    "qwen3_moe: weights as they are, window, biases": SmallModel(
        "qwen3_moe",
        "Qwen3MoeConfig",
        _MOE
        | {
            "num_experts": 4,
            "moe_intermediate_size": 24,
            "use_sliding_window": True,
            "attention_bias": True,
            **_WINDOWED,
        },
        _WINDOW_WRONG | {"biases": dropping(*_QKV_BIASES), "normalized weights": without(normalized_experts=True)},
    ),
    "olmoe": SmallModel(
        "olmoe",
        "OlmoeConfig",
        _OLMOE | {"clip_qkv": 0.7, "attention_bias": True},
        _HEAD_NORMS
        | _FEWER
        | {"limit": without(qkv_limit=None), "normalized weights": without(normalized_experts=True)},
    ),
    "olmoe: normalized, tied": SmallModel(
        "olmoe", "OlmoeConfig", _OLMOE | {"norm_topk_prob": True, "tie_word_embeddings": True}
    ),
}


def random_model(name: str, **changes: Any) -> Any:
    """The model of that name, made by `transformers`; the same every time."""
    small = MODELS[name]
    config = getattr(transformers, small.config)(**{**small.settings, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in path or ".ln_" in path
            center = 1.0 if is_norm and path.endswith("weight") and not small.family.startswith("gemma") else 0.0
            is_vector = is_norm or path.endswith("bias")
            parameter.copy_(center + (0.3 if is_vector else 0.15) * noise)
    return model
