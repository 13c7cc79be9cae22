"""GraphSAGE (Hamilton, Ying, Leskovec, NeurIPS 2017)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array, Float, Float32

from ginex_jax.batch import Block, DegreeBlock
from ginex_jax.models.network import BlockNetwork
from ginex_jax.sampling.aggregation import aggregate_max, aggregate_mean


class GraphSAGE(BlockNetwork):
    """Every layer: `W_self x[v] + W_neighbor aggregate(x of v's neighbours) + b`, and ReLU after all but the last.

    With the mean as aggregator this is the model of Ginex's evaluation. With the maximum, neighbours pass through
    `ReLU(W_pool x + b_pool)` first, as wide as their input (the paper's equation 3). Rows are not normalized.
    """

    def new_layer(self, index: int) -> linen.Module:
        return SageLayer(self.width(index), self.config.aggregator, jnp.dtype(self.config.dtype))


class SageLayer(linen.Module):
    """One layer, without activation."""

    num_outputs: int
    aggregator: str
    dtype: Any

    @linen.compact
    def __call__(
        self,
        block: Block | DegreeBlock,
        x: Float[Array, "sources inputs"],
        node_data: Float32[Array | np.ndarray, " sources"] | None,
    ) -> Float[Array, "destinations outputs"]:
        if self.aggregator == "max":
            pooled = linen.relu(linen.Dense(x.shape[1], dtype=self.dtype, name="pool")(x))
            neighbors = aggregate_max(block, pooled)
        else:
            neighbors = aggregate_mean(block, x)
        own = linen.Dense(self.num_outputs, use_bias=False, dtype=self.dtype, name="own")(x[: block.num_destinations])
        return own + linen.Dense(self.num_outputs, dtype=self.dtype, name="neighbors")(neighbors)
