"""From a configuration to a model."""

from collections.abc import Mapping

from ginex_jax.models.config import ModelConfig
from ginex_jax.models.gat import GAT
from ginex_jax.models.gcn import GCN
from ginex_jax.models.network import BlockNetwork
from ginex_jax.models.sage import GraphSAGE

_MODELS: Mapping[str, type[BlockNetwork]] = {"sage": GraphSAGE, "gcn": GCN, "gat": GAT}


def build_model(config: ModelConfig) -> BlockNetwork:
    """The model that the configuration names. Its parameters come from `init`."""
    return _MODELS[config.kind](config)
