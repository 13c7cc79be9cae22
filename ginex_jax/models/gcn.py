"""Graph convolutional networks (Kipf and Welling, ICLR 2017) over sampled and whole neighbourhoods."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax
from jaxtyping import Array, Float, Float32

from ginex_jax.batch import Block, DegreeBlock
from ginex_jax.models.network import BlockNetwork
from ginex_jax.sampling.aggregation import aggregate_sum, num_neighbors


class GCN(BlockNetwork):
    """Every layer: `D^-1/2 (A + I) D^-1/2 X W + b`, and ReLU after all but the last.

    A[v, u] counts the edges from u to v, weights aside, and D is one more than the in-degree in the whole graph, which `node_data` gives:
    the degrees of a sampled block would be another matrix. An edge from a node to itself counts beside the self loop.
    """

    needs_degrees: ClassVar[bool] = True

    def new_layer(self, index: int) -> linen.Module:
        return GCNLayer(self.width(index), jnp.dtype(self.config.dtype))


class GCNLayer(linen.Module):
    """One layer, without activation."""

    num_outputs: int
    dtype: Any

    @linen.compact
    def __call__(
        self,
        block: Block | DegreeBlock,
        x: Float[Array, "sources inputs"],
        node_data: Float32[Array | np.ndarray, " sources"],
    ) -> Float[Array, "destinations outputs"]:
        return linen.Dense(self.num_outputs, dtype=self.dtype, name="dense")(aggregate_gcn(block, x, node_data))


def aggregate_gcn(
    block: Block | DegreeBlock,
    x: Float[Array | np.ndarray, "sources features"],
    degrees: Float32[Array | np.ndarray, " sources"],
) -> Float[Array, "destinations features"]:
    """The rows of `D^-1/2 (A + I) D^-1/2 X` of the destinations.

    Where neighbours were drawn, the sum over them is scaled by degree / drawn, so that with uniform drawing its expectation is the sum
    over all of them.

    Args:
      degrees: in-degrees in the whole graph, of all sources.
    """
    x, degrees = jnp.asarray(x), jnp.asarray(degrees)
    factors = lax.rsqrt(degrees + 1)
    own_degrees, own_factors = degrees[: block.num_destinations], factors[: block.num_destinations]
    total = aggregate_sum(block, x * factors[:, None].astype(x.dtype))
    scale = own_degrees / jnp.maximum(num_neighbors(block), 1) * own_factors
    own = x[: block.num_destinations] * (own_factors**2)[:, None].astype(x.dtype)
    return total * scale[:, None].astype(x.dtype) + own
