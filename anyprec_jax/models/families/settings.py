"""`config.json`, read and written."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families.family import Family
from anyprec_jax.models.families.registry import FAMILIES
from anyprec_jax.models.rope_scaling import real, scaling_from_huggingface, scaling_to_huggingface

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


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
    fields = {field: _value(document, family, field) for field in family.settings}
    fields["activation"] = _activation(fields.get("activation"), family)
    fields |= dict(family.flags)
    if fields.get("num_kv_heads") is None:
        fields["num_kv_heads"] = fields["num_heads"]
    if fields.get("head_dim") is None:
        fields["head_dim"] = _default_head_dim(fields["hidden_size"], fields["num_heads"])
    if fields.get("pad_token_id") == -1:  # how Llama 1 spells "none"
        fields["pad_token_id"] = None
    eps = str(family.settings.get("norm_eps", "norm_eps"))
    fields["norm_eps"] = real({eps: fields["norm_eps"]}, eps)
    fields["eos_token_ids"] = _as_tuple(fields["eos_token_ids"])
    fields |= family.read(document, fields)
    if fields.get("rotary_dim") is None:
        fields |= _rotary(document, family, fields["head_dim"])
    _check_types(fields, family)
    return ModelConfig(family=name, **fields)


def config_to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a model, readable by `transformers` 4 and 5 and by `config_from_huggingface`."""
    family = FAMILIES[config.family]
    document: dict[str, Any] = {"architectures": [family.architectures[0]], "model_type": family.model_type}
    for field, keys in family.settings.items():
        value = getattr(config, field)
        if field == "activation":
            value = (_NAMES | dict(family.activation_names))[value]
        document |= dict.fromkeys((keys,) if isinstance(keys, str) else keys, value)
    eos = config.eos_token_ids
    document["eos_token_id"] = None if not eos else eos[0] if len(eos) == 1 else list(eos)
    if config.rotated:
        document |= _written_rotary(config)
    return document | family.write(config)


def _value(document: Mapping[str, Any], family: Family, field: str) -> Any:
    keys = family.settings[field]
    for key in (keys,) if isinstance(keys, str) else keys:
        if key in document:
            return document[key]
    return family.defaults.get(field)


def _activation(name: Any, family: Family) -> str:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        key = family.settings["activation"]
        raise ValueError(f"{key} {name!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _rotary(document: Mapping[str, Any], family: Family, head_dim: Any) -> dict[str, Any]:
    """The rotary embedding; of one that is given by kind of layer, that of the layers without a window."""
    parameters = document.get("rope_parameters")
    if isinstance(parameters, Mapping) and isinstance(parameters.get("full_attention"), Mapping):
        document = {**document, "rope_parameters": parameters["full_attention"]}
    if "rotary_emb_base" in document:  # GPT-NeoX, before transformers 5
        document = {"rope_theta": document["rotary_emb_base"], **document}
    theta, scaling = scaling_from_huggingface(document, family.theta)
    given = document.get("rope_parameters") or document.get("rope_scaling") or {}
    shares = (given.get("partial_rotary_factor"), document.get("partial_rotary_factor"), document.get("rotary_pct"))
    share = next((share for share in shares if share is not None), family.rotary_share)
    share = real({"partial_rotary_factor": share}, "partial_rotary_factor")
    if share != 1 and not family.partial_rotary:
        raise ValueError(f"partial_rotary_factor {share} is not supported in this family; supported is 1")
    if not 0 < share <= 1:
        raise ValueError(f"partial_rotary_factor should be above 0 and at most 1, got {share}")
    rotated = None if share == 1 else int(head_dim * share) if isinstance(head_dim, int) else None
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": rotated}


def _written_rotary(config: ModelConfig) -> dict[str, Any]:
    document = scaling_to_huggingface(config.rope_theta, config.rope_scaling, config.max_position_embeddings)
    if config.rotary_dim is not None:
        share = _share(config.rotary_dim, config.head_dim)
        document |= {"partial_rotary_factor": share, "rotary_pct": share}
        document["rope_parameters"]["partial_rotary_factor"] = share
    if config.window_rope_theta is not None:
        local = {"rope_type": "default", "rope_theta": config.window_rope_theta}
        document["rope_parameters"] = {"full_attention": document["rope_parameters"], "sliding_attention": local}
    return document


def _share(rotated: int, head_dim: int) -> float:
    """A fraction of a head that comes to `rotated` dimensions again when it is cut off after multiplying."""
    share = rotated / head_dim
    return share if int(head_dim * share) == rotated else (rotated + 0.5) / head_dim


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
        is_plain = isinstance(field.type, type | types.UnionType)
        if field.name not in fields or not is_plain or isinstance(value, field.type):  # pyright: ignore[reportArgumentType]
            continue
        keys = family.settings.get(field.name, field.name)
        name = getattr(field.type, "__name__", str(field.type))
        raise ValueError(f"{keys if isinstance(keys, str) else keys[0]} should be {name}, got {value!r}")


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
