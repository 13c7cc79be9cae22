"""What a function is made of: every equation of its jaxpr, those inside of loops and calls too."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(parameter):
                yield from equations(getattr(parameter, "jaxpr", parameter))


def primitives(closed: Any) -> set[str]:
    return {equation.primitive.name for equation in equations(closed.jaxpr)}


def largest_intermediate(closed: Any) -> int:
    """Elements of the largest array that an equation makes; those of the equations that only call others are theirs."""
    return max(int(np.prod(out.aval.shape)) for equation in equations(closed.jaxpr) for out in equation.outvars)


def _is_jaxpr(parameter: Any) -> bool:
    return hasattr(parameter, "eqns") or hasattr(parameter, "jaxpr")
