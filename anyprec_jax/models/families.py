"""The families of models: what each calls its tensors and settings on disk, and the shapes that follow from them.

There is one decoder, and a family is a table. To add one, add a `Family` to `FAMILIES`.

A parameter is named by its path in the tree that `decoder` reads, "layers/q_proj" say; those below "layers" have the layer as their
first axis. A tensor is one layer of it, under the name a file gives it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.rope_scaling import real, scaling_from_huggingface, scaling_to_huggingface

LAYERS = "layers/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """The names one family goes by.

    Attributes:
      model_type: of its `config.json`.
      architectures: classes that `config.json` may name; the first is written.
      settings: field of `ModelConfig` -> key of `config.json`.
      defaults: field -> value where `config.json` is silent.
      modules: parameter -> module in safetensors, `{layer}` standing for the layer. Its tensors end in ".weight" and ".bias".
      gguf_architecture: `general.architecture` of its GGUF files.
      gguf_modules: parameter -> module in GGUF files.
      gguf_permuted: parameters whose rows llama.cpp reorders, so that the members of a rotary pair are neighbours.
    """

    model_type: str
    architectures: tuple[str, ...]
    settings: Mapping[str, str]
    defaults: Mapping[str, Any]
    modules: Mapping[str, str]
    gguf_architecture: str
    gguf_modules: Mapping[str, str]
    gguf_permuted: frozenset[str]


_LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    settings={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "max_position_embeddings": "max_position_embeddings",
        "rms_norm_eps": "rms_norm_eps",
        "tie_embeddings": "tie_word_embeddings",
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "bos_token_id": "bos_token_id",
        "eos_token_ids": "eos_token_id",
        "pad_token_id": "pad_token_id",
    },
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_ids": (2,),
    },
    modules={
        "embedding": "model.embed_tokens",
        "layers/input_norm": "model.layers.{layer}.input_layernorm",
        "layers/q_proj": "model.layers.{layer}.self_attn.q_proj",
        "layers/k_proj": "model.layers.{layer}.self_attn.k_proj",
        "layers/v_proj": "model.layers.{layer}.self_attn.v_proj",
        "layers/o_proj": "model.layers.{layer}.self_attn.o_proj",
        "layers/post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
        "layers/gate_proj": "model.layers.{layer}.mlp.gate_proj",
        "layers/up_proj": "model.layers.{layer}.mlp.up_proj",
        "layers/down_proj": "model.layers.{layer}.mlp.down_proj",
        "final_norm": "model.norm",
        "head": "lm_head",
    },
    gguf_architecture="llama",
    gguf_modules={
        "embedding": "token_embd",
        "layers/input_norm": "blk.{layer}.attn_norm",
        "layers/q_proj": "blk.{layer}.attn_q",
        "layers/k_proj": "blk.{layer}.attn_k",
        "layers/v_proj": "blk.{layer}.attn_v",
        "layers/o_proj": "blk.{layer}.attn_output",
        "layers/post_attention_norm": "blk.{layer}.ffn_norm",
        "layers/gate_proj": "blk.{layer}.ffn_gate",
        "layers/up_proj": "blk.{layer}.ffn_up",
        "layers/down_proj": "blk.{layer}.ffn_down",
        "final_norm": "output_norm",
        "head": "output",
    },
    gguf_permuted=frozenset({"layers/q_proj", "layers/q_proj_bias", "layers/k_proj", "layers/k_proj_bias"}),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({"llama": _LLAMA})  # by `ModelConfig.family`


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a model, by path; nothing is allocated."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, intermediate = config.hidden_size, config.intermediate_size
    layer: dict[str, tuple[int, ...]] = {
        "input_norm": (hidden,),
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "post_attention_norm": (hidden,),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }
    biased = ("q_proj", "k_proj", "v_proj", "o_proj") if config.attention_bias else ()
    biased += ("gate_proj", "up_proj", "down_proj") if config.mlp_bias else ()
    layer |= {f"{name}_bias": layer[name][:1] for name in biased}
    return {
        "embedding": (config.vocab_size, hidden),
        **{f"{LAYERS}{name}": (config.num_layers, *shape) for name, shape in layer.items()},
        "final_norm": (hidden,),
        **({} if config.tie_embeddings else {"head": (config.vocab_size, hidden)}),
    }


def tensor_name(modules: Mapping[str, str], parameter: str, layer: int | None) -> str:
    """What a file calls one layer of a parameter; `layer` is None outside the layers."""
    module = modules[parameter.removesuffix("_bias")].format(layer=layer)
    return f"{module}.bias" if parameter.endswith("_bias") else f"{module}.weight"


def tensors(config: ModelConfig) -> Iterator[tuple[str, int | None, tuple[int, ...]]]:
    """(parameter, layer, shape) of every tensor of a model, lazily: a config may claim any number of layers."""
    for parameter, shape in parameter_shapes(config).items():
        if parameter.startswith(LAYERS):
            yield from ((parameter, layer, shape[1:]) for layer in range(config.num_layers))
        else:
            yield parameter, None, shape


def config_from_huggingface(document: Any) -> ModelConfig:
    """Reads what `config.json` says, in the layout of `transformers` 5 (`rope_parameters`) or before (`rope_scaling`).

    Raises:
      ValueError: a family, activation or rotary scaling that is not supported (those that are get named), a model that is
        quantized already, or a value that makes no sense.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"the config of a model is a JSON object, got a {type(document).__name__}")
    name, family = _family_of(document)
    if document.get("quantization_config") is not None:
        raise ValueError("the model is quantized already (it has a quantization_config): give the one it was made from")
    if document.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"hidden_act {document['hidden_act']!r} is not supported; supported is silu")
    fields = {field: document.get(key, family.defaults.get(field)) for field, key in family.settings.items()}
    if fields["num_kv_heads"] is None:
        fields["num_kv_heads"] = fields["num_heads"]
    if fields["head_dim"] is None:
        fields["head_dim"] = _default_head_dim(fields["hidden_size"], fields["num_heads"])
    if fields["pad_token_id"] == -1:  # how Llama 1 spells "none"
        fields["pad_token_id"] = None
    fields["rms_norm_eps"] = real(fields, "rms_norm_eps")
    eos = _as_tuple(fields.pop("eos_token_ids"))
    _check_types(fields, family)
    theta, scaling = scaling_from_huggingface(document)
    return ModelConfig(family=name, rope_theta=theta, rope_scaling=scaling, eos_token_ids=eos, **fields)


def config_to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a model, readable by `transformers` 4 and 5 and by `config_from_huggingface`."""
    family = FAMILIES[config.family]
    document: dict[str, Any] = {
        "architectures": [family.architectures[0]],
        "model_type": family.model_type,
        "hidden_act": "silu",
    }
    document |= {key: getattr(config, field) for field, key in family.settings.items()}
    eos = config.eos_token_ids
    document["eos_token_id"] = None if not eos else eos[0] if len(eos) == 1 else list(eos)
    return document | scaling_to_huggingface(config.rope_theta, config.rope_scaling, config.max_position_embeddings)


def _family_of(document: Mapping[str, Any]) -> tuple[str, Family]:
    architectures = document.get("architectures") or []
    if not isinstance(architectures, list):
        raise ValueError(f"architectures should be a list, got {architectures!r}")
    model_type = document.get("model_type")
    for name, family in FAMILIES.items():
        known = any(architecture in family.architectures for architecture in architectures)
        if model_type in (family.model_type, None) and (known or (model_type is not None and not architectures)):
            return name, family
    supported = ", ".join(family.architectures[0] for family in FAMILIES.values())
    came = ", ".join(map(str, architectures)) or model_type or "none"
    raise ValueError(f"architecture {came} (model_type {model_type}) is not supported; supported are {supported}")


def _check_types(fields: Mapping[str, Any], family: Family) -> None:
    """JSON holds any type anywhere; `ModelConfig` judges values."""
    for field in dataclasses.fields(ModelConfig):
        value = fields.get(field.name)
        if field.name in fields and not isinstance(value, field.type):  # pyright: ignore[reportArgumentType]
            name = getattr(field.type, "__name__", str(field.type))
            raise ValueError(f"{family.settings[field.name]} should be {name}, got {value!r}")


def _default_head_dim(hidden_size: Any, num_heads: Any) -> Any:
    if not isinstance(hidden_size, int) or not isinstance(num_heads, int) or num_heads < 1 or hidden_size % num_heads:
        raise ValueError(
            f"hidden_size {hidden_size!r} is not a multiple of num_attention_heads {num_heads!r}, and there is no head_dim"
        )
    return hidden_size // num_heads


def _as_tuple(token_ids: Any) -> tuple[int, ...]:
    ids = () if token_ids is None else tuple(token_ids) if isinstance(token_ids, list | tuple) else (token_ids,)
    if not all(isinstance(token, int) for token in ids):
        raise ValueError(f"token ids should be integers, got {token_ids!r}")
    return ids
