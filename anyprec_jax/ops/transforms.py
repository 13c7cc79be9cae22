"""What a custom call lacks: `jax.vmap` and `jax.grad`.

An operation is what every implementation of the product looks like from the inside, one matrix of a stack read at one precision:

    (x [m, k], planes [layers, parent, ...], codebook of the precision [layers, n, entries], layer []) -> [m, n]

The number of entries tells the precision, x tells k. Planes are natural, `[layers, parent, n, words]`, or prepared.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

Operation: TypeAlias = Callable[[Array, Array, Array, Array], Array]


def precision_of(codebook: Array) -> int:
    """The precision that a codebook is for: log2 of its entries."""
    return codebook.shape[-1].bit_length() - 1


def with_vmap(forward: Operation) -> Operation:
    """Adds batching: more rows of x, or a loop over a longer stack of matrices."""

    @jax.custom_batching.custom_vmap
    def operation(x: Array, planes: Array, codebook: Array, layer: Array) -> Array:
        return forward(x, planes, codebook, layer)

    @operation.def_vmap
    def rule(axis_size, in_batched, x, planes, codebook, layer):
        def batch(operand: Array, is_batched: bool) -> Array:
            return operand if is_batched else jnp.broadcast_to(operand, (axis_size, *operand.shape))

        x_batched, planes_batched, codebook_batched, layer_batched = in_batched
        if not (planes_batched or codebook_batched or layer_batched):
            product = operation(jax.lax.collapse(x, 0, 2), planes, codebook, layer)
            return product.reshape(*x.shape[:2], codebook.shape[1]), True
        layers = batch(layer, layer_batched)
        if planes_batched or codebook_batched:  # a batch of stacks is one longer stack, and not copied
            planes, codebook = batch(planes, planes_batched), batch(codebook, codebook_batched)
            layers = layers + planes.shape[1] * jnp.arange(axis_size, dtype=layers.dtype)
            planes, codebook = jax.lax.collapse(planes, 0, 2), jax.lax.collapse(codebook, 0, 2)

        def one(x_and_layer: tuple[Array, Array]) -> Array:
            x, layer = x_and_layer
            return operation(x, planes, codebook, layer)

        return jax.lax.map(one, (batch(x, x_batched), layers)), True

    return operation


def with_gradient(forward: Operation, differentiable: Operation) -> Operation:
    """Adds reverse-mode derivatives with respect to x and the codebook: those of `differentiable`, which computes the same."""

    @jax.custom_vjp
    def operation(x: Array, planes: Array, codebook: Array, layer: Array) -> Array:
        return forward(x, planes, codebook, layer)

    def backward(operands, cotangent):
        x, planes, codebook, layer = map(jnp.asarray, operands)  # a constant layer comes back as a NumPy scalar
        _, pullback = jax.vjp(lambda x, codebook: differentiable(x, planes, codebook, layer), x, codebook)
        x_cotangent, codebook_cotangent = pullback(cotangent)
        return x_cotangent, None, codebook_cotangent, None

    operation.defvjp(lambda *operands: (forward(*operands), operands), backward)
    return operation
