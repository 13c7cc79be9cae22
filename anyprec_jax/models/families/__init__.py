"""The families of models: what each calls its tensors and settings on disk, and the shapes that follow from them.

There is one decoder, and a family is a table (`Family`): see "Adding a model family" in CONTRIBUTING.md.
"""

from anyprec_jax.models.families.family import LAYERS, Family, Layout
from anyprec_jax.models.families.registry import FAMILIES
from anyprec_jax.models.families.settings import config_from_huggingface, config_to_huggingface
from anyprec_jax.models.families.shapes import parameter_shapes, tensors
from anyprec_jax.models.families.stored import StoredTensor, packed, stored_tensors, tensor_name, unpacked

__all__ = [
    "FAMILIES",
    "LAYERS",
    "Family",
    "Layout",
    "StoredTensor",
    "config_from_huggingface",
    "config_to_huggingface",
    "packed",
    "parameter_shapes",
    "stored_tensors",
    "tensor_name",
    "tensors",
    "unpacked",
]
