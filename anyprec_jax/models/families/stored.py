"""The tensors of a file, and the parameters that lie in them."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families.family import LAYERS, Layout
from anyprec_jax.models.families.shapes import parameter_shapes


class StoredTensor(NamedTuple):
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]  # that lie in it, one below the other
    layer: int | None
    index: int | None  # of the expert or the head, where each has a tensor of its own


def stored_tensors(layout: Layout, config: ModelConfig) -> Iterator[StoredTensor]:
    """Every tensor that a file of this layout has for a model, lazily: a config may claim any number of layers."""
    shapes = parameter_shapes(config)
    for parameters in _groups(layout, config):
        first, shape = parameters[0], shapes[parameters[0]]
        layers = range(shape[0]) if first.startswith(LAYERS) else (None,)
        own = shape[1:] if first.startswith(LAYERS) else shape
        is_indexed = "{index}" in _module(layout, first)
        indices = range(own[0]) if is_indexed else (None,)
        own = own[1:] if is_indexed else own
        axis = -2 if _is_matrix(first, own) else -1
        rows = sum(shapes[parameter][axis] for parameter in parameters)
        whole = (*own[:axis], rows, *own[len(own) + axis + 1 :])
        whole = whole[::-1] if first in layout.transposed else whole
        for layer in layers:
            for index in indices:
                yield StoredTensor(tensor_name(layout.modules, first, layer, index), whole, parameters, layer, index)


def tensor_name(modules: Mapping[str, str], parameter: str, layer: int | None, index: int | None = None) -> str:
    """What a file calls the tensor that a parameter of one layer lies in; `layer` is None outside the layers."""
    module = modules[parameter.removesuffix("_bias")].format(layer=layer, index=index)
    return f"{module}.bias" if parameter.endswith("_bias") else f"{module}.weight"


def unpacked(
    tensor: StoredTensor, values: np.ndarray, parameter: str, layout: Layout, config: ModelConfig
) -> np.ndarray:
    """The values of one of the parameters that lie in a tensor: a view where the layout allows."""
    values = values.T if parameter in layout.transposed else values
    if layout.plus_one and parameter.endswith("norm"):
        values = values - np.ones((), values.dtype)
    if len(tensor.parameters) > 1:
        position = tensor.parameters.index(parameter)
        if layout.by_head:
            by_head = values.reshape(config.num_heads, len(tensor.parameters), config.head_dim, *values.shape[1:])
            values = by_head[:, position].reshape(-1, *values.shape[1:])
        else:
            stops = np.cumsum(_rows(tensor.parameters, config))
            values = values[stops[position] - _rows(tensor.parameters, config)[position] : stops[position]]
    return _halves_apart(values, _heads(parameter, config)) if parameter in layout.paired else values


def packed(tensor: StoredTensor, parts: Sequence[np.ndarray], layout: Layout, config: ModelConfig) -> np.ndarray:
    """The inverse of `unpacked` for Hugging Face checkpoints: one tensor of the parameters that lie in it."""
    if len(parts) == 1:
        values = parts[0]
    elif layout.by_head:
        by_head = [part.reshape(config.num_heads, config.head_dim, *part.shape[1:]) for part in parts]
        values = np.stack(by_head, axis=1).reshape(-1, *parts[0].shape[1:])
    else:
        values = np.concatenate(parts)
    return values.T if tensor.parameters[0] in layout.transposed else values


def _groups(layout: Layout, config: ModelConfig) -> Iterator[tuple[str, ...]]:
    """The parameters of a model, those of one tensor together."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for parameter in parameter_shapes(config):
        groups.setdefault((_module(layout, parameter), parameter.endswith("_bias")), []).append(parameter)
    yield from map(tuple, groups.values())


def _module(layout: Layout, parameter: str) -> str:
    return layout.modules[parameter.removesuffix("_bias")]


def _is_matrix(parameter: str, shape: tuple[int, ...]) -> bool:
    return len(shape) >= 2 and not parameter.endswith("_bias")


@functools.lru_cache(maxsize=64)
def _rows(parameters: tuple[str, ...], config: ModelConfig) -> tuple[int, ...]:
    shapes = parameter_shapes(config)
    return tuple(shapes[parameter][-1 if parameter.endswith("_bias") else -2] for parameter in parameters)


def _heads(parameter: str, config: ModelConfig) -> int:
    return config.num_heads if parameter.startswith(f"{LAYERS}q") else config.num_kv_heads


def _halves_apart(values: np.ndarray, num_heads: int) -> np.ndarray:
    """The members of a rotary pair from side by side to half a head apart."""
    pairs = values.shape[0] // num_heads // 2
    return values.reshape(num_heads, pairs, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
