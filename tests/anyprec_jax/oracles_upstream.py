"""The paper authors' layout written slowly, bit by bit, after their `pack.py` (any-precision-llm, commit a3257d0)."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np


def word_and_bit(column: int, k: int) -> tuple[int, int]:
    """Where a column of a row of k lies: which int32, and which bit of it."""
    start = 1024 * (column // 1024)
    threads = 32 if start + 1024 <= k else (k - start) // 32
    inside = column - start
    j, thread, m = inside // (8 * threads), inside % (8 * threads) // 8, inside % 8
    return start // 32 + thread, 31 - 8 * j - m


def qweight(codes: np.ndarray, parent: int) -> np.ndarray:
    """Codes [n, k] as int32 [parent, n, k / 32], most significant bit first."""
    n, k = codes.shape
    packed = np.zeros((parent, n, k // 32), np.uint32)
    for column in range(k):
        word, bit = word_and_bit(column, k)
        for plane in range(parent):
            bits = codes[:, column].astype(np.uint32) >> np.uint32(parent - 1 - plane) & np.uint32(1)
            packed[plane, :, word] |= bits << np.uint32(bit)
    return packed.view(np.int32)


def natural_codes(bitplanes: np.ndarray, k: int) -> np.ndarray:
    """The codes of our planes [parent, n, words], column `32 * j + i` being bit i of word j."""
    codes = np.zeros((bitplanes.shape[1], k), np.int64)
    for plane in bitplanes:
        for column in range(k):
            codes[:, column] = 2 * codes[:, column] + (plane[:, column // 32] >> np.uint32(column % 32) & np.uint32(1))
    return codes


def tiny_document(**changes: Any) -> dict[str, Any]:
    """The `config.json` of a Llama of one layer, as upstream writes it."""
    settings: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 11,
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "anyprec": {
            "seed_precision": 3,
            "parent_precision": 5,
            "group_count": 1,
            "arch_config": {
                "model_name": "model",
                "layers_name": "layers",
                "module_names": ["mlp.gate_proj", "mlp.up_proj"],
            },
        },
    }
    return settings | changes


def shapes(document: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Linears of a layer -> (n, k)."""
    hidden, inner, width = document["hidden_size"], document["intermediate_size"], document["head_dim"]
    queries, keys = document["num_attention_heads"] * width, document["num_key_value_heads"] * width
    return {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def random_checkpoint(document: dict[str, Any], seed: int = 0) -> tuple[OrderedDict, dict[str, Any]]:
    """Tensors by name, and the (codes, {w: codebook}) that the packed ones stand for, by module."""
    rng = np.random.default_rng(seed)
    lowest, parent = document["anyprec"]["seed_precision"], document["anyprec"]["parent_precision"]

    def dense(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float16)

    tensors, meant = OrderedDict(), {}
    tensors["model.embed_tokens.weight"] = dense(document["vocab_size"], document["hidden_size"])
    for layer in range(document["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = dense(document["hidden_size"])
        for name, (n, k) in shapes(document).items():
            module = f"model.layers.{layer}.{name}"
            if name not in document["anyprec"]["arch_config"]["module_names"]:
                tensors[f"{module}.weight"] = dense(n, k)
                continue
            codes = rng.integers(0, 2**parent, (n, k), np.uint8)
            books = {w: np.sort(dense(n, 2**w), axis=1) for w in range(lowest, parent + 1)}
            tensors[f"{module}.qweight"] = qweight(codes, parent)
            tensors |= {f"{module}.lut{w}": book for w, book in books.items()}
            meant[module] = codes, books
    tensors["model.norm.weight"] = dense(document["hidden_size"])
    tensors["lm_head.weight"] = dense(document["vocab_size"], document["hidden_size"])
    return tensors, meant


def save_with_torch(folder: Path, document: dict[str, Any], tensors: OrderedDict) -> Path:
    """A folder as upstream's `pack` leaves it."""
    import torch

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(document))
    torch.save(OrderedDict((name, torch.from_numpy(v)) for name, v in tensors.items()), folder / "pytorch_model.bin")
    return folder
