"""A model's first parameters. They depend on no graph: layers see one node and its one neighbour, itself."""

from typing import Any

import jax
import numpy as np

from ginex_jax.batch import Block
from ginex_jax.models.config import ModelConfig
from ginex_jax.models.construction import build_model
from ginex_jax.models.network import BlockNetwork


def initial_parameters(model: BlockNetwork, num_features: int, key: jax.Array) -> Any:
    """What `model.init` gives for features of this width."""
    block = Block(neighbors=np.zeros((1, 1), np.int32), mask=np.ones((1, 1), np.bool_))
    node_data = np.ones(1, np.float32) if model.needs_degrees else None
    return model.init(key, (block,) * model.num_layers, np.zeros((1, num_features), np.float32), node_data)


def parameter_shapes(config: ModelConfig, num_features: int) -> Any:
    """The parameters as `jax.ShapeDtypeStruct`, without making them."""
    return jax.eval_shape(lambda key: initial_parameters(build_model(config), num_features, key), jax.random.key(0))
