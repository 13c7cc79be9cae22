"""Models for timing whole decoders: what is read, and a prefill and a decode that any program can stand behind."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax import Model, ModelConfig, QuantizeConfig, decoding, load, quantize_model
from anyprec_jax import affine as affine_rows
from anyprec_jax.affine import AffineArray
from anyprec_jax.array import AnyPrecArray, Matrix, nbytes
from anyprec_jax.layout import prepare
from anyprec_jax.models import init_cache
from anyprec_jax.models.decoder import hidden_dtype
from anyprec_jax.models.families import LAYERS, parameter_shapes
from anyprec_jax.models.fusion import LINEARS, fused, linears
from anyprec_jax.sampling import Sampling
from examples.demo.anyprec import MODEL

PRECISIONS = (3, 4, 5, 6, 7, 8)


class Decoder(Protocol):
    """What is timed; llama.cpp's harness has these methods, too."""

    def prefill(self, tokens: np.ndarray) -> Any:
        """Forgets what came before and reads a prompt."""

    def decode(self, num_tokens: int) -> Any:
        """Continues the last prompt, greedily. Called again, it starts after the prompt again."""


class JaxDecoder:
    """A model of ours at one precision, in blocks as long as `generate` makes them at most."""

    def __init__(self, model: Model, precision: int | None, *, room: int) -> None:
        self.params = model.params
        settings = {"key": jax.random.key(0), "sampling": Sampling(), "config": model.config, "precision": precision}
        self._settings = settings
        self._cache = init_cache(model.config, batch=1, length=room, dtype=hidden_dtype(model.params))
        self._prompt, self._next = jnp.zeros(1, jnp.int32), jnp.int32(0)

    def prefill(self, tokens: np.ndarray) -> None:
        self._prompt = jnp.asarray([len(tokens)], jnp.int32)
        cache = self._cache._replace(lengths=jnp.zeros(1, jnp.int32))
        row = jnp.asarray(tokens[None], jnp.int32)
        self._next, self._cache = decoding.prefill(self.params, row, self._prompt, cache, **self._settings)
        self._next.block_until_ready()

    def decode(self, num_tokens: int) -> list[int]:
        last, cache, tokens = self._next, self._cache._replace(lengths=self._prompt + 0), []
        no_ends = jnp.zeros(0, jnp.int32)
        while len(tokens) < num_tokens:
            count = jnp.int32(min(decoding.MAX_BLOCK, num_tokens - len(tokens)))
            block, done, cache = decoding.decode(self.params, last, count, no_ends, cache, **self._settings)
            tokens += np.asarray(block)[: int(done)].tolist()
            last = jnp.int32(tokens[-1])
        self._cache = cache
        return tokens


def smollm2(data: Path, cache: Path) -> tuple[Model, Model]:
    """SmolLM2-135M as an artefact of 3 to 8 bits, made at the first call, and as it was. Uniform weights: only times count."""
    artefact = cache / "smollm2-anyprec"
    quantize_model(data / MODEL, artefact, QuantizeConfig(seed_precision=3, parent_precision=8), calibration=None)
    return load(artefact), load(data / MODEL)


def random_model(config: ModelConfig, *, seed: int = 0) -> Model:
    """Random planes, codebooks of the scale of trained weights, and an affine head: nothing is quantized."""
    rng = np.random.default_rng(seed)
    params: dict[str, Any] = {"layers": {}}
    for path, shape in parameter_shapes(config).items():
        name = path.removeprefix(LAYERS)
        if name in LINEARS:
            leaf: Any = _random_stack(rng, *shape)
        elif len(shape) == 2 and not path.startswith(LAYERS):
            codes = jnp.asarray(rng.integers(0, 256, shape, np.uint8))
            scale = jnp.full(shape[0], 6 * 0.02 / 255, jnp.float32)
            leaf = AffineArray(codes, scale, -127.5 * scale)
        else:
            leaf = jnp.ones(shape, jnp.float32)
        (params["layers"] if path.startswith(LAYERS) else params)[name] = leaf
    layers = fused(params["layers"])
    # As `load` leaves them; one stack after the other, so that only one exists twice.
    for name in [name for name, leaf in layers.items() if isinstance(leaf, AnyPrecArray)]:
        layers[name] = prepare(layers[name])
    return Model(config, params | {"layers": layers})


def random_dense_model(config: ModelConfig, dtype: Any) -> Model:
    """The same shape in plain arrays."""
    params: dict[str, Any] = {"layers": {}}
    for index, (path, shape) in enumerate(parameter_shapes(config).items()):
        values = 0.02 * jax.random.normal(jax.random.key(index), shape, dtype)
        leaf = jnp.ones(shape, dtype) if len(shape) - path.startswith(LAYERS) == 1 else values
        (params["layers"] if path.startswith(LAYERS) else params)[path.removeprefix(LAYERS)] = leaf
    return Model(config, params)


def cast(model: Model, dtype: Any) -> Model:
    return dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf.astype(dtype), model.params))


def bytes_per_token(model: Model, precision: int | None, *, context: int) -> dict[str, int]:
    """What one decode step must read: the linears, the head, and keys and values of `context` positions."""
    weights = linears(model.params["layers"]).values()
    head = model.params["embedding" if model.config.tie_embeddings else "head"]
    config = model.config
    width = jnp.dtype(hidden_dtype(model.params)).itemsize
    parts = {
        "linears": sum(nbytes(w, precision=precision) if isinstance(w, Matrix) else w.nbytes for w in weights),
        "head": affine_rows.nbytes(head) if isinstance(head, AffineArray) else head.nbytes,
        "cache": 2 * config.num_layers * config.num_kv_heads * config.head_dim * context * width,
    }
    return parts | {"total": sum(parts.values())}


def _random_stack(rng: np.random.Generator, layers: int, n: int, k: int) -> AnyPrecArray:
    words = -(-k // 32)
    planes = rng.integers(0, 2**32, (layers, 8, n, words), np.uint32)
    if k % 32:
        planes[..., -1] &= np.uint32(2 ** (k % 32) - 1)
    levels = {w: np.sort(rng.standard_normal((layers, n, 2**w), np.float32), axis=-1) * 0.02 for w in PRECISIONS}
    books = {w: jnp.asarray(book, jnp.float16) for w, book in levels.items()}
    return AnyPrecArray(jnp.asarray(planes), books, seed_precision=3, parent_precision=8, k=k)
