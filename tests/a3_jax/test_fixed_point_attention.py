"""The integer pipeline against one in Python's integers, bit for bit."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.fixed_point.attention import fixed_point_attention
from a3_jax.fixed_point.formats import AttentionFormat
from a3_jax.sorted_keys import sort_keys
from tests.a3_jax import oracle_fixed_point as oracle

BATCH = 6


class Group(NamedTuple):
    """Cases that one call computes."""

    format: AttentionFormat
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    mask: np.ndarray
    iterations: int | None
    percent: float | None
    options: dict[str, Any]


def random_format(rng: np.random.Generator, n: int, d: int) -> AttentionFormat:
    """A format of i, f in 2..8 whose signals fit; those that do not are drawn again."""
    while True:
        fraction_bits = int(rng.integers(2, 9))
        try:
            return AttentionFormat(
                integer_bits=int(rng.integers(2, 9)),
                fraction_bits=fraction_bits,
                n=n + int(rng.integers(0, 3)),
                d=d + int(rng.integers(0, 3)),
                index_integer_bits=int(rng.integers(3, 9)),
                index_fraction_bits=int(rng.integers(3, 9)),
                entry_bits=int(rng.integers(2 * fraction_bits, 18)),
                entry_rounding=str(rng.choice(["floor", "nearest"])),
                score_rounding=str(rng.choice(["floor", "nearest"])),
                score_of_one=str(rng.choice(["extra_bit", "saturate"])),
                division=str(rng.choice(["early", "late"])),
                division_rounding=str(rng.choice(["floor", "nearest"])),
            )
        except ValueError:
            continue


def random_inputs(
    rng: np.random.Generator, n: int, d: int, format: AttentionFormat
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dot products some units of e apart, many equal products, and now and then the ends of the range."""
    top = format.input.largest
    if rng.random() < 0.2:
        return tuple(rng.choice([-top, top, 0], size) for size in (d, (n, d), (n, 3)))
    size = math.sqrt(4**format.fraction_bits * rng.uniform(0.05, 6) / math.sqrt(d))
    tilt = rng.choice([0.25, 1, 4])
    query, key = (np.round(rng.normal(0, size * factor, shape)) for factor, shape in ((tilt, d), (1 / tilt, (n, d))))
    value = rng.integers(-top, top + 1, (n, 3))
    if rng.random() < 0.3:
        key = -np.abs(key) * np.sign(query + 0.5)  # no dot product above 0: fallbacks
    return tuple(np.clip(x, -top, top) for x in (query, key, value))


def random_mask(rng: np.random.Generator, n: int) -> np.ndarray:
    kind = rng.random()
    if kind < 0.1:
        return np.zeros(n, bool)
    return np.ones(n, bool) if kind < 0.4 else rng.random(n) < rng.choice([0.2, 0.8])


def random_group(seed: int, n: int, d: int) -> Group:
    rng = np.random.default_rng(seed)
    while True:
        format = random_format(rng, n, d)
        iterations = [None, 1, max(1, n // 2), max(1, n // 8), n * d + 3][rng.integers(5)]
        options = {"fallback": str(rng.choice(["largest_product", "argmax", "all"])), "skip_heuristic": rng.random() < 0.8}
        try:
            format.running_sum(iterations or 1)
            break
        except ValueError:
            continue
    arrays = [random_inputs(rng, n, d, format) for _ in range(BATCH)]
    query, key, value = (np.stack(same).astype(np.int32) for same in zip(*arrays, strict=True))
    mask = np.stack([random_mask(rng, n) for _ in range(BATCH)])
    percent = [None, 1.0, 5.0, 20.0, 100.0, float(rng.uniform(0.1, 60))][rng.integers(6)]
    return Group(format, query, key, value, mask, iterations, percent, options)


def expected(group: Group) -> Iterator[oracle.Outcome]:
    for query, key, value, mask in zip(group.query, group.key, group.value, group.mask, strict=True):
        yield oracle.attend(
            query.tolist(),
            key.tolist(),
            value.tolist(),
            group.format,
            iterations=group.iterations,
            threshold=None if group.percent is None else Fraction(group.percent) / 100,
            valid=mask.tolist(),
            fallback=group.options["fallback"],
            skip=group.options["skip_heuristic"],
        )


def attend(group: Group, **more: Any) -> Callable[..., Any]:
    def one(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> Any:
        return fixed_point_attention(
            query,
            key,
            value,
            format=group.format,
            num_iterations=group.iterations,
            threshold_percent=group.percent,
            mask=mask,
            **group.options,
            **more,
        )

    return one


def assert_same(group: Group, found: Any) -> None:
    output, info = jax.tree.map(np.asarray, found)
    for case, wanted in enumerate(expected(group)):
        assert info.candidates[case].tolist() == wanted.candidates
        assert info.kept[case].tolist() == wanted.kept
        assert output[case].tolist() == wanted.output
        assert (info.M[case], info.C[case], info.K[case]) == (
            wanted.iterations,
            sum(wanted.candidates),
            sum(wanted.kept),
        )


@pytest.mark.parametrize(("n", "d", "groups"), [(1, 1, 8), (9, 1, 12), (7, 5, 30), (40, 8, 24), (33, 64, 8)])
def test_every_bit_is_that_of_the_paper(n: int, d: int, groups: int) -> None:
    # Without jit, so that formats do not compile anew.
    for seed in range(groups):
        group = random_group(seed, n, d)
        assert_same(group, jax.vmap(attend(group))(group.query, group.key, group.value, group.mask))
