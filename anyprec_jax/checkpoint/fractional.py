"""So many bits on average, of a model on disk."""

from pathlib import Path

from anyprec_jax.allocation import allocated
from anyprec_jax.checkpoint.assembly import fused_groups
from anyprec_jax.checkpoint.formats import open_source
from anyprec_jax.models.families import LAYERS, parameter_shapes
from anyprec_jax.models.precision_map import Precision


def precision_for(path: str | Path, bits: float | int) -> Precision:
    """What to read a model on disk at for so many bits of code per weight: a precision for all, or the map that suffers least.

    Args:
      path: a model that `load` reads.
      bits: a whole number is that precision for all of it; any other an average, see `allocation`.

    Raises:
      FileNotFoundError, ValueError: as `load`; an average out of range, or of a model whose files do not say what its precisions cost.
    """
    if float(bits).is_integer():
        return int(bits)
    source = open_source(path)
    if not source.is_quantized:
        raise ValueError(f"{path} is not an any-precision model, so it has no precisions to choose from")
    shapes = parameter_shapes(source.config)
    stacks = {}
    for name, parts in fused_groups(source.matrices).items():
        if not source.matrices[parts[0]].is_affine:
            *lead, _, k = shapes[parts[0]]
            stacks[name.removeprefix(LAYERS)] = (*lead, sum(shapes[part][-2] for part in parts), k)
    try:
        return allocated(source.errors, stacks, source.precisions, bits)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
