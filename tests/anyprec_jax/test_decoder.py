"""The decoder against slow NumPy, and the ways of calling it against each other."""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import bitplanes
from anyprec_jax.array import AnyPrecArray
from anyprec_jax.models import decoder
from anyprec_jax.models.attention import MIN_BLOCK
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import LINEARS, KVCache, forward, hidden_states, init_cache, layer_forward, unembed
from anyprec_jax.models.families import config_from_huggingface, parameter_shapes
from anyprec_jax.ops import dequantize
from tests.anyprec_jax import oracles_decoder as oracle

PARITY = 2e-5  # of the largest logit; the project's bound for float32
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one key head": {"num_key_value_heads": 1, "head_dim": 4},
    "as many key heads": {"num_key_value_heads": 6},
    "tied": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "theta": {"rope_theta": 200.0},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3},
    "epsilon": {"rms_norm_eps": 0.3},
}


def model(**changes: Any) -> tuple[ModelConfig, dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """(config, params, the same weights by tensor, the same config as JSON)."""
    document = oracle.config(**changes)
    weights = oracle.random_weights(document)
    params = jax.tree.map(jnp.asarray, oracle.stacked(weights, document["num_hidden_layers"]))
    return config_from_huggingface(document), params, weights, document


def random_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 61, shape).astype(np.int32)


def assert_close(got: Any, expected: Any, tolerance: float = PARITY) -> None:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def plain(params: Any, tokens: Any, config: ModelConfig, **options: Any) -> jax.Array:
    logits = forward(params, jnp.asarray(tokens), config, precision=None, **options)
    assert isinstance(logits, jax.Array)
    return logits


def continued(
    params: Any, tokens: Any, config: ModelConfig, cache: KVCache, **options: Any
) -> tuple[jax.Array, KVCache]:
    result = forward(params, jnp.asarray(tokens), config, precision=None, cache=cache, **options)
    assert isinstance(result, tuple)
    return result


class TestWholeSequences:
    @pytest.mark.parametrize("name", VARIANTS)
    def test_equals_numpy(self, name: str) -> None:
        config, params, weights, document = model(**VARIANTS[name])
        tokens = random_tokens(2, 17)
        logits = plain(params, tokens, config)
        assert logits.dtype == jnp.float32
        assert_close(logits, [oracle.logits(weights, document, row) for row in tokens])

    @pytest.mark.parametrize(
        "name", [name for name in VARIANTS if name not in ("grouped", "one key head", "as many key heads")]
    )
    def test_every_setting_matters(self, name: str) -> None:
        config, params, _, _ = model(**VARIANTS[name])
        ignorant = dataclasses.replace(
            config,
            rope_theta=10000.0,
            rope_scaling=None,
            norm_eps=1e-5,
            tie_embeddings=False,
            attention_bias=False,
            mlp_bias=False,
        )
        without = {key: leaf for key, leaf in params["layers"].items() if not key.endswith("_bias")}
        forgetful = {"head": params["embedding"][::-1], **params, "layers": without}
        tokens = random_tokens(2, 17)  # the shape of the test above, so that programs are shared
        expected, got = np.asarray(plain(params, tokens, config)), np.asarray(plain(forgetful, tokens, ignorant))
        assert np.abs(got - expected).max() > 100 * PARITY * np.abs(expected).max()

    def test_longer_than_an_attention_block(self) -> None:
        config, params, weights, document = model(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
        tokens = random_tokens(1, 2 * MIN_BLOCK + 44)
        assert_close(plain(params, tokens, config)[0], oracle.logits(weights, document, tokens[0]))

    def test_inside_a_jitted_function(self) -> None:
        config, params, _, _ = model()
        tokens = random_tokens(2, 17)
        jitted = jax.jit(forward, static_argnames=("config", "precision"))(
            params, tokens, config=config, precision=None
        )
        assert_close(jitted, plain(params, tokens, config))

    def test_layers_one_by_one(self) -> None:
        config, params, _, _ = model(attention_bias=True)
        tokens = jnp.asarray(random_tokens(2, 17))
        hidden = decoder.embed(params, tokens, config)
        apply = jax.jit(lambda layer, hidden: layer_forward(layer, hidden, config))
        for index in range(config.num_layers):
            hidden = apply({name: np.asarray(leaf)[index] for name, leaf in params["layers"].items()}, hidden)
        assert_close(hidden, hidden_states(params, tokens, config, precision=None))
        assert_close(unembed(params, hidden, config), plain(params, tokens, config))

    def test_unknown_token_is_not_taken_for_another(self) -> None:
        config, params, _, _ = model()
        tokens = random_tokens(3, 5)
        tokens[1, 2], tokens[2, 4] = config.vocab_size, -1
        nan = np.isnan(np.asarray(plain(params, tokens, config))).all(axis=-1)
        expected = np.zeros((3, 5), bool)
        expected[1, 2:] = expected[2, 4:] = True
        np.testing.assert_array_equal(nan, expected)


class TestCache:
    @pytest.mark.parametrize(
        ("name", "chunks"),
        [("grouped", (12,)), ("attention bias", (1,) * 12), ("llama3", (5, 1, 1, 5)), ("tied", (1, 11))],
    )
    def test_pieces_equal_the_whole(self, name: str, chunks: tuple[int, ...]) -> None:
        config, params, weights, document = model(**VARIANTS[name])
        tokens = random_tokens(2, 12)
        cache = init_cache(config, batch=2, length=15)
        pieces = []
        for start, size in zip(np.cumsum((0, *chunks)), chunks, strict=False):
            logits, cache = continued(params, tokens[:, start : start + size], config, cache)
            pieces.append(logits)
        assert_close(jnp.concatenate(pieces, axis=1), [oracle.logits(weights, document, row) for row in tokens])
        np.testing.assert_array_equal(cache.lengths, [12, 12])

    def test_rows_of_different_lengths(self) -> None:
        """Right-padded chunks, rows that pause, and a full cache at the end."""
        config, params, weights, document = model()
        texts = [random_tokens(11, seed=1), random_tokens(6, seed=2), random_tokens(8, seed=3)]
        cache = init_cache(config, batch=3, length=11)
        seen: list[list[np.ndarray]] = [[], [], []]
        for lengths in ((4, 1, 3), (4, 0, 4), (1, 4, 1), (2, 1, 0)):
            padded = np.full((3, 4), 60, np.int32)
            for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
                start = int(cache.lengths[row])
                padded[row, :length] = text[start : start + length]
            logits, cache = continued(params, padded, config, cache, lengths=jnp.asarray(lengths))
            for row, length in enumerate(lengths):
                seen[row].append(np.asarray(logits[row, :length]))
        np.testing.assert_array_equal(cache.lengths, [11, 6, 8])
        for text, pieces in zip(texts, seen, strict=True):
            assert_close(np.concatenate(pieces), oracle.logits(weights, document, text))

    def test_padding_leaves_the_cache_alone(self) -> None:
        config, params, _, _ = model()
        empty = init_cache(config, batch=1, length=6)
        marked = empty._replace(keys=empty.keys + 7.0, values=empty.values - 7.0)
        _, cache = continued(params, random_tokens(1, 4), config, marked, lengths=jnp.asarray([2]))
        assert (np.asarray(cache.keys[..., 2:]) == 7.0).all()
        assert (np.asarray(cache.values[:, :, :, 2:]) == -7.0).all()
        assert not (np.asarray(cache.keys[..., :2]) == 7.0).any()

    def test_padding_and_stale_entries_do_not_matter(self) -> None:
        config, params, weights, document = model()
        tokens = random_tokens(1, 4)
        empty = init_cache(config, batch=1, length=6)
        used = empty._replace(keys=empty.keys + 1e3, values=empty.values + 1e3)  # what a former owner of the row left
        tokens[0, 2:] = 10**6  # whatever comes after the real ones
        got, _ = continued(params, tokens, config, used, lengths=jnp.asarray([2]))
        assert_close(got[0, :2], oracle.logits(weights, document, tokens[0, :2]))

    def test_padding_without_a_cache(self) -> None:
        config, params, weights, document = model()
        tokens = random_tokens(2, 17)
        tokens[1, 5:] = -1
        got = plain(params, tokens, config, lengths=jnp.asarray([17, 5]))
        assert_close(got[1, :5], oracle.logits(weights, document, tokens[1, :5]))

    def test_row_that_does_not_fit_says_so(self) -> None:
        config, params, _, _ = model()
        cache = init_cache(config, batch=2, length=6)._replace(lengths=jnp.asarray([5, 4], jnp.int32))
        logits, _ = continued(params, random_tokens(2, 2), config, cache)
        assert np.isnan(logits[0]).all()
        assert np.isfinite(logits[1]).all()

    def test_donated_cache_is_updated_in_place(self) -> None:
        config, params, _, _ = model()
        cache = init_cache(config, batch=2, length=4096)
        step = jax.jit(
            lambda params, tokens, cache: forward(params, tokens, config, precision=None, cache=cache),
            donate_argnames="cache",
        )
        memory = step.lower(params, jnp.zeros((2, 1), jnp.int32), cache).compile().memory_analysis()
        assert memory is not None
        bytes_of_cache = cache.keys.nbytes + cache.values.nbytes
        assert memory.alias_size_in_bytes >= bytes_of_cache
        assert memory.temp_size_in_bytes < bytes_of_cache  # a copy of one layer, not of all

    def test_a_prefix_of_the_cache_is_enough(self) -> None:
        """Single steps across the sizes that are read, 150 and 300 of 600 positions; the rows are not equally long."""
        config, params, _, _ = model()
        tokens = random_tokens(2, 304)
        whole = plain(params, tokens, config)
        cache = init_cache(config, batch=2, length=600)
        for start, steps in ((147, 6), (297, 6)):
            done = int(cache.lengths[0])
            _, cache = continued(params, tokens[:, done:start], config, cache)
            shorter = cache._replace(lengths=cache.lengths - jnp.asarray([0, 40], jnp.int32))
            for position in range(start, start + steps):
                step = jnp.stack([jnp.asarray(tokens[0, position]), jnp.asarray(tokens[1, position - 40])])[:, None]
                logits, shorter = continued(params, step, config, shorter)
                assert_close(logits[:, 0], jnp.stack([whole[0, position], whole[1, position - 40]]))

    def test_half_precision_cache(self) -> None:
        config, params, weights, document = model()
        tokens = random_tokens(1, 8)
        cache = init_cache(config, batch=1, length=8, dtype=jnp.bfloat16)
        logits, cache = continued(params, tokens, config, cache)
        assert cache.keys.dtype == jnp.bfloat16
        # bfloat16 rounds keys and values to 2**-9 of themselves; the sum over layers stays within a few of those.
        assert_close(logits[0], oracle.logits(weights, document, tokens[0]), tolerance=2**-5)


class TestAttention:
    def test_is_given_scaled_queries_and_a_mask(self) -> None:
        config, params, _, _ = model()

        def by_head(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
            group = query.shape[1] // key.shape[1]
            heads = []
            for head in range(query.shape[1]):
                scores = query[:, head] @ key[:, head // group].T
                weights = jnp.where(mask, jnp.exp(scores), 0.0)
                heads.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, head // group])
            return jnp.stack(heads, axis=1)

        tokens = random_tokens(2, 17)
        expected = plain(params, tokens, config)
        assert_close(plain(params, tokens, config, attention=by_head), expected)
        cache = init_cache(config, batch=2, length=20)
        assert_close(continued(params, tokens, config, cache, attention=by_head)[0], expected)

    def test_takes_the_place_of_the_default(self) -> None:
        config, params, _, _ = model()

        def blind(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
            return jnp.zeros_like(query)

        tokens = random_tokens(1, 6)
        repeated = np.full_like(tokens, tokens[0, 3])
        # Without attention a position knows its own token only.
        assert_close(
            plain(params, tokens, config, attention=blind)[0, 3], plain(params, repeated, config, attention=blind)[0, 0]
        )


def quantized(params: dict[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """Random codes and codebooks for every linear, at 3 to 5 bits, codebooks unrelated across precisions."""
    rng = np.random.default_rng(seed)

    def matrix(leaf: jax.Array) -> AnyPrecArray:
        layers, n, k = leaf.shape
        codes = jnp.asarray(rng.integers(0, 32, (layers, n, k)), jnp.uint8)
        books = {w: np.sort(rng.standard_normal((layers, n, 2**w)) / math.sqrt(k), axis=-1) for w in (3, 4, 5)}
        return AnyPrecArray(
            bitplanes=jnp.stack([bitplanes.pack(layer, precision=5) for layer in codes]),
            codebooks={w: jnp.asarray(book, jnp.float16) for w, book in books.items()},
            seed_precision=3,
            parent_precision=5,
            k=k,
        )

    return params | {"layers": params["layers"] | {name: matrix(params["layers"][name]) for name in LINEARS}}


@functools.partial(jax.jit, static_argnums=1)
def dense(params: dict[str, Any], precision: int) -> dict[str, Any]:
    layers = dict(params["layers"])
    for name in LINEARS:
        layers[name] = jax.vmap(functools.partial(dequantize, precision=precision))(layers[name])
    return params | {"layers": layers}


class TestAnyPrecision:
    @pytest.mark.parametrize("precision", [3, 5])
    def test_equals_the_dequantized_model(self, precision: int) -> None:
        config, params, _, _ = model(attention_bias=True)
        params = quantized(params)
        tokens = jnp.asarray(random_tokens(2, 17))
        assert_close(
            forward(params, tokens, config, precision=precision), plain(dense(params, precision), tokens, config)
        )

    def test_with_a_cache(self) -> None:
        config, params, _, _ = model()
        params = quantized(params)
        tokens = jnp.asarray(random_tokens(2, 17))
        first, cache = forward(
            params, tokens[:, :16], config, precision=4, cache=init_cache(config, batch=2, length=20)
        )
        second, _ = forward(params, tokens[:, 16:], config, precision=4, cache=cache)
        assert_close(jnp.concatenate([first, second], axis=1), plain(dense(params, 4), tokens, config))

    def test_one_layer(self) -> None:
        config, params, _, _ = model()
        params = quantized(params)
        hidden = decoder.embed(params, jnp.asarray(random_tokens(1, 6)), config)
        taken, expanded = (
            jax.tree.map(lambda leaf: np.asarray(leaf)[1], p["layers"]) for p in (params, dense(params, 4))
        )
        apply = jax.jit(
            lambda layer, hidden, precision: layer_forward(layer, hidden, config, precision=precision), static_argnums=2
        )
        assert_close(apply(taken, hidden, 4), apply(expanded, hidden, None))

    def test_some_linears_may_stay_plain(self) -> None:
        config, params, _, _ = model()
        mixed = quantized(params)
        mixed["layers"]["v_proj"] = params["layers"]["v_proj"]
        tokens = jnp.asarray(random_tokens(2, 17))
        expected = dense(quantized(params), 4)
        expected["layers"]["v_proj"] = params["layers"]["v_proj"]
        assert_close(forward(mixed, tokens, config, precision=4), plain(expected, tokens, config))

    def test_precision_must_fit_the_weights(self) -> None:
        config, params, _, _ = model()
        tokens = jnp.asarray(random_tokens(1, 4))
        with pytest.raises(ValueError, match="not quantized: precision must be None, got 4"):
            forward(params, tokens, config, precision=4)
        with pytest.raises(ValueError, match="quantized: give a precision from 3 to 5"):
            forward(quantized(params), tokens, config, precision=None)
        for precision in (2, 6):
            with pytest.raises(ValueError, match=f"q_proj: .* got {precision}"):
                forward(quantized(params), tokens, config, precision=precision)


class TestDtypes:
    def test_bfloat16_weights(self) -> None:
        config, params, weights, document = model()
        narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        rounded = {name: np.asarray(values.astype(jnp.bfloat16), np.float32) for name, values in weights.items()}
        tokens = random_tokens(1, 9)
        expected = oracle.logits(rounded, document, tokens[0])
        logits = plain(narrow, tokens, config)
        assert logits.dtype == jnp.float32
        # Hidden states are rounded to 2**-9 of themselves a few times a layer.
        assert_close(logits[0], expected, tolerance=2**-4)
        pieces, _ = continued(narrow, tokens, config, init_cache(config, batch=1, length=9, dtype=jnp.bfloat16))
        assert_close(pieces[0], expected, tolerance=2**-4)

    def test_float32_embedding_with_bfloat16_layers(self) -> None:
        config, params, weights, document = model(attention_bias=True)
        params["layers"] = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params["layers"])
        rounded = {name: np.asarray(values.astype(jnp.bfloat16), np.float32) for name, values in weights.items()}
        rounded |= {name: values for name, values in weights.items() if ".layers." not in name}
        tokens = random_tokens(1, 9)
        assert_close(plain(params, tokens, config)[0], oracle.logits(rounded, document, tokens[0]))


class TestArguments:
    def test_bad_shapes(self) -> None:
        config, params, _, _ = model()
        tokens = jnp.asarray(random_tokens(2, 4))
        other = init_cache(config, batch=3, length=8)
        short = init_cache(dataclasses.replace(config, num_layers=2), batch=2, length=8)
        with pytest.raises(ValueError, match="cache keys"):
            forward(params, tokens, config, precision=None, cache=other)
        with pytest.raises(ValueError, match="cache keys"):
            forward(params, tokens, config, precision=None, cache=short)
        with pytest.raises(ValueError, match="at least one"):
            forward(params, tokens[:, :0], config, precision=None)


@pytest.mark.slow
def test_programs_of_a_real_size_compile_in_seconds() -> None:
    """SmolLM2-135M: a prefill of 512 tokens and a decode step. The bound on all programs of a model is 60 s."""
    config = ModelConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        tie_embeddings=True,
    )
    params: dict[str, Any] = {"layers": {}}
    for path, shape in parameter_shapes(config).items():
        top, _, name = path.partition("/")
        (params["layers"] if name else params)[name or top] = jax.ShapeDtypeStruct(shape, jnp.float32)
    cache = jax.eval_shape(lambda: init_cache(config, batch=1, length=1024))
    started = time.perf_counter()
    whole = jax.jit(lambda params, tokens: forward(params, tokens, config, precision=None))
    whole.lower(params, jax.ShapeDtypeStruct((1, 512), jnp.int32)).compile()
    step = jax.jit(
        lambda params, tokens, cache: forward(params, tokens, config, precision=None, cache=cache),
        donate_argnames="cache",
    )
    step.lower(params, jax.ShapeDtypeStruct((1, 1), jnp.int32), cache).compile()
    assert time.perf_counter() - started < 30
