"""Compact codebooks of a model, decoded once for as many products as there will be."""

from collections.abc import Collection, Mapping
from typing import Any

from anyprec_jax.array import Matrix, expand
from anyprec_jax.models.fusion import linears


def expanded(layers: Mapping[str, Any], precisions: Collection[int]) -> dict[str, Any]:
    """The layers with float16 codebooks at `precisions` in place of compact ones; all else is what it was, and nothing is copied.

    Args:
      layers: one level of the tree that `decoder` describes.
      precisions: what will be read; none for a model that is not quantized.

    Raises:
      ValueError: a linear that cannot be read at one of them.
    """
    return dict(layers) | {
        name: expand(weight, precisions) for name, weight in linears(layers).items() if isinstance(weight, Matrix)
    }
