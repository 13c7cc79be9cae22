"""Every family there is."""

from collections.abc import Mapping
from types import MappingProxyType

from anyprec_jax.models.families import dense, layer_normed, mixtures
from anyprec_jax.models.families.family import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(  # by `ModelConfig.family`
    {
        "llama": dense.LLAMA,
        "smollm3": dense.SMOLLM3,
        "mistral": dense.MISTRAL,
        "qwen2": dense.QWEN2,
        "qwen3": dense.QWEN3,
        "gemma2": dense.GEMMA2,
        "gemma3": dense.GEMMA3,
        "phi3": dense.PHI3,
        "olmo2": dense.OLMO2,
        "stablelm": layer_normed.STABLELM,
        "gpt2": layer_normed.GPT2,
        "opt": layer_normed.OPT,
        "gpt_neox": layer_normed.GPT_NEOX,
        "mixtral": mixtures.MIXTRAL,
        "qwen3_moe": mixtures.QWEN3_MOE,
        "olmoe": mixtures.OLMOE,
    }
)
