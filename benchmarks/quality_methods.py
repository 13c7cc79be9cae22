"""Ways to quantize a matrix for all precisions at once: this package's, and the authors'."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from anyprec_jax import AnyPrecArray, Model, QuantizeConfig, quantize, quantize_jointly
from anyprec_jax.models import LINEARS
from anyprec_jax.sensitivity import Sensitivity
from benchmarks.upstream import quantize_upstream

CONFIG = QuantizeConfig(seed_precision=3, parent_precision=8)


class Linear(NamedTuple):
    """One matrix, and what is known about errors in it."""

    weights: np.ndarray  # float32 [n, k]
    fisher: np.ndarray  # float32 [n, k]
    moment: np.ndarray  # float32 [k, k], guided
    sample: int  # of the calibration windows


Method: TypeAlias = Callable[[Linear], AnyPrecArray]


def authors(linear: Linear) -> AnyPrecArray:
    """Their algorithm, with the number of the sample for its random seed."""
    array, failed = quantize_upstream(linear.weights, linear.fisher, CONFIG, seed=linear.sample)
    if failed:
        print(f"their library fails on {len(failed)} rows")
    return array


def fast(linear: Linear) -> AnyPrecArray:
    """Optimal seed and exact splits, weighted by the Fisher information."""
    return quantize(linear.weights, linear.fisher, CONFIG)


def fast_by_column(linear: Linear) -> AnyPrecArray:
    """The same, weighted by the moment's diagonal: one number for a column."""
    return quantize(linear.weights, np.broadcast_to(np.diag(linear.moment), linear.weights.shape), CONFIG)


def best(linear: Linear) -> AnyPrecArray:
    """Codes and codebooks of all precisions, jointly."""
    return quantize_jointly(linear.weights, linear.moment, CONFIG)


def alone(precision: int) -> Method:
    """The optimal clustering at one precision by itself, which no other can be read from, weighted by the Fisher information."""
    config = QuantizeConfig(seed_precision=precision, parent_precision=precision)
    return lambda linear: quantize(linear.weights, linear.fisher, config)


def quantized(model: Model, method: Method, measured: Mapping[str, Sensitivity], *, sample: int) -> Model:
    """The model with every linear quantized by `method`; `measured` has the kinds "fisher" and "moment"."""
    layers = dict(model.params["layers"])
    for name in LINEARS:
        arrays = [
            method(Linear(np.asarray(weights, np.float32), fisher, moment, sample))
            for weights, fisher, moment in zip(
                layers[name], measured["fisher"][name], measured["moment"][name], strict=True
            )
        ]
        layers[name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)
    return Model(config=model.config, params=model.params | {"layers": layers}, tokenizer=model.tokenizer)
