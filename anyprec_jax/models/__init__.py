"""Language models as pure functions of weights, tokens and settings."""

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import LINEARS, KVCache, forward, init_cache
from anyprec_jax.models.model import Model

__all__ = ["LINEARS", "KVCache", "Model", "ModelConfig", "forward", "init_cache"]
