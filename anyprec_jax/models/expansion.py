"""Compact codebooks of a model, decoded once for as many products as there will be."""

from collections.abc import Mapping
from typing import Any

from anyprec_jax.array import Matrix, expand
from anyprec_jax.models.fusion import linears
from anyprec_jax.models.precision_map import Precision, precisions_in


def expanded(layers: Mapping[str, Any], precision: Precision | None) -> dict[str, Any]:
    """The layers with a float16 codebook at `precision` in place of compact ones; all else is what it was, and nothing is copied.

    Args:
      layers: one level of the tree that `decoder` describes.
      precision: what will be read; None for a model that is not quantized.

    Raises:
      ValueError: a linear that cannot be read at it.
    """
    precisions = precisions_in(precision)
    return dict(layers) | {
        name: expand(weight, precisions) for name, weight in linears(layers).items() if isinstance(weight, Matrix)
    }
