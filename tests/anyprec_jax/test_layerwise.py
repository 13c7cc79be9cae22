"""Layer by layer against the compiled decoder, which does all layers in one scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.models.attention import dot_product_attention
from anyprec_jax.models.decoder import forward, init_cache
from anyprec_jax.models.layerwise import continue_layerwise
from anyprec_jax.models.model import Model
from tests.anyprec_jax.tiny import quantized_tiny_model, tiny_model

SEQ, STEPS = 12, 5


def exact(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    seq, kv = len(query), len(key)
    mask = jnp.arange(kv)[None] <= (kv - seq + jnp.arange(seq))[:, None]
    return dot_product_attention(query, key, value, mask)


def prefilled(model: Model, tokens: np.ndarray, precision: int | None):
    cache = init_cache(model.config, batch=1, length=SEQ)  # with room that is not filled
    _, cache = forward(model.params, tokens[None, :-STEPS], model.config, precision=precision, cache=cache)
    return cache


@pytest.mark.parametrize("precision", [None, 3])
def test_logits_are_those_of_the_compiled_decoder(precision: int | None) -> None:
    model = tiny_model(1) if precision is None else quantized_tiny_model(1)
    tokens = np.random.default_rng(0).integers(0, 260, SEQ)
    whole = forward(model.params, tokens[None], model.config, precision=precision)
    assert isinstance(whole, jax.Array)
    called = []

    def attention(layer, query, key, value):
        called.append((layer, query.shape, key.shape))
        return np.asarray(exact(layer, query, key, value))  # from the host

    logits = continue_layerwise(
        model.params,
        jnp.asarray(tokens[-STEPS:]),
        model.config,
        precision=precision,
        cache=prefilled(model, tokens, precision),
        attention=attention,
    )
    np.testing.assert_allclose(logits, whole[0, -STEPS:], rtol=1e-4, atol=1e-4)
    assert called == [(layer, (STEPS, 6, 8), (SEQ, 2, 8)) for layer in range(3)]


def test_what_attention_returns_is_what_later_layers_see() -> None:
    model, tokens = tiny_model(1), np.random.default_rng(0).integers(0, 260, SEQ)
    cache = prefilled(model, tokens, None)
    queries: dict[bool, list] = {False: [], True: []}
    for changed in queries:

        def attention(layer, query, key, value, changed=changed):
            queries[changed].append(np.asarray(query))
            return exact(layer, query, key, value) * (2 if changed and layer == 1 else 1)

        continue_layerwise(
            model.params, jnp.asarray(tokens[-STEPS:]), model.config, precision=None, cache=cache, attention=attention
        )
    same = [np.array_equal(*pair) for pair in zip(queries[False], queries[True], strict=True)]
    assert same == [True, True, False]


def test_what_is_refused() -> None:
    model = tiny_model(1)
    tokens = jnp.zeros(2, jnp.int32)
    options = {"precision": None, "attention": lambda layer, query, key, value: query[:1]}
    with pytest.raises(ValueError, match="that of one text"):
        cache = init_cache(model.config, batch=2, length=4)
        continue_layerwise(model.params, tokens, model.config, cache=cache, **options)
    with pytest.raises(ValueError, match="attention: wanted"):
        cache = init_cache(model.config, batch=1, length=4)
        continue_layerwise(model.params, tokens, model.config, cache=cache, **options)
