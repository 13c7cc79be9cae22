"""Graph attention networks (Velickovic et al., ICLR 2018)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array, Float, Float32

from ginex_jax.batch import Block, DegreeBlock
from ginex_jax.models.network import BlockNetwork
from ginex_jax.sampling.attention import aggregate_attention


class GAT(BlockNetwork):
    """Every layer attends to the neighbours of a node and to the node itself; ELU after all but the last.

    Heads are concatenated to `hidden` features, and in the last layer averaged. A node attends to the neighbours that were drawn, without
    correction: attention is no sum over edges, and drawing is not unbiased for it.
    """

    def new_layer(self, index: int) -> linen.Module:
        config, is_last = self.config, index == self.num_layers - 1
        features = config.num_outputs if is_last else config.hidden // config.num_heads
        return GATLayer(features, config.num_heads, not is_last, jnp.dtype(config.dtype))

    def activation(self, x: Float[Array, "nodes features"]) -> Float[Array, "nodes features"]:
        return linen.elu(x)


class GATLayer(linen.Module):
    """One layer, without activation. `num_features` are those of a head."""

    num_features: int
    num_heads: int
    concatenate: bool
    dtype: Any

    @linen.compact
    def __call__(
        self,
        block: Block | DegreeBlock,
        x: Float[Array, "sources inputs"],
        node_data: Float32[Array | np.ndarray, " sources"] | None,
    ) -> Float[Array, "destinations outputs"]:
        shape = self.num_heads, self.num_features
        glorot = linen.initializers.glorot_uniform(in_axis=-1, out_axis=-2)
        values = linen.DenseGeneral(shape, use_bias=False, dtype=self.dtype, name="dense")(x)
        of_source = self.param("source_attention", glorot, shape)
        of_destination = self.param("destination_attention", glorot, shape)
        wide = values.astype(jnp.float32)
        result = aggregate_attention(
            block,
            values,
            jnp.sum(wide * of_source[None], axis=-1),
            jnp.sum(wide[: block.num_destinations] * of_destination[None], axis=-1),
        )
        result = result.reshape(len(result), -1) if self.concatenate else jnp.mean(result, axis=1)
        bias = self.param("bias", linen.initializers.zeros_init(), (result.shape[1],))
        return result + bias[None].astype(result.dtype)
