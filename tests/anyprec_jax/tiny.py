"""A random model small enough to quantize in a second, and a tokenizer of single bytes."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.checkpoint import save
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import parameter_shapes
from anyprec_jax.models.fusion import LINEARS
from anyprec_jax.models.model import Model
from anyprec_jax.tokenizer import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs! "


def tiny_config(**changes: Any) -> ModelConfig:
    """Two key heads of three queries each, and rows that are not multiples of 32."""
    settings: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_layers": 3,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_embeddings": True,
    }
    return ModelConfig(**settings | changes)


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token, so that any text can be encoded with 256 of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend=backend)


def tiny_model(seed: int = 0, **changes: Any) -> Model:
    """Weights of a scale that keeps activations near 1 and logits apart."""
    config = tiny_config(**changes)
    rng = np.random.default_rng(seed)
    params: dict[str, Any] = {"layers": {}}
    for path, shape in parameter_shapes(config).items():
        center = 1.0 if path.endswith("norm") else 0.0
        values = jax.device_put((center + rng.normal(scale=0.15, size=shape)).astype(np.float32))
        *_, name = path.split("/")
        (params["layers"] if path.startswith("layers/") else params)[name] = values
    return Model(config=config, params=params, tokenizer=byte_tokenizer())


def quantized_tiny_model(seed: int = 0, **changes: Any) -> Model:
    """The same with random codes and codebooks in its linears, readable at 2 to 4 bits."""
    model, rng = tiny_model(seed, **changes), np.random.default_rng(seed)
    layers = dict(model.params["layers"])
    for name in LINEARS:
        num_layers, n, k = layers[name].shape
        planes = rng.integers(0, 2**32, (num_layers, 4, n, -(-k // 32)), np.uint32)
        planes[..., -1] &= np.uint32(2 ** (k % 32 or 32) - 1)
        books = {w: np.sort(rng.normal(scale=0.15, size=(num_layers, n, 2**w)), axis=-1) for w in (2, 3, 4)}
        layers[name] = AnyPrecArray(
            bitplanes=jax.device_put(planes),
            codebooks={w: jax.device_put(book.astype(np.float16)) for w, book in books.items()},
            seed_precision=2,
            parent_precision=4,
            k=k,
        )
    return dataclasses.replace(model, params=model.params | {"layers": layers})


def save_tiny_model(path: Path, seed: int = 0, **changes: Any) -> Path:
    """The model as a Hugging Face folder."""
    save(path, tiny_model(seed, **changes))
    return path
