"""What runs on the device while text is generated: a piece of a prompt at a time, then blocks of new tokens.

Both are jitted functions of one row of tokens; the cache that is handed in is consumed. A block is a loop on the device: no token of
it waits for the host, and its length is an argument, so that one program serves blocks of every length.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import KVCache, hidden_states, unembed
from anyprec_jax.models.precision_map import Precision
from anyprec_jax.sampling import Sampling, sample

MAX_BLOCK = 16  # tokens; what is sampled beyond a stop string is thrown away

_jitted = functools.partial(jax.jit, static_argnames=("config", "precision"), donate_argnames=("cache",))


@_jitted
def prefill(
    params: dict[str, Any],
    tokens: Int32[Array, "1 seq"],
    lengths: Int32[Array, " 1"],
    cache: KVCache,
    *,
    key: Key[Array, ""],
    sampling: Sampling,
    config: ModelConfig,
    precision: Precision | None,
) -> tuple[Int32[Array, ""], KVCache]:
    """Appends the first `lengths` tokens to the cache and samples the one that follows them."""
    return _next_token(params, tokens, lengths, cache, key, sampling, config, precision)


@_jitted
def decode(
    params: dict[str, Any],
    token: Int32[Array, ""],
    count: Int32[Array, ""],
    ends: Int32[Array, " num_ends"],
    cache: KVCache,
    *,
    key: Key[Array, ""],
    sampling: Sampling,
    config: ModelConfig,
    precision: Precision | None,
) -> tuple[Int32[Array, " block"], Int32[Array, ""], KVCache]:
    """Continues `token`, which is not in the cache yet, by `count` tokens, or up to one of `ends`.

    Returns:
      The new tokens, how many they are (at most `count`, and at most MAX_BLOCK: what follows them in the array is 0), and the
      cache, which holds all but the last of them.
    """
    one = jnp.ones(1, jnp.int32)

    def is_unfinished(state: tuple[Array, Array, Array, KVCache]) -> Array:
        done, last, _, _ = state
        return (done < jnp.minimum(count, MAX_BLOCK)) & ((done == 0) | ~jnp.any(ends == last))

    def step(state: tuple[Array, Array, Array, KVCache]) -> tuple[Array, Array, Array, KVCache]:
        done, last, block, cache = state
        last, cache = _next_token(params, last.reshape(1, 1), one, cache, key, sampling, config, precision)
        return done + 1, last, block.at[done].set(last), cache

    start = (jnp.int32(0), token, jnp.zeros(MAX_BLOCK, jnp.int32), cache)
    done, _, block, cache = jax.lax.while_loop(is_unfinished, step, start)
    return block, done, cache


def _next_token(
    params: dict[str, Any],
    tokens: Array,
    lengths: Array,
    cache: KVCache,
    key: Array,
    sampling: Sampling,
    config: ModelConfig,
    precision: Precision | None,
) -> tuple[Array, KVCache]:
    hidden, cache = hidden_states(params, tokens, config, precision=precision, cache=cache, lengths=lengths)
    last = jax.lax.dynamic_index_in_dim(hidden[0], lengths[0] - 1, keepdims=False)
    logits: Float[Array, " vocab"] = unembed(params, last, config)
    # Keyed by position: a text that is resumed in its middle continues as it would have.
    return sample(logits, jax.random.fold_in(key, cache.lengths[0]), sampling), cache
