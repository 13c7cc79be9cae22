"""A3 inside an encoder: one text, head and query at a time, by the pseudo-code's search and float64 or the integer pipeline."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a3_jax.attention.approximate import Info
from a3_jax.fixed_point.attention import fixed_point_attention
from a3_jax.fixed_point.formats import AttentionFormat
from a3_jax.sorted_keys import sort_keys
from a3_jax.workloads.encoder import exact_heads
from a3_jax.workloads.encoder_attention import Setting, attention_of
from tests.a3_jax.selection_oracles import greedy_oracle

BATCH, HEADS, SEQ, DIM = 2, 2, 9, 4
ROWS = (9, 6)  # tokens of the two texts
EPSILON = np.finfo(np.float32).eps


@functools.cache
def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Query, key, value, mask."""
    rng = np.random.default_rng(11)
    query, key, value = rng.normal(size=(3, BATCH, HEADS, SEQ, DIM)).astype(np.float32)
    return query, key, value, np.arange(SEQ) < np.array(ROWS)[:, None]


def oracle(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, num_iterations: int | None, threshold: float | None
) -> tuple[np.ndarray, int, int]:
    """Output, C and K of one query and the valid rows."""
    candidates = np.ones(len(key), bool)
    if num_iterations is not None:
        greedy, first_row = greedy_oracle(query, key, num_iterations)
        candidates = greedy > 0
        if not candidates.any():
            candidates[first_row] = True
    scores = key.astype(np.float64) @ query.astype(np.float64)
    largest = scores[candidates].max()
    kept = candidates if threshold is None else candidates & (largest - scores <= math.log(100 / threshold))
    weights = np.where(kept, np.exp(scores - largest), 0)
    return weights @ value / weights.sum(), int(candidates.sum()), int(kept.sum())


@pytest.mark.parametrize(
    ("iterations", "threshold", "expected_iterations"),
    [(0.5, 5, (5, 3)), (7, None, (7, 7)), (None, 20, (0, 0)), (None, None, (0, 0))],
)
@pytest.mark.parametrize("fraction_bits", [None, 3])
def test_floats(
    iterations: float | None, threshold: float | None, expected_iterations: tuple[int, int], fraction_bits: int | None
) -> None:
    query, key, value, mask = arrays()
    setting = Setting(name="", iterations=iterations, threshold_percent=threshold)
    if fraction_bits is not None:
        setting = Setting(
            name="",
            iterations=iterations,
            threshold_percent=threshold,
            arithmetic="input-quantised float",
            integer_bits=1,
            fraction_bits=fraction_bits,
        )
    output, counts = attention_of(setting)(*(jnp.asarray(array) for array in (query, key, value, mask)))
    if fraction_bits is not None:
        most = 2 - 2**-fraction_bits
        query, key, value = (
            (np.clip(np.round(array * 2**fraction_bits) / 2**fraction_bits, -most, most))
            for array in (query, key, value)
        )
    for text, rows in enumerate(ROWS):
        for head in range(HEADS):
            for place in range(rows):
                found, candidates, kept = oracle(
                    query[text, head, place],
                    key[text, head, :rows],
                    value[text, head, :rows],
                    expected_iterations[text] or None,
                    threshold,
                )
                np.testing.assert_allclose(output[text, head, place], found, atol=8 * SEQ * EPSILON)
                assert [int(count[text, head, place]) for count in counts] == [
                    expected_iterations[text],
                    candidates,
                    kept,
                ]


@pytest.mark.parametrize(("iterations", "division"), [(0.5, "early"), (None, "late")])
def test_fixed_point_is_the_integer_pipeline(iterations: float | None, division: str) -> None:
    """Which searches, and does not get its candidates from elsewhere, as it does here."""
    query, key, value, mask = arrays()
    setting = Setting(
        name="",
        iterations=iterations,
        threshold_percent=5,
        arithmetic="fixed point",
        integer_bits=2,
        fraction_bits=3,
        division=division,  # pyright: ignore[reportArgumentType]
    )
    output, counts = attention_of(setting)(*(jnp.asarray(array) for array in (query, key, value, mask)))
    made = AttentionFormat(integer_bits=2, fraction_bits=3, n=SEQ, d=DIM, division=division)  # pyright: ignore[reportArgumentType]
    integers = [made.input.quantize(array) for array in (query, key, value)]

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
    def pipeline(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> tuple[jax.Array, Info]:
        return fixed_point_attention(
            query,
            key,
            value,
            sort_keys(key),
            format=made,
            num_iterations=iterations,
            threshold_percent=5,
            mask=mask,
            implementation="sequential",
        )

    for text in range(BATCH):
        keys = integers[1][text, 0]
        expected, info = pipeline(integers[0][text, 0, 3], keys, integers[2][text, 0], jnp.asarray(mask[text]))
        np.testing.assert_array_equal(output[text, 0, 3], expected * 2.0**-9)
        assert [int(c[text, 0, 3]) for c in counts] == [int(info.M), int(info.C), int(info.K)]


def test_nothing_set_is_exact_attention() -> None:
    assert attention_of(Setting(name="exact")) is exact_heads


def test_int32_holds_what_the_sum_of_a_search_leaves_room_for() -> None:
    """16 integer and fraction bits twice are 24 bits a product, of which int32 adds up 127."""
    fine = Setting(name="", iterations=0.125, arithmetic="fixed point", fraction_bits=8)
    fine.format_for(num_rows=320, head_dim=32)
    with pytest.raises(ValueError, match="running_sum of 160 iterations needs 32 bits"):
        Setting(name="", iterations=0.5, arithmetic="fixed point", fraction_bits=8).format_for(
            num_rows=320, head_dim=32
        )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"iterations": 0}, "M: wanted"),
        ({"threshold_percent": 0}, "T: wanted"),
        ({"threshold_percent": 101}, "T: wanted"),
    ],
)
def test_settings_that_there_are_not(changes: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Setting(name="", **changes)  # pyright: ignore[reportArgumentType]
