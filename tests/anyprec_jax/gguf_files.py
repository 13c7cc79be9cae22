"""GGUF files of small Llama models, written with llama.cpp's own package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from tests.anyprec_jax import oracles_decoder as oracle

MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{MODULES[part]}.{kind}"
    return f"{MODULES[module]}.{kind}"


def neighbours(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows with the two members of a rotary pair side by side, as llama.cpp wants them."""
    rows, width = [], len(values) // heads
    for head in range(heads):
        for pair in range(width // 2):
            rows += [values[head * width + pair], values[head * width + width // 2 + pair]]
    return np.stack(rows)


def metadata(document: Mapping[str, Any]) -> dict[str, Any]:
    """Keys below "llama."; integers go as uint32, floats as float32."""
    return {
        "context_length": document["max_position_embeddings"],
        "embedding_length": document["hidden_size"],
        "block_count": document["num_hidden_layers"],
        "feed_forward_length": document["intermediate_size"],
        "attention.head_count": document["num_attention_heads"],
        "attention.head_count_kv": document["num_key_value_heads"],
        "attention.key_length": document["head_dim"],
        "attention.value_length": document["head_dim"],
        "attention.layer_norm_rms_epsilon": document["rms_norm_eps"],
        "rope.freq_base": document["rope_theta"],
        "rope.dimension_count": document["head_dim"],
    }


def write(
    path: Path,
    document: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    *,
    settings: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
) -> Path:
    """The model as a GGUF file; `settings` change the metadata (None drops a key), matrices are stored as `kind`."""
    writer = gguf.GGUFWriter(path, architecture)
    keys = {f"{architecture}.{key}": value for key, value in metadata(document).items()}
    keys |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    for key, value in (keys | dict(settings or {})).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, values in weights.items():
        if "q_proj" in name or "k_proj" in name:
            values = neighbours(values, document["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        stored = kind if values.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quantize(values, stored), raw_dtype=stored)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny(path: Path, **options: Any) -> Path:
    document = oracle.config(num_hidden_layers=2)
    return write(path, document, oracle.random_weights(document), **options)


def patched(path: Path, after: bytes, skip: int, value: bytes) -> None:
    """Overwrites bytes that follow the first occurrence of others."""
    data = bytearray(path.read_bytes())
    start = data.index(after) + len(after) + skip
    data[start : start + len(value)] = value
    path.write_bytes(data)
