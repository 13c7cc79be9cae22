"""What A3 makes of a layer's attention: the rows that it selects, its weights, and what that loses."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from a3_jax import (
    AttentionFormat,
    SortedKeys,
    approx_attention,
    attention_quality,
    exact_attention,
    fixed_point_attention,
    output_error,
    sort_keys,
)
from examples.demo.attention_inputs import AttentionInputs


class Setting(NamedTuple):
    """One of the paper's two: M as a fraction of the rows that a query may see, T in per cent."""

    name: str
    fraction: float
    threshold_percent: float


SETTINGS = (Setting("conservative", 1 / 2, 5.0), Setting("aggressive", 1 / 8, 10.0))


class Attended(NamedTuple):
    """Of the last queries of every head, arrays [heads, queries] or [heads, queries, n].

    `candidates` get their score, `kept` a weight; `mass` is their part of the exact softmax, `error` the output's, relative.
    """

    weights: Any
    candidates: Any
    kept: Any
    M: Any
    C: Any
    K: Any
    mass: Any
    error: Any


def attend_all(inputs: AttentionInputs, num_queries: int) -> dict[str, Attended]:
    """Exact attention, the base accelerator's, and A3's at both settings, of the last queries; row i is seen by queries from i on.

    The base accelerator takes all rows, in numbers of 4 integer and 4 fraction bits and a sign. A3's selections are made in floats
    here, so that what they lose is told apart from what short numbers lose.
    """
    heads, n, d = inputs.queries.shape
    queries = inputs.queries[:, -num_queries:].reshape(len(inputs.keys), -1, d)
    visible = np.tile(np.arange(n) <= np.arange(n - num_queries, n)[:, None], (heads // len(inputs.keys), 1))
    arguments = queries, inputs.keys, inputs.values, jnp.asarray(visible)
    results = {"exact": _of_all_rows(*arguments, base=False), "base": _of_all_rows(*arguments, base=True)}
    for setting in SETTINGS:
        # Counts and not a fraction: an array may be traced, and both settings share a compiled function.
        iterations = jnp.asarray(np.ceil(setting.fraction * visible.sum(1)), jnp.int32)
        results[setting.name] = _selected(*arguments, iterations, jnp.float32(setting.threshold_percent))
    by_head = functools.partial(_by_head, shape=(heads, num_queries))
    return {name: jax.tree.map(by_head, attended) for name, attended in results.items()}


def _by_head(array: jax.Array, shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(array).reshape(*shape, *array.shape[2:])


def _with_identity(value: jax.Array) -> jax.Array:
    """Values with a 1 of its own for every row behind them: there the output is the weights."""
    return jnp.concatenate([value, jnp.eye(len(value), dtype=value.dtype)], axis=1)


@functools.partial(jax.jit, static_argnames="base")
def _of_all_rows(queries: jax.Array, keys: jax.Array, values: jax.Array, visible: jax.Array, *, base: bool) -> Attended:
    def one(query: jax.Array, mask: jax.Array, key: jax.Array, value: jax.Array) -> Attended:
        exact = output = exact_attention(query, key, _with_identity(value), mask=mask)
        if base:
            output = _in_short_numbers(query, key, _with_identity(value), mask)
        width, rows = value.shape[1], jnp.sum(mask, dtype=jnp.int32)
        error = output_error(output[:width], exact[:width])
        return Attended(output[width:], mask, mask, jnp.int32(0), rows, rows, jnp.float32(1), error)

    of_key = jax.vmap(one, (0, 0, None, None))
    return jax.vmap(of_key, (0, None, 0, 0))(queries, visible, keys, values)


def _in_short_numbers(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    format = AttentionFormat(n=key.shape[0], d=key.shape[1])
    query, key, value = (format.input.quantize(part) for part in (query, key, value))
    return format.output.to_float(fixed_point_attention(query, key, value, None, format=format, mask=mask)[0])


@jax.jit
def _selected(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    iterations: jax.Array,
    threshold_percent: jax.Array,
) -> Attended:
    def one(
        query: jax.Array, mask: jax.Array, count: jax.Array, key: jax.Array, value: jax.Array, ordered: SortedKeys
    ) -> Attended:
        output, info = approx_attention(
            query,
            key,
            _with_identity(value),
            ordered,
            num_iterations=count,
            max_iterations=len(key),
            threshold_percent=threshold_percent,
            mask=mask,
            implementation="sequential",
        )
        width = value.shape[1]
        quality = attention_quality(query, key, value, output[:width], info, mask=mask)
        counts = info.M, info.C, info.K
        return Attended(output[width:], info.candidates, info.kept, *counts, quality.mass, quality.error)

    of_key = jax.vmap(one, (0, 0, 0, None, None, None))
    return jax.vmap(of_key, (0, None, None, 0, 0, 0))(
        queries, visible, iterations, keys, values, jax.vmap(sort_keys)(keys)
    )
