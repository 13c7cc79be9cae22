"""Blocks of tokens against single steps."""

import dataclasses
import functools
import itertools
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import decoding, generation
from anyprec_jax.generation import generate
from anyprec_jax.models.decoder import forward, init_cache
from anyprec_jax.models.model import Model, with_affine_head
from anyprec_jax.sampling import checked_sampling, sample
from tests.anyprec_jax.tiny import quantized_tiny_model, tiny_model

PROMPT = [5, 17, 200, 3, 42]
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.9},
    "top-k": {"temperature": 1.3, "top_k": 20},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
    "min-p": {"temperature": 1.1, "min_p": 0.05},
    "all": {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
}


@functools.cache
def models() -> dict[str, tuple[Model, int | None]]:
    return {"plain": (tiny_model(), None), "quantized": (with_affine_head(quantized_tiny_model()), 3)}


@functools.partial(jax.jit, static_argnames=("config", "precision"))
def one_step(params, tokens, cache, key, sampling, *, config, precision):
    """The logits of a step and a token drawn from them, outside of any loop."""
    logits, cache = forward(params, tokens, config, precision=precision, cache=cache)
    return sample(logits[0, -1], jax.random.fold_in(key, cache.lengths[0]), sampling), cache


def step_by_step(model: Model, precision: int | None, sampling: dict[str, Any], seed: int, count: int) -> list[int]:
    cache = init_cache(model.config, batch=1, length=64)
    step = functools.partial(one_step, model.params, config=model.config, precision=precision)
    tokens, result = jnp.asarray([PROMPT], jnp.int32), []
    for _ in range(count):
        token, cache = step(tokens, cache, jax.random.key(seed), checked_sampling(**sampling))
        result.append(int(token))
        tokens = token.reshape(1, 1)
    return result


@pytest.mark.parametrize(
    ("name", "sampling"),
    [*(("plain", sampling) for sampling in SAMPLINGS), ("quantized", "greedy"), ("quantized", "all")],
)
def test_tokens_are_those_of_single_steps(name: str, sampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, precision = models()[name]
    for seed in (0, 3):
        expected = step_by_step(model, precision, SAMPLINGS[sampling], seed, 40)
        for block_s in (0.0, 1e9):  # blocks of one token, and of as many as there can be
            monkeypatch.setattr(generation, "_BLOCK_S", block_s)
            result = generate(model, PROMPT, precision=precision, max_new_tokens=40, seed=seed, **SAMPLINGS[sampling])
            assert result.tokens == expected


def decode(model: Model, token: int, count: int, ends: list[int]) -> tuple[list[int], int, Any]:
    settings = {"key": jax.random.key(0), "sampling": checked_sampling(), "config": model.config, "precision": None}
    cache = init_cache(model.config, batch=1, length=64)
    arguments = (jnp.int32(token), jnp.int32(count), jnp.asarray(ends, jnp.int32), cache)
    block, done, after = decoding.decode(model.params, *arguments, **settings)
    assert cache.keys.is_deleted() and cache.values.is_deleted()  # donated
    return np.asarray(block).tolist(), int(done), after


class TestBlock:
    def test_ends_after_count_tokens(self) -> None:
        whole, done, cache = decode(tiny_model(), 7, 16, [])
        assert (done, cache.lengths.tolist()) == (16, [16])
        for count in (1, 5):
            block, done, cache = decode(tiny_model(), 7, count, [])
            assert (block, done) == (whole[:count] + [0] * (16 - count), count)
            assert cache.lengths.tolist() == [count]

    def test_ends_with_an_end_token(self) -> None:
        whole, _, _ = decode(tiny_model(), 7, 16, [])
        at = next(i for i in range(3, 16) if whole[i] not in whole[:i])
        block, done, cache = decode(tiny_model(), 7, 16, [259, whole[at]])
        assert (block[: at + 1], done) == (whole[: at + 1], at + 1)
        assert cache.lengths.tolist() == [at + 1]

    def test_the_token_it_continues_does_not_end_it(self) -> None:
        assert decode(tiny_model(), 7, 4, [7])[1] >= 1

    def test_no_more_than_a_block(self) -> None:
        assert decode(tiny_model(), 7, 1000, [])[1] == decoding.MAX_BLOCK

    def test_the_cache_is_written_in_place(self) -> None:
        model = tiny_model()
        cache = init_cache(model.config, batch=1, length=4096)
        settings: dict[str, Any] = {"key": jax.random.key(0), "sampling": checked_sampling(), "config": model.config}
        arguments = (model.params, jnp.int32(0), jnp.int32(0), jnp.zeros(0, jnp.int32), cache)
        memory = decoding.decode.lower(*arguments, precision=None, **settings).compile().memory_analysis()
        assert memory is not None
        bytes_of_cache = cache.keys.nbytes + cache.values.nbytes
        assert memory.alias_size_in_bytes >= bytes_of_cache
        assert memory.temp_size_in_bytes < bytes_of_cache  # one layer's slice, not a copy of all


def test_nothing_is_compiled_while_generating() -> None:
    """Of a second text with other lengths, settings and seed: counted where XLA compiles."""
    model, precision = models()["quantized"]
    sampling = SAMPLINGS["all"]
    generate(model, PROMPT, precision=precision, max_new_tokens=40, **sampling)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        other = sampling | {"temperature": 0.7, "top_k": 5}
        generate(model, PROMPT * 2, precision=precision, max_new_tokens=50, seed=9, **other)
        assert compiled == []
        jax.jit(lambda x: x * 3)(jnp.ones(7))
        assert len(compiled) > 0  # it would have been seen
    finally:
        jax.monitoring.clear_event_listeners()


def test_blocks_grow_with_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token first; then as many as the time for a block allows."""
    counts: list[int] = []
    lower = decoding.decode.lower

    def lower_counting(*args, **kwargs):
        compiled = lower(*args, **kwargs).compile()

        def counting(params, token, count, *rest, **more):
            counts.append(int(count))
            return compiled(params, token, count, *rest, **more)

        return mock.Mock(compile=lambda: counting)

    now = itertools.count(0.0, 1 / 64)  # each look at the clock is 1/64 s later, and so long takes a block
    monkeypatch.setattr(generation.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(decoding, "decode", mock.Mock(lower=lower_counting))
    model = dataclasses.replace(tiny_model(), tokenizer=None)
    result = generate(model, PROMPT, precision=None, max_new_tokens=60)
    assert len(result.tokens) == 60
    assert counts[:4] == [1, 6, 16, 16]  # 6.4 of the first, then 6.4 / 2 times the 7 so far: at most 16
    assert sum(counts) == 59
