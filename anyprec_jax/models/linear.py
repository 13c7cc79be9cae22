"""The product of a layer's input with one of its weights, whatever a weight can be."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from anyprec_jax.array import Matrix
from anyprec_jax.models import split
from anyprec_jax.models.observed import Observed, observed_product
from anyprec_jax.models.precision_map import Precision, precision_of
from anyprec_jax.ops import matmul


class StackedMatrix(NamedTuple):
    """One layer's matrix, left in the stack it is part of: slicing it out would copy every plane."""

    stack: Matrix
    layer: Int[Array, ""]


def linear(
    x: Float[Array, "*batch k"],
    weight: Any,
    bias: Float[Array, " n"] | None,
    precision: int | tuple[int, ...] | None,
) -> Float[Array, "*batch n"]:
    """`x @ weight.T + bias`, in the dtype of `x`: the one place that knows what a weight can be.

    Args:
      x: inputs.
      weight: `[n, k]`: an array, an `AnyPrecArray`, a `StackedMatrix` or an `Observed` array.
      bias: or None.
      precision: bits at which to read an `AnyPrecArray`; of a `StackedMatrix`, one for each layer if they differ, which the experts of
        a layer share.
    """
    if isinstance(weight, Matrix | StackedMatrix):
        if precision is None:
            raise ValueError("an any-precision weight is read at a precision, and none was given")
        array, index = weight if isinstance(weight, StackedMatrix) else (weight, None)
        if isinstance(precision, tuple):  # the stack of all experts of all layers is longer
            precision = tuple(w for w in precision for _ in range(array.shape[0] // len(precision)))
        product = matmul(x, array, precision=precision, layer=index)
    elif isinstance(weight, Observed):
        product = observed_product(x, weight.weight.astype(x.dtype), weight.moment).astype(x.dtype)
    else:
        product = dense_product(x, jnp.asarray(weight).astype(x.dtype)).astype(x.dtype)
    return _biased(product, bias)


def dense_product(x: Float[Array, "*batch k"], weight: Float[Array, "n k"]) -> Float32[Array, "*batch n"]:
    """`x @ weight.T` in float32, whatever the inputs are: float32 is not to become TF32 or bfloat16 on the way."""
    return jnp.einsum("...k,nk->...n", x, weight, precision="highest", preferred_element_type=jnp.float32)


def project(layer: Mapping[str, Any], name: str, x: Array, precision: Precision | None) -> Array:
    """`x` through the linear of that name, or on a device that has a share of it, what `split` says."""
    weight = layer[name]
    wanted = precision_of(precision, name) if isinstance(weight, Matrix | StackedMatrix) else None
    with jax.named_scope(name):
        product = linear(split.taken(layer, name, x), weight, None, wanted)
        return split.gathered(layer, name, _biased(split.summed(layer, name, product), layer.get(f"{name}_bias")))


def _biased(product: Array, bias: Array | None) -> Array:
    return product if bias is None else product + bias.astype(product.dtype).reshape((1,) * (product.ndim - 1) + (-1,))
