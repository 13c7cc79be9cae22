"""The parameters of a model and their shapes, as the decoder takes them.

A parameter is named by its path in the tree that `decoder` reads, "layers/q_proj" say; those below "layers" have the layer as their
first axis, and linears of experts the expert as their second.
"""

from collections.abc import Iterator

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families.family import LAYERS

_QKV = ("q_proj", "k_proj", "v_proj")


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a model, by path; nothing is allocated."""
    hidden = config.hidden_size
    width = hidden if config.embedding_size is None else config.embedding_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, width)}
    if config.learned_positions:
        shapes["position_embedding"] = (config.num_positions, hidden)
    if config.embedding_size is not None:
        shapes |= {"project_in": (hidden, width), "project_out": (width, hidden)}
    shapes |= {f"{LAYERS}{name}": (config.num_layers, *shape) for name, shape in _layer_shapes(config).items()}
    if config.final_norm:
        shapes |= _norm("final_norm", hidden, config)
    if not config.tie_embeddings:
        shapes["head"] = (config.vocab_size, width)
    return shapes


def tensors(config: ModelConfig) -> Iterator[tuple[str, int | None, tuple[int, ...]]]:
    """(parameter, layer, shape) of every parameter of a model, layer by layer and lazily: a config may claim any number of layers."""
    for parameter, shape in parameter_shapes(config).items():
        if parameter.startswith(LAYERS):
            yield from ((parameter, layer, shape[1:]) for layer in range(config.num_layers))
        else:
            yield parameter, None, shape


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden = config.hidden_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    has_input = config.norm_order in ("input", "both")
    shapes = _norm("input_norm", hidden, config) if has_input else {}
    shapes |= {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
    }
    shapes |= _head_norms(config)
    if config.norm_order != "input":
        shapes |= _norm("attention_output_norm", hidden, config)
    if has_input and config.residual != "parallel_one_norm":
        shapes |= _norm("post_attention_norm", hidden, config)
    if config.num_experts:
        shapes["router"] = (config.num_experts, hidden)
    shapes |= _mlp_shapes(config)
    if config.norm_order != "input":
        shapes |= _norm("mlp_output_norm", hidden, config)
    biased = _QKV if config.attention_bias or config.qkv_bias else ()
    biased += ("o_proj",) if config.attention_bias else ()
    biased += ("gate_proj", "up_proj", "down_proj") if config.mlp_bias else ()
    return shapes | {f"{name}_bias": shapes[name][:-1] for name in biased if name in shapes}


def _mlp_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    lead = (config.num_experts,) if config.num_experts else ()
    inner = (*lead, config.intermediate_size, config.hidden_size)
    gate = {"gate_proj": inner} if config.gated_mlp else {}
    return {**gate, "up_proj": inner, "down_proj": (*lead, config.hidden_size, config.intermediate_size)}


def _head_norms(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    def shape(heads: int) -> tuple[int, ...]:
        if config.head_norm == "joint":
            return (heads * config.head_dim,)
        return (config.head_dim,) if config.head_norm == "shared" else (heads, config.head_dim)

    if config.head_norm == "none":
        return {}
    return {"q_norm": shape(config.num_heads), "k_norm": shape(config.num_kv_heads)}


def _norm(name: str, size: int, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: (size,)} | ({f"{name}_bias": (size,)} if config.norm == "layer" else {})
