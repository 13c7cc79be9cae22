"""The folder of a sentence encoder: `config.json`, `model.safetensors`, `tokenizer.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from a3_jax.workloads.encoder import Encoder, assemble

# What the arithmetic takes for granted.
_FIXED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


def load_encoder(folder: Path) -> Encoder:
    """Reads an encoder of BERT's architecture in float32; a pooling head, where there is one, is not used.

    Every tensor's shape is compared with `config.json`. FileNotFoundError if a file is missing; ValueError for another architecture, a
    damaged file, or a tensor that is missing or of another shape or type.
    """
    config = _read_config(folder / "config.json")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing: an encoder is a folder with config.json, it and tokenizer.json")
    tensors = {}
    try:
        with safe_open(weights, "np") as file:
            present = set(file.keys())
            for name, shape in _shapes(config).items():
                if name not in present:
                    raise ValueError(f"{weights} lacks the tensor {name}")
                found = file.get_slice(name)
                if tuple(found.get_shape()) != shape or found.get_dtype() != "F32":
                    got = f"{found.get_dtype()} {found.get_shape()}"
                    raise ValueError(f"{weights}: {name} should be F32 {list(shape)}, as config.json says, got {got}")
                tensors[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged: {error}") from error
    return assemble(
        tensors,
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        epsilon=float(config["layer_norm_eps"]),
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer, which neither pads nor cuts off. FileNotFoundError without one, ValueError for a damaged one."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is no tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def padded(
    texts: Sequence[Sequence[int]], length: int
) -> tuple[Int32[np.ndarray, "texts length"], Bool[np.ndarray, "texts length"]]:
    """Token ids with zeros behind, and where there are tokens. ValueError for an empty text or one that is longer."""
    tokens = np.zeros((len(texts), length), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(texts):
        if not 0 < len(ids) <= length:
            raise ValueError(f"texts: wanted 1 to {length} tokens, got {len(ids)} in text {row}")
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return tokens, mask


def _read_config(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: an encoder is a folder with it, model.safetensors and tokenizer.json"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} should be a JSON object")
    for name, wanted in _FIXED.items():
        if config.get(name, wanted) != wanted:
            raise ValueError(f"{file}: {name} should be {wanted}, got {config[name]!r}")
    for name in _SIZES:
        if type(config.get(name)) is not int or config[name] < 1:
            raise ValueError(f"{file}: {name} should be a whole number above 0, got {config.get(name)!r}")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ValueError(f"{file}: hidden_size should be a multiple of num_attention_heads")
    epsilon = config.get("layer_norm_eps")
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise ValueError(f"{file}: layer_norm_eps should be between 0 and 1, got {epsilon!r}")
    return config


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
    }
    linears = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{number}."
        norms += [at + "attention.output.LayerNorm", at + "output.LayerNorm"]
        for name, shape in linears.items():
            shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
    return shapes | {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}
