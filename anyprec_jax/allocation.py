"""Fractional precisions: which matrix of a model is read at how many bits, so that an average is kept and the model suffers least.

Reading a matrix at w bits leaves an error E in its weights, which raises the model's loss by about trace(E @ G @ E.T), G the guided second
moment of its inputs (`sensitivity`), or by the sum of F * E**2, F the Fisher information. These costs are on one scale for all matrices,
and what a choice costs is taken for their sum (HAWQ-V2, Dong et al., NeurIPS 2020, has traces of the Hessian in their place). A choice of
one precision for each matrix under a budget of bits is a multiple-choice knapsack; the budget is a few thousand rows of a matrix, so
dynamic programming finds the optimum in milliseconds.

The average is that of the precisions, every weight counted once: planes, not codebooks, whose share depends on the rows' length. All
experts of a layer are read alike, and so are linears that are fused in memory.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float64

from anyprec_jax.array import AnyPrecArray, Matrix
from anyprec_jax.layout import natural
from anyprec_jax.models.fusion import PARTS, linears, unfused
from anyprec_jax.models.model import Model
from anyprec_jax.models.precision_map import PrecisionMap, QuantizationErrors
from anyprec_jax.ops import codes
from anyprec_jax.sensitivity import Kind, Sensitivity

_MOST_UNITS = 1 << 18  # of the budget; 6 * 300 matrices then take a second and 80 MB


def allocate(model: Model, average_bits: float | int, *, errors: QuantizationErrors | None = None) -> PrecisionMap:
    """The precision map with the least sum of errors whose precisions average `average_bits` or less over the weights.

    Args:
      model: quantized.
      average_bits: from the fewest to the most bits that it can be read at; a whole number is an average, too.
      errors: of all its linears at all its precisions; on any one scale, so that losses that were measured will do. None takes those
        that the artefact holds.

    Raises:
      ValueError: not quantized, an average out of range, no errors, or errors that do not fit the model.
    """
    if errors is None:
        errors = model.errors
    stacks = {name: leaf for name, leaf in linears(model.params["layers"]).items() if isinstance(leaf, Matrix)}
    if not stacks:
        raise ValueError("the model is not quantized: there are no precisions to choose among")
    precisions = sorted(set.intersection(*(set(stack.precisions) for stack in stacks.values())))
    return allocated(errors, {name: stack.shape for name, stack in stacks.items()}, precisions, average_bits)


def allocated(
    errors: QuantizationErrors | None,
    shapes: Mapping[str, tuple[int, ...]],
    precisions: Sequence[int],
    average_bits: float | int,
) -> PrecisionMap:
    """`allocate` for a model of which only shapes are known.

    Args:
      errors: of the linears, or the parts of those that are fused.
      shapes: of each stack that is read at one precision in each layer, [layers, n, k] or [layers, experts, n, k].
      precisions: to choose among, ascending.
      average_bits: see `allocate`.

    Raises:
      ValueError: as `allocate`.

    Time: as many steps as matrices times precisions times the budget in units of the greatest common divisor of the matrices' sizes; beyond
    2**18 units sizes are rounded up, and the choice is the best of one that may have some hundredths of a percent less to spend.
    """
    lowest, highest = precisions[0], precisions[-1]
    if isinstance(average_bits, bool) or not lowest <= average_bits <= highest:  # so for NaN
        raise ValueError(f"an average precision must lie between {lowest} and {highest} bits, got {average_bits}")
    if errors is None:
        raise ValueError(
            "fractional precisions need the errors of every precision, and this model comes without: quantize it again with a calibration "
            "text, or choose a whole number of bits"
        )
    tables = [_table(errors, name, shape[0], precisions) for name, shape in shapes.items()]
    sizes = [math.prod(shape[1:]) for shape in shapes.values() for _ in range(shape[0])]
    chosen = _least_sum(np.concatenate(tables), sizes, precisions, average_bits)
    stops = np.cumsum([shape[0] for shape in shapes.values()]).tolist()
    by_stack = {name: chosen[stop - shape[0] : stop] for (name, shape), stop in zip(shapes.items(), stops, strict=True)}
    return PrecisionMap({part: layers for name, layers in by_stack.items() for part in PARTS.get(name, (name,))})


def _table(
    errors: QuantizationErrors, name: str, layers: int, precisions: Sequence[int]
) -> Float64[np.ndarray, "layers precisions"]:
    """The errors of one stack: its own, or the sum of its parts'."""
    parts = (name,) if name in errors.linears else PARTS.get(name, (name,))
    if missing := [part for part in parts if part not in errors.linears]:
        raise ValueError(f"errors: {missing[0]} is not among {', '.join(errors.linears)}")
    if unknown := [w for w in precisions if w not in errors.precisions]:
        raise ValueError(
            f"errors: there are none of {unknown[0]} bits, only of {', '.join(map(str, errors.precisions))}"
        )
    total = np.sum([np.asarray(errors.linears[part], np.float64) for part in parts], axis=0)
    if total.shape != (layers, len(errors.precisions)) or not np.isfinite(total).all():
        raise ValueError(
            f"errors of {name} must be finite numbers [{layers} layers, {len(errors.precisions)} precisions], got {total.shape}"
        )
    return total[:, [errors.precisions.index(w) for w in precisions]]


def _least_sum(
    errors: Float64[np.ndarray, "matrices precisions"],
    sizes: Sequence[int],
    precisions: Sequence[int],
    average_bits: float | int,
) -> list[int]:
    """One precision for each matrix: the least sum of errors with `sum(size * precision) <= average_bits * sum(size)`."""
    if average_bits == precisions[-1]:
        return [precisions[j] for j in np.argmin(errors, axis=1)]
    # Weights times bits above the fewest; what a sum of floats lacks of a whole number is no less to spend.
    spare = math.floor((average_bits - precisions[0]) * sum(sizes) + 1e-6)
    unit = max(math.gcd(*sizes), -(-spare // _MOST_UNITS))
    costs = [[-(-size * (w - precisions[0]) // unit) for w in precisions] for size in sizes]
    return [precisions[j] for j in _knapsack(errors, costs, spare // unit)]


def _knapsack(
    errors: Float64[np.ndarray, "matrices precisions"], costs: Sequence[Sequence[int]], budget: int
) -> list[int]:
    """Which column to take of each row: the least sum of errors whose costs fit the budget; the first column costs nothing."""
    least = np.zeros(budget + 1)  # by what may be spent on the matrices so far
    choices = np.zeros((len(errors), budget + 1), np.uint8)
    for row, choice, row_costs in zip(errors, choices, costs, strict=True):
        before, least = least, least + row[0]
        for column, cost in enumerate(row_costs[1:], start=1):
            if cost > budget:
                break
            other = before[: budget + 1 - cost] + row[column]
            is_better = other < least[cost:]
            least[cost:][is_better] = other[is_better]
            choice[cost:][is_better] = column
    chosen = []
    for choice, row_costs in zip(reversed(choices), reversed(costs), strict=True):
        chosen.append(int(choice[budget]))
        budget -= row_costs[chosen[-1]]
    return chosen[::-1]


def quantization_errors(
    model: Model, quantized: Model, sensitivity: Sensitivity, *, kind: Kind = "moment"
) -> QuantizationErrors:
    """The cost of every precision of every linear, as the module has it.

    Args:
      model: with the weights that were quantized.
      quantized: the same model, quantized; fused or not.
      sensitivity: of every linear, as `sensitivity` sums it up.
      kind: of that: "moment", "diagonal" or "fisher".

    Time: 2 * n * k**2 operations for each matrix and precision with moments, n * k with the other kinds.
    """
    plain, layers = (_on_host(each) for each in (model, quantized))
    matrices = {name: leaf for name, leaf in linears(layers).items() if isinstance(leaf, AnyPrecArray)}
    precisions = sorted(set.intersection(*(set(matrix.precisions) for matrix in matrices.values())))
    table: dict[str, Float64[np.ndarray, "layers precisions"]] = {}
    for name, stack in matrices.items():
        rows = []
        for layer, (weights, scores) in enumerate(zip(plain[name], sensitivity[name], strict=True)):
            one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stack)
            rows.append(matrix_errors(weights, one, scores, kind=kind))
        table[name] = np.stack(rows)[:, [stack.precisions.index(w) for w in precisions]]
    return QuantizationErrors(tuple(precisions), table)


def scaled(
    errors: QuantizationErrors, divergences: Float[np.ndarray, " layers"] | Sequence[float]
) -> QuantizationErrors:
    """The errors of each layer times what makes those of the fewest bits add up to what was measured (`layer_divergence`).

    A layer whose errors are 0 keeps them.
    """
    coarsest = np.sum([table[:, 0] for table in errors.linears.values()], axis=0)
    factors = np.asarray(divergences, np.float64) / np.where(coarsest > 0, coarsest, 1.0)
    tables = {name: table * factors[:, None] for name, table in errors.linears.items()}
    return QuantizationErrors(errors.precisions, tables)


def matrix_errors(
    weights: Float[np.ndarray, "*experts n k"],
    matrix: AnyPrecArray,
    sensitivity: Float[np.ndarray, "*experts _ k"] | Float[np.ndarray, "*experts k"],
    *,
    kind: Kind,
) -> Float64[np.ndarray, " precisions"]:
    """The cost of every precision of one matrix, or their sums over the experts of a layer; ascending by precision."""
    if weights.ndim == 3:
        experts = [jax.tree.map(lambda leaf, index=index: leaf[index], matrix) for index in range(len(weights))]
        costs = [matrix_errors(*each, kind=kind) for each in zip(weights, experts, sensitivity, strict=True)]
        return np.sum(costs, axis=0)
    parent = matrix.parent_precision
    finest = np.asarray(codes(matrix, precision=parent)).astype(np.intp)
    costs = []
    for w in matrix.precisions:
        read = np.take_along_axis(np.asarray(matrix.codebooks[w], np.float32), finest >> (parent - w), axis=1)
        costs.append(_cost(np.asarray(weights, np.float32) - read, np.asarray(sensitivity), kind))
    return np.array(costs)


def _cost(error: Float[np.ndarray, "n k"], sensitivity: Float[np.ndarray, "..."], kind: Kind) -> float:
    weighed = (error @ sensitivity) * error if kind == "moment" else sensitivity * error**2
    return max(0.0, float(np.sum(weighed, dtype=np.float64)))  # rounding may leave a moment's less than nothing


def _on_host(model: Model) -> dict[str, Any]:
    layers = unfused(
        jax.tree.map(np.asarray, dict(model.params["layers"]))
    )  # the parts of what is fused are then views
    return {name: natural(leaf) if isinstance(leaf, Matrix) else leaf for name, leaf in layers.items()}
