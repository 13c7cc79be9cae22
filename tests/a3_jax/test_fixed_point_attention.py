"""The integer pipeline against one in Python's integers, bit for bit."""

import functools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.attention.approximate import approx_attention
from a3_jax.fixed_point.attention import fixed_point_attention
from a3_jax.fixed_point.formats import AttentionFormat
from a3_jax.sorted_keys import sort_keys
from tests.a3_jax import oracle_fixed_point as oracle

BATCH = 12


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
        options = {
            "fallback": str(rng.choice(["largest_product", "argmax", "all"])),
            "skip_heuristic": rng.random() < 0.8,
        }
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
            sort_keys(key),
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


@pytest.mark.parametrize("seeds", [range(5), pytest.param(range(5, 20), marks=pytest.mark.slow)])
def test_every_bit_of_many_formats(seeds: range) -> None:
    # Without jit, so that formats do not compile anew.
    for seed in seeds:
        group = random_group(seed, 7, 5)
        assert_same(group, jax.vmap(attend(group))(group.query, group.key, group.value, group.mask))


@pytest.mark.parametrize(
    ("n", "d", "groups"),
    [(1, 1, 1), (9, 1, 2), (40, 8, 3), (33, 64, 1), (320, 64, 1)],
)
def test_every_bit_of_many_sizes(n: int, d: int, groups: int) -> None:
    for seed in range(groups):
        group = random_group(1000 + seed, n, d)
        assert_same(group, jax.jit(jax.vmap(attend(group)))(group.query, group.key, group.value, group.mask))


def test_ties_are_those_of_the_hardware_beyond_what_a_packed_key_holds() -> None:
    """n d = 38,400 products, above 32,768, with few distinct values."""
    rng = np.random.default_rng(5)
    format = AttentionFormat(integer_bits=3, fraction_bits=2, n=600, division="late")
    query, key = rng.integers(-3, 4, (2, 64)), rng.integers(-3, 4, (2, 600, 64))
    value = rng.integers(-31, 32, (2, 600, 3))
    arrays = [array.astype(np.int32) for array in (query, key, value)]
    group = Group(format, *arrays, np.ones((2, 600), bool), 300, 5.0, {"fallback": "all", "skip_heuristic": True})
    assert_same(group, jax.jit(jax.vmap(attend(group)))(*arrays, group.mask))


def attend_equal(counts: list[int], **options: Any) -> list[float]:
    """For each count the output over so many equal rows of value 1.0."""
    format = AttentionFormat(n=600, d=1, **options)
    one = format.input.quantize(jnp.ones((600, 1)))

    def attend_first(count: jax.Array) -> jax.Array:
        mask = jnp.arange(600) < count
        return fixed_point_attention(one[0], one, one, None, format=format, mask=mask)[0][0]

    return format.output.to_float(jax.jit(jax.vmap(attend_first))(jnp.array(counts))).tolist()


def test_uniform_attention_collapses_unless_division_is_late() -> None:
    """A weight has 8 fraction bits: 1/n is below the last one, or half of it, and what is rounded up adds up n times."""
    counts = [1, 2, 256, 257, 320, 512, 513, 600]
    assert attend_equal(counts) == [1, 1, 1, 0, 0, 0, 0, 0]
    assert attend_equal(counts, division_rounding="nearest") == [1, 1, 1, 257 / 256, 1.25, 2, 0, 0]
    assert attend_equal(counts, division="late") == [1] * 8
    assert attend_equal(counts, division="late", division_rounding="nearest") == [1] * 8


def test_a_single_row_of_a_saturating_score_loses_a_unit_and_late_division_restores_it() -> None:
    assert attend_equal([1], score_of_one="saturate") == [1 - 1 / 256]
    assert attend_equal([1], score_of_one="saturate", division="late") == [1]


def test_without_a_valid_row_the_output_is_0() -> None:
    format = AttentionFormat(n=4, d=2)
    ones = jnp.ones((4, 2), jnp.int32)
    attend_none = functools.partial(fixed_point_attention, format=format, num_iterations=3, mask=jnp.zeros(4, bool))
    output, info = jax.jit(attend_none)(ones[0], ones, ones, sort_keys(ones))
    assert output.tolist() == [0, 0]
    assert (info.M, info.C, info.K, info.lse) == (0, 0, 0, -np.inf)


def test_finer_formats_tend_to_exact_attention() -> None:
    rng = np.random.default_rng(6)
    query, key, value = (rng.normal(0, 0.5, shape).astype(np.float32) for shape in (16, (50, 16), (50, 4)))
    scores = key.astype(np.float64) @ query
    weights = np.exp(scores - scores.max())
    exact, lse = weights @ value / weights.sum(), scores.max() + np.log(weights.sum())
    for fraction_bits in (2, 4, 6, 8):
        format = AttentionFormat(integer_bits=2, fraction_bits=fraction_bits, n=50, d=16)
        attend_coarsely = jax.jit(functools.partial(fixed_point_attention, sorted_keys=None, format=format))
        output, info = attend_coarsely(*map(format.input.quantize, (query, key, value)))
        # Half a unit of every input moves a dot product by sum |q| + |k| + unit; scores and weights lose at most a unit of 2f each.
        unit = 2.0**-fraction_bits
        moved = unit / 2 * (np.abs(query).sum() + np.abs(key).sum(1).max() + 16 * unit) + 2**-8
        lost = np.expm1(2 * moved) + 2 * 50 * unit**2
        assert np.abs(format.output.to_float(output) - exact).max() <= lost * np.abs(value).max() + unit / 2
        assert abs(info.lse - lse) <= moved + 50 * unit**2


def test_64_bit_types_change_nothing() -> None:
    group = random_group(3, 7, 5)
    arrays = (group.query[0], group.key[0], group.value[0], group.mask[0])
    output, _ = jax.jit(attend(group))(*map(jnp.asarray, arrays))
    with jax.enable_x64(True):
        wide, info = jax.jit(attend(group))(*map(jnp.asarray, arrays))
    assert wide.dtype == output.dtype == info.K.dtype == jnp.int32
    assert wide.tolist() == output.tolist()


def test_what_does_not_fit_the_format_is_refused() -> None:
    format = AttentionFormat(n=4, d=2)
    ones = jnp.ones((5, 2), jnp.int32)
    with pytest.raises(ValueError, match=r"key: wanted at most \[4, 2\], as the format says, got \[5, 2\]"):
        fixed_point_attention(ones[0], ones, ones, None, format=format)
    with pytest.raises(ValueError, match="sorted_keys: wanted"):
        fixed_point_attention(ones[0], ones[:4], ones[:4], None, format=format, num_iterations=1)
    wide = AttentionFormat(integer_bits=6, fraction_bits=4, n=4096, d=64)
    many = jnp.ones((4096, 64), jnp.int32)
    with pytest.raises(ValueError, match="running_sum of 4096 iterations needs 32 bits"):
        fixed_point_attention(many[0], many, many, sort_keys(many), format=wide, num_iterations=4096)


@pytest.mark.parametrize("fallback", ["largest_product", "argmax", "all"])
def test_what_is_selected_is_what_floats_select(fallback: Any) -> None:
    """With inputs that floats hold exactly, `approx_attention` finds the same candidates; and the same rows are kept."""
    rng = np.random.default_rng(8)
    format = AttentionFormat(n=24, d=4)
    integers = [rng.integers(-9, 10, shape).astype(np.int32) for shape in ((64, 4), (64, 24, 4), (64, 24, 2))]
    integers[1][:32] = -abs(integers[1][:32]) * np.sign(integers[0][:32, None] + 0.5)
    mask = rng.random((64, 24)) < 0.8
    options = {"num_iterations": 6, "threshold_percent": 20.0, "fallback": fallback}

    def both(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> tuple[Any, Any]:
        _, found = fixed_point_attention(query, key, value, sort_keys(key), format=format, mask=mask, **options)
        query, key, value = map(format.input.to_float, (query, key, value))
        return found, approx_attention(query, key, value, sort_keys(key), mask=mask, **options)[1]

    found, wanted = jax.jit(jax.vmap(both))(*integers, mask)
    for name in ("candidates", "kept", "M", "C", "K"):
        assert (getattr(found, name) == getattr(wanted, name)).all()
    assert len(np.unique(found.C)) > 2
