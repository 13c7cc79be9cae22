from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import affine
from anyprec_jax.affine import AffineArray, bits_per_weight, dequantize_affine, dequantize_rows, nbytes, quantize_affine

EPSILON = 2.0**-24  # of one float32 rounding, relative


def rows_of_every_kind() -> np.ndarray:
    """Narrow and wide, large and small, one-sided, constant, zero, and with one weight that dwarfs the others."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 33)) * np.exp(rng.uniform(-60, 60, (40, 1)))
    rows[1] = 3.25
    rows[2] = 0.0
    rows[3] = np.abs(rows[3]) + 10
    rows[4] = rng.standard_normal(33)
    rows[4, 7] = -1e6
    rows[5] = np.linspace(-3e38, 3e38, 33)  # their range exceeds float32
    rows[6] = np.arange(33) * 1e-45
    return rows.astype(np.float32)


def exact(array: AffineArray) -> np.ndarray:
    scale, offset = np.asarray(array.scale, np.float64), np.asarray(array.offset, np.float64)
    return scale[:, None] * np.asarray(array.codes, np.float64) + offset[:, None]


class TestQuantize:
    def test_no_weight_is_further_off_than_half_a_step(self) -> None:
        weights = rows_of_every_kind()
        array = quantize_affine(weights)
        affine.validate(array)
        half = np.asarray(array.scale, np.float64)[:, None] / 2
        # The quotient that is rounded has a float64 error; the bound has it as well.
        assert np.all(np.abs(exact(array) - weights) <= half * (1 + 1e-12) + np.abs(weights) * 2.0**-52)

    def test_every_code_is_the_nearest(self) -> None:
        weights = np.random.default_rng(1).standard_normal((7, 50)).astype(np.float32)
        array = quantize_affine(weights)
        levels = exact(AffineArray(np.tile(np.arange(256, dtype=np.uint8), (7, 1)), array.scale, array.offset))  # pyright: ignore
        for row in range(7):
            distances = np.abs(levels[row][None] - weights[row].astype(np.float64)[:, None])
            chosen = np.take_along_axis(distances, np.asarray(array.codes)[row, :, None].astype(int), axis=1)[:, 0]
            np.testing.assert_allclose(chosen, distances.min(axis=1), rtol=0, atol=1e-12)

    def test_the_scale_is_the_range_over_255(self) -> None:
        weights = np.random.default_rng(2).standard_normal((9, 31)).astype(np.float32)
        array = quantize_affine(weights)
        span = weights.max(axis=1).astype(np.float64) - weights.min(axis=1)
        np.testing.assert_allclose(array.scale, span / 255, rtol=2 * EPSILON)
        assert np.asarray(array.codes).min() == 0
        assert np.asarray(array.codes).max() == 255

    def test_constant_rows_are_exact(self) -> None:
        array = quantize_affine(np.full((3, 5), 0.1, np.float32))
        np.testing.assert_array_equal(dequantize_affine(array), np.full((3, 5), 0.1, np.float32))

    def test_in_pieces_and_twice_it_is_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = rows_of_every_kind()
        whole = quantize_affine(weights)
        monkeypatch.setattr(affine, "_WEIGHTS_AT_ONCE", 100)
        for leaf in ("codes", "scale", "offset"):
            np.testing.assert_array_equal(getattr(quantize_affine(jnp.asarray(weights)), leaf), getattr(whole, leaf))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_weights_must_be_finite(self, value: float) -> None:
        weights = np.zeros((50_000, 30), np.float32)
        weights[49_999, 4] = value  # not among the first rows that are worked on
        with pytest.raises(ValueError, match=f"finite, got {value} at row 49999, column 4"):
            quantize_affine(weights)

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
    def test_weights_must_be_a_matrix(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="must be a matrix"):
            quantize_affine(np.zeros(shape, np.float32))


class TestDequantize:
    def test_rows(self) -> None:
        array = quantize_affine(np.random.default_rng(3).standard_normal((20, 9)).astype(np.float32))
        ids = jnp.asarray([[3, 0], [19, 3]])
        rows = np.asarray(dequantize_rows(array, ids))
        expected = exact(array)[np.asarray(ids)]
        assert rows.dtype == np.float32
        assert rows.shape == (2, 2, 9)
        assert np.all(np.abs(rows - expected) <= 3 * EPSILON * np.abs(expected).max())
        np.testing.assert_array_equal(rows, np.asarray(dequantize_affine(array))[np.asarray(ids)])

    def test_only_the_rows_that_are_asked_for_are_decoded(self) -> None:
        shapes = AffineArray(
            *(jax.ShapeDtypeStruct(s, d) for s, d in (((4096, 64), jnp.uint8), ((4096,), jnp.float32)))  # pyright: ignore
            , offset=jax.ShapeDtypeStruct((4096,), jnp.float32),  # pyright: ignore
        )  # fmt: skip
        compiled = jax.jit(dequantize_rows).lower(shapes, jax.ShapeDtypeStruct((2,), jnp.int32)).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 4096 * 64


def test_sizes() -> None:
    array = quantize_affine(np.ones((10, 64), np.float32))
    assert (array.n, array.k, array.shape) == (10, 64, (10, 64))
    assert nbytes(array) == sum(leaf.nbytes for leaf in jax.tree.leaves(array)) == 10 * 64 + 10 * 8
    assert bits_per_weight(array) == 8 + 64 / 64


class TestValidate:
    GOOD: ClassVar[dict[str, np.ndarray]] = {
        "codes": np.zeros((2, 3), np.uint8),
        "scale": np.ones(2, np.float32),
        "offset": np.zeros(2, np.float32),
    }

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"codes": np.zeros((2, 3), np.int8)}, "codes must be uint8"),
            ({"codes": np.zeros((3,), np.uint8)}, r"codes must be uint8 \[n, k\]"),
            ({"scale": np.ones(3, np.float32)}, r"scale must be float32 \[2\]"),
            ({"offset": np.zeros(2, np.float16)}, r"offset must be float32 \[2\]"),
            ({"scale": np.array([1, -1], np.float32)}, "scale must be finite and at least 0, but is -1.0 in row 1"),
            ({"scale": np.array([np.nan, 1], np.float32)}, "scale must be finite .* nan in row 0"),
            ({"offset": np.array([0, np.inf], np.float32)}, "offset must be finite, but is inf in row 1"),
        ],
    )
    def test_names_what_does_not_hold(self, changes: dict[str, np.ndarray], complaint: str) -> None:
        affine.validate(AffineArray(**self.GOOD))  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=complaint):
            affine.validate(AffineArray(**self.GOOD | changes))  # pyright: ignore[reportArgumentType]
