"""What the quality benchmarks measure on calibration windows: by the loss's gradients, and of the inputs alone."""

import functools
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from anyprec_jax import Model, sensitivity
from anyprec_jax.models import LINEARS, decoder, mlp
from anyprec_jax.models.linear import project
from anyprec_jax.sensitivity import Sensitivity

# Linear -> the first of those that read the same inputs, which have one plain moment.
READS_WITH = {
    name: {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(name, name) for name in LINEARS
}
_FIRSTS = tuple(dict.fromkeys(READS_WITH.values()))


def measured_by_loss(model: Model, windows: np.ndarray) -> dict[str, Sensitivity]:
    """Fisher information and guided moments, by kind, of one backward pass over the windows."""
    kinds: tuple[sensitivity.Kind, ...] = ("fisher", "moment")
    totals = {kind: sensitivity.zeros(model.params, kind) for kind in kinds}
    accumulate = sensitivity.sequence_accumulator(model.params, model.config, kinds)
    started = time.perf_counter()
    for window in windows:
        accumulate(jnp.asarray(window), *totals.values())
    print(f"{len(windows)} windows measured in {time.perf_counter() - started:.0f} s", flush=True)
    return totals


def input_moments(model: Model, windows: np.ndarray) -> Sensitivity:
    """The plain second moment of every linear's inputs, mean over tokens of x x', float32 [layers, k, k]: of a forward pass.

    What GPTQ takes for its Hessian, but for a factor; its diagonal is llama.cpp's importance matrix. Of linears that read the same
    inputs only the first is there (`READS_WITH`). Dense decoders only: experts have no one input.
    """
    layers = decoder.with_kinds(model.params["layers"], model.config)
    top = {name: leaf for name, leaf in model.params.items() if name != "layers"}
    totals = {name: np.zeros((model.config.num_layers, *[layers[name].shape[-1]] * 2), np.float32) for name in _FIRSTS}
    for window in windows:
        hidden = decoder.embed(top, jnp.asarray(window)[None], model.config)
        for index in range(model.config.num_layers):
            hidden, moments = _layer_and_moments(layers, jnp.int32(index), hidden, config=model.config)
            for name, moment in moments.items():
                totals[name][index] += np.asarray(moment)
    for total in totals.values():
        total /= windows.size
    return totals


@functools.partial(jax.jit, static_argnames="config")
def _layer_and_moments(
    layers: Mapping[str, Array], index: Array, hidden: Array, *, config: Any
) -> tuple[Array, dict[str, Array]]:
    """A layer's output, and x' x of its linears' inputs x [tokens, k]: products are made as ever, and seen on the way."""
    seen: dict[str, Array] = {}

    def observing(layer: Mapping[str, Any], name: str, x: Array, precision: Any) -> Array:
        seen[name] = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        return project(layer, name, x, precision)

    layer = {name: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False) for name, leaf in layers.items()}
    with mock.patch.object(decoder, "project", observing), mock.patch.object(mlp, "project", observing):
        output = decoder.layer_forward(layer, hidden, config)
    return output, {name: jnp.einsum("tk,tl->kl", seen[name], seen[name], precision="highest") for name in _FIRSTS}


def kept(folder: Path, name: str, windows: np.ndarray, measure: Callable[[], Sensitivity]) -> Sensitivity:
    """What `measure` returns, from a file in `folder` if these windows were measured under this name before."""
    digest = hashlib.sha256(np.ascontiguousarray(windows).tobytes()).hexdigest()[:16]
    path = folder / f"{name}-{digest}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, **measure())  # pyright: ignore[reportArgumentType]
        partial.rename(path)
    with np.load(path) as stored:
        return dict(stored)
