"""What all models have in common: layers over blocks, with dropout before and an activation between."""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array, Float, Float32

from ginex_jax.batch import Block, DegreeBlock
from ginex_jax.models.config import ModelConfig


class BlockNetwork(linen.Module):
    """A stack of layers, the l-th over the l-th block of a mini-batch. Frozen; its parameters are apart.

        parameters = model.init(key, batch.blocks, features)
        outputs = model.apply(parameters, batch.blocks, features, node_data, train=True, rngs={"dropout": key})
        hidden = model.apply(parameters, 0, block, features, node_data, method="layer")

    `batch.blocks` and features may be padded: rows of padding are anything finite, in and out, and no other row depends on them.
    """

    config: ModelConfig

    needs_degrees: ClassVar[bool] = False

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    def setup(self) -> None:
        self.layers = [self.new_layer(index) for index in range(self.num_layers)]
        self.input_dropout = linen.Dropout(self.config.input_dropout)
        self.dropout = linen.Dropout(self.config.dropout)

    def new_layer(self, index: int) -> linen.Module:
        """Layer `index`, called with (block, x, node_data)."""
        raise NotImplementedError

    def activation(self, x: Float[Array, "nodes features"]) -> Float[Array, "nodes features"]:
        """Between two layers."""
        return linen.relu(x)

    def __call__(
        self,
        blocks: Sequence[Block | DegreeBlock],
        x: Float[Array | np.ndarray, "sources inputs"],
        node_data: Float32[Array | np.ndarray, " sources"] | None = None,
        *,
        train: bool = False,
    ) -> Float32[Array, "destinations outputs"]:
        """All layers.

        Args:
          blocks: of a mini-batch, one a layer.
          x: features of the sources of the first.
          node_data: of the same nodes, their in-degrees in the whole graph, if `needs_degrees`; else None.
          train: drop features, with the key `rngs={"dropout": key}` of `apply`.

        Raises:
          ValueError: there are more or fewer blocks than layers, or `node_data` is missing.
        """
        if len(blocks) != self.num_layers:
            raise ValueError(f"a model of {self.num_layers} layers takes as many blocks, got {len(blocks)}")
        for index, block in enumerate(blocks):
            x = self.layer(index, block, x, node_data, train=train)
            node_data = None if node_data is None else node_data[: block.num_destinations]
        return jnp.asarray(x)

    def layer(
        self,
        index: int,
        block: Block | DegreeBlock,
        x: Float[Array | np.ndarray, "sources inputs"],
        node_data: Float32[Array | np.ndarray, " sources"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "destinations outputs"]:
        """Layer `index` alone, its activation included: of the type of the arithmetic, float32 for the last one."""
        if self.needs_degrees and node_data is None:
            raise ValueError(f"{type(self).__name__} needs the in-degrees of the sources of a block as node_data")
        drop = self.dropout if index else self.input_dropout
        h = drop(jnp.asarray(x).astype(self.config.dtype), deterministic=not train)
        h = self.layers[index](block, h, node_data)  # pyright: ignore[reportCallIssue]
        return h.astype(jnp.float32) if index == self.num_layers - 1 else self.activation(h)

    def width(self, index: int) -> int:
        """Features that layer `index` gives."""
        return self.config.num_outputs if index == self.num_layers - 1 else self.config.hidden
