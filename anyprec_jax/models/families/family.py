"""What a family of models is: a table of the names it goes by, and of the flags it sets."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from anyprec_jax.models.config import ModelConfig

LAYERS = "layers/"

# What a config.json says in ways of its own -> fields of `ModelConfig`; and back, config -> keys of config.json.
Reader: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]  # (config.json, fields so far)
Writer: TypeAlias = Callable[[ModelConfig], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How one kind of file names and lays out the tensors of a family.

    Parameters of one module lie in one tensor, one below the other in the order of `modules`.

    Attributes:
      modules: parameter -> module; `{layer}` stands for the layer, and `{index}` for the expert or the head where each has a tensor of
        its own. Its tensors end in ".weight" and ".bias".
      transposed: linears whose matrices are stored as [inputs, outputs].
      by_head: the parts of a shared tensor alternate head by head, rather than lying one below the other.
      paired: parameters whose rows are reordered, so that the members of a rotary pair are neighbours.
      plus_one: norms are stored with the one added that `ModelConfig.norm_plus_one` calls for.
      derived: ends of the names of tensors that follow from others, or are never used.
    """

    modules: Mapping[str, str]
    transposed: frozenset[str] = frozenset()
    by_head: bool = False
    paired: frozenset[str] = frozenset()
    plus_one: bool = False
    derived: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models.

    Attributes:
      model_type: of its `config.json`.
      architectures: classes that `config.json` may name; the first is written.
      settings: field of `ModelConfig` -> key of `config.json`, or several keys for one that has had several names.
      defaults: field -> value where `config.json` is silent.
      flags: field -> value that makes it this family.
      read: what else `config.json` says, as fields.
      write: the inverse of `read`.
      layout: of its Hugging Face checkpoints.
      prefix: what its tensors' names begin with, unless they belong to the head; some checkpoints leave it away.
      activation_names: activation -> how `config.json` calls it, where that is not the usual name.
      theta: base of the rotary wavelengths where `config.json` is silent.
      partial_rotary: a part of every head may be rotated.
      rotary_share: that part, where `config.json` is silent.
      gguf_architecture: `general.architecture` of its GGUF files; None where there is no such format.
      gguf: layout of its GGUF files.
    """

    model_type: str
    architectures: tuple[str, ...]
    settings: Mapping[str, str | tuple[str, ...]]
    defaults: Mapping[str, Any]
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read: Reader = lambda document, fields: {}
    write: Writer = lambda config: {}
    layout: Layout
    prefix: str = "model."
    activation_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    theta: float = 10_000.0
    partial_rotary: bool = False
    rotary_share: float = 1.0
    gguf_architecture: str | None = None
    gguf: Layout | None = None

    @property
    def modules(self) -> Mapping[str, str]:
        """Parameter -> module of its Hugging Face checkpoints."""
        return self.layout.modules


SETTINGS: Mapping[str, str | tuple[str, ...]] = MappingProxyType(
    {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "max_position_embeddings": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
        "activation": "hidden_act",
        "tie_embeddings": "tie_word_embeddings",
        "bos_token_id": "bos_token_id",
        "eos_token_ids": "eos_token_id",
        "pad_token_id": "pad_token_id",
    }
)

DEFAULTS: Mapping[str, Any] = MappingProxyType({"norm_eps": 1e-6, "activation": "silu", "tie_embeddings": False})

MODULES: Mapping[str, str] = MappingProxyType(
    {
        "embedding": "model.embed_tokens",
        "layers/input_norm": "model.layers.{layer}.input_layernorm",
        "layers/q_proj": "model.layers.{layer}.self_attn.q_proj",
        "layers/k_proj": "model.layers.{layer}.self_attn.k_proj",
        "layers/v_proj": "model.layers.{layer}.self_attn.v_proj",
        "layers/o_proj": "model.layers.{layer}.self_attn.o_proj",
        "layers/q_norm": "model.layers.{layer}.self_attn.q_norm",
        "layers/k_norm": "model.layers.{layer}.self_attn.k_norm",
        "layers/post_attention_norm": "model.layers.{layer}.post_attention_layernorm",
        "layers/gate_proj": "model.layers.{layer}.mlp.gate_proj",
        "layers/up_proj": "model.layers.{layer}.mlp.up_proj",
        "layers/down_proj": "model.layers.{layer}.mlp.down_proj",
        "final_norm": "model.norm",
        "head": "lm_head",
    }
)

GGUF_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "embedding": "token_embd",
        "layers/input_norm": "blk.{layer}.attn_norm",
        "layers/q_proj": "blk.{layer}.attn_q",
        "layers/k_proj": "blk.{layer}.attn_k",
        "layers/v_proj": "blk.{layer}.attn_v",
        "layers/o_proj": "blk.{layer}.attn_output",
        "layers/q_norm": "blk.{layer}.attn_q_norm",
        "layers/k_norm": "blk.{layer}.attn_k_norm",
        "layers/post_attention_norm": "blk.{layer}.ffn_norm",
        "layers/gate_proj": "blk.{layer}.ffn_gate",
        "layers/up_proj": "blk.{layer}.ffn_up",
        "layers/down_proj": "blk.{layer}.ffn_down",
        "final_norm": "output_norm",
        "head": "output",
    }
)

QK_ROWS = frozenset({"layers/q_proj", "layers/q_proj_bias", "layers/k_proj", "layers/k_proj_bias"})
