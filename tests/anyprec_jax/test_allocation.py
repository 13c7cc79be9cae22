"""Allocation against every choice there is; errors against plain sums over the weights."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest

from anyprec_jax import allocation
from anyprec_jax.allocation import allocate, allocated, matrix_errors, quantization_errors, scaled
from anyprec_jax.array import AnyPrecArray
from anyprec_jax.models.fusion import LINEARS, fused
from anyprec_jax.models.model import Model
from anyprec_jax.models.precision_map import QuantizationErrors
from anyprec_jax.ops import dequantize
from tests.anyprec_jax.tiny import quantized_tiny_model, tiny_model

# Two layers of three linears, of which two are fused into one with one output for the value and the key each.
SHAPES = {"qkv_proj": (2, 5, 6), "o_proj": (2, 3, 6), "down_proj": (2, 6, 9)}
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
PRECISIONS = (2, 3, 4, 6)


def random_errors(seed: int, names: tuple[str, ...] = PARTS, layers: int = 2) -> QuantizationErrors:
    """Falling with the precision, but not always."""
    rng = np.random.default_rng(seed)
    falling = 4.0 ** -np.arange(len(PRECISIONS))
    return QuantizationErrors(
        PRECISIONS, {name: falling * rng.lognormal(size=(layers, len(PRECISIONS))) for name in names}
    )


def best_of_all(errors: QuantizationErrors, average: float) -> float:
    """The least sum under the average, over all 4^6 choices for the six matrices."""
    tables = [sum(errors.linears[part] for part in PARTS[:3]), errors.linears["o_proj"], errors.linears["down_proj"]]
    sizes = [math.prod(shape[1:]) for shape in SHAPES.values()]
    matrices = [(size, table[layer]) for size, table in zip(sizes, tables, strict=True) for layer in range(2)]
    total = sum(size for size, _ in matrices)
    least = math.inf
    for choice in itertools.product(range(len(PRECISIONS)), repeat=len(matrices)):
        bits = sum(size * PRECISIONS[j] for j, (size, _) in zip(choice, matrices, strict=True))
        if bits <= average * total + 1e-9:
            least = min(least, sum(table[j] for j, (_, table) in zip(choice, matrices, strict=True)))
    return least


def cost(chosen: Any, errors: QuantizationErrors) -> float:
    return sum(
        errors.linears[name][layer][errors.precisions.index(w)]
        for name in PARTS
        for layer, w in enumerate(chosen.of(name))
    )


def mean(chosen: Any) -> float:
    sizes = {name: math.prod(shape[1:]) for name, shape in SHAPES.items()}
    bits = sum(size * w for name, size in sizes.items() for w in chosen.of(name))
    return bits / (2 * sum(sizes.values()))


class TestAllocated:
    @pytest.mark.parametrize("average", [2, 2.3, 3.5, 4.0, 5.75, 6])
    def test_no_choice_is_better(self, average: float) -> None:
        for seed in range(3):
            errors = random_errors(seed)
            chosen = allocated(errors, SHAPES, PRECISIONS, average)
            assert cost(chosen, errors) == pytest.approx(best_of_all(errors, average), rel=1e-12)
            assert mean(chosen) <= average

    def test_sizes_without_a_common_divisor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The budget is kept where it is counted in coarse units, and little of it is lost."""
        monkeypatch.setattr(allocation, "_MOST_UNITS", 200)
        errors = random_errors(3)
        for average in (2.3, 3.5, 5.75):
            chosen = allocated(errors, SHAPES, PRECISIONS, average)
            assert mean(chosen) <= average
            assert cost(chosen, errors) <= best_of_all(errors, average - 6 * 4 / 200)

    def test_all_that_is_asked_for_is_spent_where_it_helps(self) -> None:
        assert allocated(random_errors(0), SHAPES, (2, 6), 2).precisions == (2,)
        falling = QuantizationErrors(PRECISIONS, {name: np.tile([4.0, 3.0, 2.0, 1.0], (2, 1)) for name in PARTS})
        assert allocated(falling, SHAPES, PRECISIONS, 6).precisions == (6,)

    @pytest.mark.parametrize("average", [1.9, 6.1, math.nan, math.inf, True])
    def test_an_average_out_of_range(self, average: float) -> None:
        with pytest.raises(ValueError, match="must lie between 2 and 6 bits"):
            allocated(random_errors(0), SHAPES, PRECISIONS, average)

    def test_errors_that_are_missing_or_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match="quantize it again with a calibration text, or choose a whole number"):
            allocated(None, SHAPES, PRECISIONS, 3.5)
        with pytest.raises(ValueError, match="v_proj is not among"):
            allocated(random_errors(0, tuple(name for name in PARTS if name != "v_proj")), SHAPES, PRECISIONS, 3.5)
        with pytest.raises(ValueError, match="none of 5 bits, only of 2, 3, 4, 6"):
            allocated(random_errors(0), SHAPES, (2, 5, 6), 3.5)
        with pytest.raises(
            ValueError, match=r"qkv_proj must be finite numbers \[2 layers, 4 precisions\], got \(3, 4\)"
        ):
            allocated(random_errors(0, layers=3), SHAPES, PRECISIONS, 3.5)


@functools.cache
def quantized() -> Model:
    """Readable at 2 to 4 bits."""
    return quantized_tiny_model()


def moments(k: int, seed: int) -> np.ndarray:
    """One for each of 3 layers."""
    x = np.random.default_rng(seed).normal(size=(3, 2 * k, k)).astype(np.float32)
    return np.einsum("ltk,ltm->lkm", x, x)


def layer_of(stack: AnyPrecArray, layer: int) -> AnyPrecArray:
    return jax.tree.map(lambda leaf: leaf[layer], stack)


class TestErrors:
    def test_of_a_model_fused_or_not(self) -> None:
        """tr(E G E') by loops over rows and columns."""
        plain, layers = tiny_model(), quantized().params["layers"]
        guided = {name: moments(layers[name].k, seed) for seed, name in enumerate(LINEARS)}
        joined = dataclasses.replace(quantized(), params=quantized().params | {"layers": fused(layers)})
        apart, together = (quantization_errors(plain, model, guided) for model in (quantized(), joined))
        assert apart.precisions == together.precisions == (2, 3, 4)
        for name in LINEARS:
            np.testing.assert_array_equal(apart.linears[name], together.linears[name])
        for name, layer, column in (("k_proj", 0, 0), ("down_proj", 2, 1)):
            read = dequantize(layer_of(layers[name], layer), precision=(2, 3, 4)[column])
            error = np.asarray(plain.params["layers"][name][layer], np.float64) - np.asarray(read, np.float64)
            expected = sum(row @ guided[name][layer].astype(np.float64) @ row for row in error)
            assert apart.linears[name][layer, column] == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("kind", ["fisher", "diagonal"])
    def test_of_weights_by_themselves(self, kind: Any) -> None:
        weights = np.asarray(tiny_model().params["layers"]["o_proj"][1])
        matrix = layer_of(quantized().params["layers"]["o_proj"], 1)
        rng = np.random.default_rng(0)
        scores = rng.random(weights.shape if kind == "fisher" else weights.shape[1:]).astype(np.float32)
        got = matrix_errors(weights, matrix, scores, kind=kind)
        for w, error in zip((2, 3, 4), got, strict=True):
            read = np.asarray(dequantize(matrix, precision=w), np.float64)
            spread = np.broadcast_to(scores, weights.shape).astype(np.float64)
            assert error == pytest.approx(float(np.sum(spread * (weights - read) ** 2)), rel=1e-5)

    def test_of_experts_are_sums(self) -> None:
        weights = np.asarray(tiny_model().params["layers"]["o_proj"])
        stack, scores = quantized().params["layers"]["o_proj"], moments(48, 0)
        expected = sum(matrix_errors(weights[i], layer_of(stack, i), scores[i], kind="moment") for i in range(3))
        np.testing.assert_allclose(matrix_errors(weights, stack, scores, kind="moment"), expected, rtol=1e-12)


def test_scaled_errors_add_up_to_what_was_measured() -> None:
    errors = random_errors(0)
    for table in errors.linears.values():
        table[1] = 0.0  # a layer without errors
    got = scaled(errors, [7.0, 0.0])
    assert sum(table[0, 0] for table in got.linears.values()) == pytest.approx(7.0, rel=1e-12)
    for name, table in got.linears.items():
        np.testing.assert_allclose(
            table[0] / table[0, 0], errors.linears[name][0] / errors.linears[name][0, 0], rtol=1e-12
        )
        assert not table[1].any()


class TestAllocate:
    def test_a_model_brings_its_errors(self) -> None:
        rng = np.random.default_rng(0)
        table = {name: np.sort(rng.random((3, 3)))[:, ::-1] for name in LINEARS}
        layers = quantized().params["layers"]
        joined = dataclasses.replace(
            quantized(),
            params=quantized().params | {"layers": fused(layers)},
            errors=QuantizationErrors((2, 3, 4), table),
        )
        chosen = allocate(joined, 2.75)
        assert chosen == allocate(joined, 2.75, errors=joined.errors)
        assert chosen.of("qkv_proj") == chosen.of("q_proj") == chosen.of("v_proj")
        weights = {name: layers[name].n * layers[name].k for name in LINEARS}
        bits = sum(weights[name] * sum(chosen.of(name)) for name in LINEARS)
        assert 2.7 < bits / (3 * sum(weights.values())) <= 2.75

    def test_a_model_that_is_not_quantized(self) -> None:
        with pytest.raises(ValueError, match="not quantized"):
            allocate(tiny_model(), 3.5)

    def test_a_model_without_errors(self) -> None:
        with pytest.raises(ValueError, match="comes without"):
            allocate(quantized(), 2.5)
