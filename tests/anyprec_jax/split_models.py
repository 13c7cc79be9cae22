"""Small models for tests on several devices, and what a process among several makes of an artefact."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.evaluate import evaluate
from anyprec_jax.generation import generate
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import KVCache, forward, init_cache
from anyprec_jax.models.families import LAYERS, parameter_shapes
from anyprec_jax.models.fusion import LINEARS
from anyprec_jax.models.model import Model
from tests.anyprec_jax.tiny import byte_tokenizer

PROMPT = np.random.default_rng(7).integers(0, 250, 11).tolist()
PRECISION, NEW_TOKENS = 3, 6
# Artefacts that processes make together: the calibration of each. A sum of two shares is that of two windows.
QUANTIZED: dict[str, dict[str, int] | None] = {
    "uniform": None,
    "calibrated": {"num_sequences": 2, "sequence_length": 16},
}
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
        leaf: Any = jax.device_put((center + rng.normal(scale=0.2, size=shape)).astype(np.float32))
        if parameter in LINEARS:
            leaf = random_matrix(rng, shape)
        (params["layers"] if path.startswith(LAYERS) else params)[parameter] = leaf
    return Model(config=config, params=params, tokenizer=byte_tokenizer())


def random_matrix(rng: np.random.Generator, shape: tuple[int, ...]) -> AnyPrecArray:
    """A stack [*lead, n, k], k a multiple of 32, with weights that keep activations near 1."""
    *lead, n, k = shape
    books = {w: np.sort(rng.normal(scale=k**-0.5, size=(*lead, n, 2**w)), axis=-1) for w in (2, 3, 4)}
    return AnyPrecArray(
        bitplanes=jax.device_put(rng.integers(0, 2**32, (*lead, 4, n, k // 32), np.uint32)),
        codebooks={w: jax.device_put(book.astype(np.float16)) for w, book in books.items()},
        seed_precision=2,
        parent_precision=4,
        k=k,
    )


class Outcome(NamedTuple):
    """What a model makes of a prompt and of the greedy tokens after it."""

    logits: np.ndarray  # at all of those
    tokens: list[int]
    collectives: tuple[
        int, int
    ]  # all-reduces and all-gathers in the text of the decode step: one layer is compiled for all


def outcome(model: Model, width: int = 4) -> Outcome:
    """Through one program, which takes `width` tokens at most: pieces of the prompt, or one token after the other."""

    def step(params: Any, tokens: jax.Array, lengths: jax.Array, cache: KVCache) -> Any:
        return forward(params, tokens, model.config, precision=PRECISION, cache=cache, lengths=lengths)

    cache = init_cache(model.config, batch=1, length=64, params=model.params)
    row, count = jnp.zeros((1, width), jnp.int32), jnp.zeros(1, jnp.int32)
    compiled = jax.jit(step).lower(model.params, row, count, cache).compile()
    pieces = [PROMPT[start : start + width] for start in range(0, len(PROMPT), width)]
    rows, tokens = [], []
    while len(tokens) < NEW_TOKENS:
        piece = pieces.pop(0) if pieces else tokens[-1:]
        row = jnp.asarray([piece + [0] * (width - len(piece))], jnp.int32)
        logits, cache = compiled(model.params, row, jnp.asarray([len(piece)], jnp.int32), cache)
        rows.append(np.asarray(logits[0, : len(piece)]))
        if not pieces:
            tokens.append(int(rows[-1][-1].argmax()))
    return Outcome(np.concatenate(rows), tokens, collectives(compiled.as_text() or ""))


def written(model: Model) -> list[int]:
    """Greedy tokens, as users have them."""
    return generate(model, PROMPT, precision=PRECISION, max_new_tokens=NEW_TOKENS).tokens


def perplexities(model: Model) -> np.ndarray:
    """Of a text that does not fill its last chunk."""
    results = evaluate(model, np.arange(30) * 7 % 250, precisions=[PRECISION], sequence_length=16)
    return np.array([result.perplexity for result in results])


def collectives(text: str) -> tuple[int, int]:
    """All-reduces and all-gathers of a compiled program; other collectives are not expected."""
    assert not re.search(r" (collective-permute|all-to-all|reduce-scatter)(-start)?\(", text)
    return len(re.findall(r" all-reduce(?:-start)?\(", text)), len(re.findall(r" all-gather(?:-start)?\(", text))
