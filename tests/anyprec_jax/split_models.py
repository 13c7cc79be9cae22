"""Small models for tests on several devices, and what a process among several makes of an artefact."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.evaluate import evaluate
from anyprec_jax.generation import generate
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import forward, init_cache
from anyprec_jax.models.families import LAYERS, parameter_shapes
from anyprec_jax.models.fusion import LINEARS
from anyprec_jax.models.model import Model
from tests.anyprec_jax.tiny import byte_tokenizer

PROMPT = np.random.default_rng(7).integers(0, 250, 11).tolist()
PRECISION, NEW_TOKENS = 3, 6
_BASE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 512,
    "num_layers": 2,
    "max_position_embeddings": 128,
    "tie_embeddings": True,
}
# name -> settings, devices, and the collectives of one decode step by hand: (all-reduces, all-gathers), a layer's counted once.
CASES: dict[str, tuple[dict[str, Any], int, tuple[int, int]]] = {
    # Everything divides: two all-reduces in the layer, one for the embedding; logits are gathered.
    "llama": ({"num_heads": 8, "num_kv_heads": 4, "head_dim": 64}, 4, (2 + 1, 1)),
    # Nine heads on two devices: q, k and v are gathered, o_proj takes its columns. 96 columns are three words: down_proj gathers x and y.
    "odd": (
        {
            "num_heads": 9,
            "num_kv_heads": 3,
            "head_dim": 64,
            "intermediate_size": 96,
            "tie_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
        },
        2,
        (1 + 1, 5 + 1),
    ),
    # Two key heads for eight devices, each with norms of its own, and a vocabulary that does not divide.
    "few": (
        {
            "num_heads": 8,
            "num_kv_heads": 2,
            "head_dim": 32,
            "family": "stablelm",
            "norm": "layer",
            "head_norm": "separate",
            "vocab_size": 260,
            "intermediate_size": 256,
        },
        8,
        (2, 0),
    ),
    "experts": (
        {
            "family": "mixtral",
            "normalized_experts": True,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 32,
            "intermediate_size": 256,
            "num_experts": 4,
            "experts_per_token": 2,
        },
        2,
        (2 + 1, 1),
    ),
    # Stored in several chunks a plane.
    "wide": (
        {
            "num_heads": 8,
            "num_kv_heads": 8,
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "num_layers": 1,
        },
        2,
        (2 + 1, 1),
    ),
}


def random_model(name: str) -> Model:
    """Random codes and codebooks, readable at 2 to 4 bits, and biases and norms that matter."""
    config, rng = ModelConfig(**_BASE | CASES[name][0]), np.random.default_rng(3)
    params: dict[str, Any] = {"layers": {}}
    for path, shape in parameter_shapes(config).items():
        parameter = path.removeprefix(LAYERS)
        center = 1.0 if parameter.endswith("norm") else 0.0
        leaf: Any = jnp.asarray(center + rng.normal(scale=0.2, size=shape).astype(np.float32))
        if parameter in LINEARS:
            leaf = random_matrix(rng, shape)
        (params["layers"] if path.startswith(LAYERS) else params)[parameter] = leaf
    return Model(config=config, params=params, tokenizer=byte_tokenizer())


def random_matrix(rng: np.random.Generator, shape: tuple[int, ...]) -> AnyPrecArray:
    """A stack [*lead, n, k], k a multiple of 32, with weights that keep activations near 1."""
    *lead, n, k = shape
    books = {w: np.sort(rng.normal(scale=k**-0.5, size=(*lead, n, 2**w)), axis=-1) for w in (2, 3, 4)}
    return AnyPrecArray(
        bitplanes=jnp.asarray(rng.integers(0, 2**32, (*lead, 4, n, k // 32), np.uint32)),
        codebooks={w: jnp.asarray(book, jnp.float16) for w, book in books.items()},
        seed_precision=2,
        parent_precision=4,
        k=k,
    )


def outcome(model: Model) -> dict[str, np.ndarray]:
    """What is to be the same however a model lies: logits at every position, greedy tokens, perplexities."""
    cache = init_cache(model.config, batch=1, length=64, params=model.params)
    logits, _ = forward(model.params, np.array([PROMPT]), model.config, precision=PRECISION, cache=cache)
    text = generate(model, PROMPT, precision=PRECISION, max_new_tokens=NEW_TOKENS)
    return {"logits": np.asarray(logits), "tokens": np.array(text.tokens)}


def perplexities(model: Model) -> np.ndarray:
    results = evaluate(model, np.arange(30) * 7 % 250, precisions=[2, 4], sequence_length=16)
    return np.array([result.perplexity for result in results])


def collectives(model: Model) -> tuple[int, int]:
    """All-reduces and all-gathers of the compiled decode step, in the program's text: one layer is compiled for all."""
    cache = init_cache(model.config, batch=1, length=64, params=model.params)

    def step(params: Any, token: jax.Array, cache: Any) -> Any:
        return forward(params, token, model.config, precision=PRECISION, cache=cache)

    text = jax.jit(step, donate_argnums=2).lower(model.params, jnp.zeros((1, 1), jnp.int32), cache).compile().as_text()
    assert not re.search(r"collective-permute|all-to-all|reduce-scatter", text)
    return len(re.findall(r" all-reduce(?:-start)?\(", text)), len(re.findall(r" all-gather(?:-start)?\(", text))
