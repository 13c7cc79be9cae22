"""A weight that is asked, in the backward pass, how much the loss minds an error in what enters it.

With x the inputs of a linear [tokens, k], dz the gradients of the loss with respect to its outputs [tokens, n] and
s = mean(dz**2) over the outputs, the guided second moment is G = x.T @ diag(s) @ x: an error E [n, k] in the weight raises the loss
by about trace(E @ G @ E.T) (GuidedQuant, Kim et al., ICML 2025, with one group of outputs). It is a sum over tokens, so it can be
had where a gradient is had: as the "gradient" with respect to an array that takes no part in the product.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Observed(NamedTuple):
    """A weight, and what receives G of its inputs as its gradient: zeros [k, k], or [k] for the diagonal of G alone."""

    weight: Float[Array, "*stack n k"]
    moment: Float[Array, "*stack k k"] | Float[Array, "*stack k"]


@jax.custom_vjp
def observed_product(
    x: Float[Array, "*batch k"], weight: Float[Array, "n k"], moment: Float[Array, "k k"] | Float[Array, " k"]
) -> Float[Array, "*batch n"]:
    """`x @ weight.T`, in float32 throughout; the cotangent of `moment` is G of the module's docstring."""
    del moment
    return jnp.einsum("...k,nk->...n", x, weight, precision="highest", preferred_element_type=jnp.float32)


def _forward(x: Array, weight: Array, moment: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return observed_product(x, weight, moment), (x, weight, moment)


def _backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, weight, moment = saved
    rows, gradients = x.reshape(-1, x.shape[-1]).astype(jnp.float32), gradient.reshape(-1, gradient.shape[-1])
    counts = jnp.mean(jnp.square(gradients), axis=-1)
    guided = jnp.einsum("t,tk->k", counts, jnp.square(rows), precision="highest")
    if moment.ndim == 2:
        guided = jnp.einsum("tk,tl->kl", counts[:, None] * rows, rows, precision="highest")
    to_x = jnp.einsum("...n,nk->...k", gradient, weight, precision="highest").astype(x.dtype)
    to_weight = jnp.einsum("tn,tk->nk", gradients, rows, precision="highest").astype(weight.dtype)
    return to_x, to_weight, guided.astype(moment.dtype)


observed_product.defvjp(_forward, _backward)
