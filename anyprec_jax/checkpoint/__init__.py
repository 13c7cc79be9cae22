"""Models on disk: file <-> pytree, atomically."""

from anyprec_jax.checkpoint.formats import export as export
from anyprec_jax.checkpoint.formats import load as load
from anyprec_jax.checkpoint.formats import save as save
from anyprec_jax.checkpoint.fractional import precision_for as precision_for
