"""Encoders of BERT's architecture with random weights, in tensors by name and as a folder."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-6,
}


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Norms are away from 1 and biases from 0."""
    rng = np.random.default_rng(seed)
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], width),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm": width,
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{at}.attention.{name}"] = (width, width)
        shapes |= {f"{at}.intermediate.dense": (inner, width), f"{at}.output.dense": (width, inner)}
        shapes |= {f"{at}.attention.output.LayerNorm": width, f"{at}.output.LayerNorm": width}
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith(".weight"):
            tensors[name] = rng.normal(size=shape)
        elif isinstance(shape, int):
            tensors |= {
                f"{name}.weight": 1 + 0.3 * rng.normal(size=shape),
                f"{name}.bias": 0.3 * rng.normal(size=shape),
            }
        else:
            scale = 1.5 / np.sqrt(shape[1])
            tensors |= {f"{name}.weight": scale * rng.normal(size=shape), f"{name}.bias": rng.normal(size=shape[0])}
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def write_encoder(folder: Path, tensors: dict[str, np.ndarray] | None = None, **changes: object) -> Path:
    """A folder without a tokenizer."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    save_file(random_tensors() if tensors is None else tensors, folder / "model.safetensors")
    return folder
