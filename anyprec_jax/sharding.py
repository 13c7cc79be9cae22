"""A model on several devices, of one process or of many: every device holds its share of the weights and no more.

`models.split` says how weights are cut and what devices tell each other. Here they are put where they belong: from memory (`shard`), or
share by share from wherever they can be read (`placed`), as `checkpoint.load` does for an artefact.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Shaped

from anyprec_jax.array import Matrix
from anyprec_jax.layout import natural
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.fusion import linears, unfused
from anyprec_jax.models.model import Model
from anyprec_jax.models.split import AXIS, SPLIT, Split, plan, shardings

Index: TypeAlias = tuple[slice, ...]  # of an array, a slice with start and stop for every axis
Reader: TypeAlias = Callable[[str, Index], np.ndarray]  # (path of a leaf, what of it) -> that

_KEYS_AND_VALUES = ("k_proj", "v_proj", "k_proj_bias", "v_proj_bias")


def tensor_parallel_mesh(num_devices: int | None = None) -> Mesh:
    """The first devices that there are, all of them by default, with the one axis "model".

    Raises:
      ValueError: there are fewer, or fewer than one is wanted.
    """
    devices = jax.devices()
    wanted = len(devices) if num_devices is None else num_devices
    if not 1 <= wanted <= len(devices):
        raise ValueError(
            f"the model should be split over 1 to {len(devices)} devices, as many as there are, got {wanted}"
        )
    return Mesh(np.array(devices[:wanted]), (AXIS,))


def shard(model: Model, mesh: Mesh) -> Model:
    """The model with its weights split over the devices along the axis "model" of a mesh; `forward`, `generate` and `evaluate` run there.

    They compute what they compute on one device, but for the order in which products are summed. Linears that were fused are taken apart.
    Where there are fewer key heads than devices, each is repeated: the result is a model with more key heads that computes the same.
    With several processes, each calls this with the same model, and then makes the same calls as the others.

    Raises:
      ValueError: the mesh has no axis "model", or the model is split already.

    Memory: on every device its share; on the host, the model and one matrix.
    """
    if SPLIT in model.params:
        raise ValueError("the model is split over devices already")
    layers = {
        name: natural(leaf) if isinstance(leaf, Matrix) else leaf
        for name, leaf in unfused(model.params["layers"]).items()
    }
    params = {**model.params, "layers": layers}
    flat = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    @functools.lru_cache(maxsize=1)  # one leaf at a time is copied from its device
    def on_host(name: str) -> np.ndarray:
        return np.asarray(flat[name])

    config, params = placed(model.config, params, lambda name, index: on_host(name)[index], mesh)
    return dataclasses.replace(model, config=config, params=params)


def placed(
    config: ModelConfig, params: Mapping[str, Any], read: Reader, mesh: Mesh
) -> tuple[ModelConfig, dict[str, Any]]:
    """Puts weights on their devices; of each leaf this process reads the shares of its own devices, each once.

    Args:
      config: the model's.
      params: the tree that `models.decoder` describes, unfused; of its leaves only shapes and dtypes are looked at.
      read: (path of a leaf, `layers/q_proj/codebooks/3` say, what of it) -> that part.
      mesh: as for `shard`.

    Returns:
      The settings and weights of the split model.

    Raises:
      ValueError: the mesh has no axis "model".
    """
    times = _copies_of_key_heads(config, mesh.shape.get(AXIS, 1))
    quantized = {name for name, leaf in linears(params["layers"]).items() if isinstance(leaf, Matrix)}
    split = plan(dataclasses.replace(config, num_kv_heads=config.num_kv_heads * times), quantized, mesh)
    targets = shardings(params, split)

    def place(path: Any, leaf: Any, target: NamedSharding) -> jax.Array:
        name = _name(path)
        heads = None if times == 1 else _heads(name, len(leaf.shape), config)
        return _array(leaf.shape, target, functools.partial(read, name), heads, times)

    placed = jax.tree_util.tree_map_with_path(place, dict(params), targets)
    placed["layers"][SPLIT] = placed[SPLIT] = split
    return split.config, placed


def _copies_of_key_heads(config: ModelConfig, num_devices: int) -> int:
    """How often each key head is repeated, so that every device has one."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    fits = heads % num_devices == 0 and num_devices % kv_heads == 0 and config.head_norm != "joint"
    return num_devices // kv_heads if fits else 1


def _heads(name: str, num_axes: int, config: ModelConfig) -> tuple[int, int] | None:
    """Of a leaf with something for every key head: along which axis, and how many rows for each."""
    parameter = name.removeprefix("layers/").partition("/")[0]
    if parameter in _KEYS_AND_VALUES:
        return (num_axes - (1 if parameter.endswith("_bias") else 2), config.head_dim)
    if parameter == "k_norm" and config.head_norm == "separate":
        return (num_axes - 2, 1)
    return None


def _array(
    shape: tuple[int, ...],
    sharding: NamedSharding,
    read: Callable[[Index], np.ndarray],
    heads: tuple[int, int] | None,
    times: int,
) -> jax.Array:
    """The shares of an array that belong to devices of this process; of devices with the same share one reads it."""
    if heads is not None:
        axis, rows = heads
        read = functools.partial(_with_copies, read, axis, rows, times)
        shape = (*shape[:axis], shape[axis] * times, *shape[axis + 1 :])
    shares: dict[Any, np.ndarray] = {}

    def share(index: Any) -> np.ndarray:
        bounds = tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
        if bounds not in shares:
            shares[bounds] = read(tuple(slice(*bound) for bound in bounds))
        return shares[bounds]

    return jax.make_array_from_callback(shape, sharding, share)


def _with_copies(
    read: Callable[[Index], np.ndarray], axis: int, rows: int, times: int, index: Index
) -> Shaped[np.ndarray, "..."]:
    """A part of an array in which every `rows` rows come `times` times in a row."""
    wanted = np.arange(index[axis].start, index[axis].stop)
    source = wanted // (rows * times) * rows + wanted % rows
    first, last = int(source[0]), int(source[-1])
    part = read((*index[:axis], slice(first, last + 1), *index[axis + 1 :]))
    return np.take(part, source - first, axis=axis)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def split_of(model: Model) -> Split | None:
    """How a model is split; None for one that is not."""
    return model.params.get(SPLIT)
