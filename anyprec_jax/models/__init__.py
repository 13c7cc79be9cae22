"""Language models as pure functions of weights, tokens and settings."""

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.decoder import LINEARS, KVCache, forward, init_cache
from anyprec_jax.models.model import Model
from anyprec_jax.models.precision_map import Precision, PrecisionMap

__all__ = ["LINEARS", "KVCache", "Model", "ModelConfig", "Precision", "PrecisionMap", "forward", "init_cache"]
