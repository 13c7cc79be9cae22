"""A precision for every linear of every layer, and what is known about which of them need more: static values, as a precision is.

Fractional precisions are made of whole ones: 3.5 bits are an average over the weights of a model, some of whose matrices are read at 3
bits and others at 4 or more, all from the same planes. `allocation` chooses which.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float64

from anyprec_jax.array import Matrix, check_precision
from anyprec_jax.config import MAX_PRECISION
from anyprec_jax.models.fusion import PARTS, linears


@dataclasses.dataclass(frozen=True)
class PrecisionMap:
    """Which precision every linear of every layer is read at. Hashable, so that it is static wherever an int is.

    Attributes:
      linears: linear -> one precision for each layer; the experts of a layer are read alike. Names are those of an artefact or of what is
        fused in memory: `{"q_proj": (3, 4), "k_proj": (3, 4), ...}` or `{"qkv_proj": (3, 4), ...}`. Parts of one fused matrix must have the
        same precision, layer by layer.
    """

    linears: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        if not self.linears:
            raise ValueError("a precision map needs at least one linear")
        for name, precisions in self.linears.items():
            if not precisions or not all(type(w) is int and 1 <= w <= MAX_PRECISION for w in precisions):
                raise ValueError(
                    f"{name}: precisions must be ints from 1 to {MAX_PRECISION}, one a layer, got {precisions!r}"
                )
        if len(lengths := {len(precisions) for precisions in self.linears.values()}) > 1:
            raise ValueError(
                f"every linear needs one precision for each layer, got numbers of layers {sorted(lengths)}"
            )
        ordered = {name: tuple(self.linears[name]) for name in sorted(self.linears)}
        object.__setattr__(self, "linears", MappingProxyType(ordered))

    def __hash__(self) -> int:
        return hash(tuple(self.linears.items()))

    @property
    def precisions(self) -> tuple[int, ...]:
        """Every precision that is among them, ascending."""
        return tuple(sorted({w for precisions in self.linears.values() for w in precisions}))

    def of(self, name: str) -> tuple[int, ...]:
        """The precision of a linear, or of several that are fused, in each layer.

        Raises:
          ValueError: the map has no such linear, or the parts of a fused one differ.
        """
        if name in self.linears:
            return tuple(self.linears[name])
        parts = PARTS.get(name, (name,))
        if missing := [part for part in parts if part not in self.linears]:
            raise ValueError(f"the precision map has no {missing[0]}; it has {', '.join(self.linears)}")
        first, *others = (tuple(self.linears[part]) for part in parts)
        if any(other != first for other in others):
            raise ValueError(
                f"{', '.join(parts)} are one matrix in memory, {name}: they need the same precision in every layer"
            )
        return first


Precision: TypeAlias = int | PrecisionMap


class QuantizationErrors(NamedTuple):
    """What reading each matrix at each precision costs; only ratios count.

    Errors of different matrices are added up, so they must be on one scale: `allocation.quantization_errors` measures such.
    """

    precisions: tuple[int, ...]  # ascending
    linears: Mapping[str, Float64[np.ndarray, "layers precisions"]]  # at least 0; summed over the experts of a layer


def precisions_in(precision: Precision | None) -> tuple[int, ...]:
    """The whole precisions that something is read at, ascending; none for None."""
    if precision is None:
        return ()
    return precision.precisions if isinstance(precision, PrecisionMap) else (precision,)


def precision_of(precision: Precision | None, name: str) -> int | tuple[int, ...] | None:
    """That of one linear: an int for all its layers, or one for each. Raises ValueError as `PrecisionMap.of`."""
    return precision.of(name) if isinstance(precision, PrecisionMap) else precision


def check_map(layers: Mapping[str, Any], precisions: PrecisionMap) -> None:
    """Raises ValueError unless the stacked linears of a model can be read as a map says."""
    matrices = {name: weight for name, weight in linears(layers).items() if isinstance(weight, Matrix)}
    if not matrices:
        raise ValueError("the model is not quantized: its precision should be None, and a precision map was given")
    for name, matrix in matrices.items():
        wanted = precisions.of(name)
        if len(wanted) != matrix.shape[0]:
            raise ValueError(f"{name} has {matrix.shape[0]} layers, and the precision map has {len(wanted)}")
        for layer, precision in enumerate(wanted):
            try:
                check_precision(matrix, precision)
            except ValueError as error:
                raise ValueError(f"{name} of layer {layer}: {error}") from error


def mean_precision(layers: Mapping[str, Any], precision: Precision) -> float:
    """Bits of code per weight that are read, codebooks not counted, over all quantized linears of a model."""
    if not isinstance(precision, PrecisionMap):
        return float(precision)
    matrices = {name: weight for name, weight in linears(layers).items() if isinstance(weight, Matrix)}
    weights = {name: int(np.prod(matrix.shape[1:], dtype=object)) for name, matrix in matrices.items()}
    read = sum(count * sum(precision.of(name)) for name, count in weights.items())
    return read / sum(count * matrices[name].shape[0] for name, count in weights.items())
