"""Hugging Face model folders: `config.json`, safetensors in one file or in shards, tokenizer files."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from anyprec_jax.checkpoint.atomic import published
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import (
    FAMILIES,
    Layout,
    StoredTensor,
    config_from_huggingface,
    config_to_huggingface,
    packed,
    parameter_shapes,
    stored_tensors,
    unpacked,
)
from anyprec_jax.models.model import Model
from anyprec_jax.models.parameters import assemble
from anyprec_jax.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000  # more than one file above this, as in transformers; a tensor is never split

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")


class _Tensor(NamedTuple):
    """Where a tensor is and what its header says."""

    file: Path
    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str


def load_folder(path: Path, *, dtype: DTypeLike = np.float32) -> Model:
    """Reads a model; its tokenizer is None where there is no `tokenizer.json`.

    Every tensor's shape is compared with `config.json` before anything is allocated.

    Args:
      path: the folder.
      dtype: of the weights in memory. On disk they may be bfloat16, float16 or float32.

    Raises:
      FileNotFoundError: no `config.json`, no weights, or a shard that the index names is missing.
      ValueError: an architecture that is not supported, weights as pickles only, a damaged file, or a tensor that is missing,
        left over, or of another shape or dtype.

    Memory: the weights once, and one tensor.
    """
    config = _read_config(path)
    family = FAMILIES[config.family]
    headers = _with_prefix(_read_headers(path), family.prefix, family.layout)
    _check_tensors(config, headers, path)
    places = _places(family.layout, config)

    def values(parameter: str, tensor: StoredTensor) -> np.ndarray:
        header = headers[tensor.name]
        with _opened(header.file) as file:  # anew for every tensor, so that no more than one stays mapped
            return unpacked(tensor, file.get_tensor(header.name), parameter, family.layout, config)

    def read(parameter: str, layer: int | None) -> np.ndarray | Iterator[np.ndarray]:
        found = places[parameter, layer]
        return values(parameter, found[0]) if found[0].index is None else (values(parameter, one) for one in found)

    tokenizer = Tokenizer.from_folder(path)  # first: a damaged one should not be reported after minutes of reading
    return Model(config=config, params=assemble(config, read, dtype=dtype), tokenizer=tokenizer)


def save_folder(path: Path, model: Model, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Writes a folder that `transformers` and `load_folder` read; it appears whole or not at all.

    Args:
      path: must not exist, or be an empty folder.
      model: without any-precision matrices: dequantize them first. Weights keep their dtypes.
      max_shard_bytes: above this the weights go to several files.

    Raises:
      ValueError: a weight is not an array of the shape that the config calls for.
      OSError: `path` is taken, or cannot be written.
    """
    _check_weights(model)
    tensors = list(stored_tensors(FAMILIES[model.config.family].layout, model.config))
    config = config_to_huggingface(model.config) | {"torch_dtype": model.params["embedding"].dtype.name}
    with published(path) as folder:
        _write_json(folder / _CONFIG, config)
        if model.tokenizer is not None:
            model.tokenizer.save(folder)
        _write_shards(folder, model, tensors, max_shard_bytes)


def _read_config(path: Path) -> ModelConfig:
    if not (path / _CONFIG).is_file():
        raise FileNotFoundError(f"{path} is not a Hugging Face folder: it has no {_CONFIG}")
    document = _read_json(path / _CONFIG)
    try:
        return config_from_huggingface(document)
    except ValueError as error:
        raise ValueError(f"{path / _CONFIG}: {error}") from error


def _read_headers(path: Path) -> dict[str, _Tensor]:
    """What the files say they hold, by name of tensor."""
    if (path / _SINGLE).is_file():
        return _file_headers(path / _SINGLE)
    if not (path / _INDEX).is_file():
        raise _no_weights(path)
    weight_map = _read_weight_map(path / _INDEX)
    headers: dict[str, _Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if not (path / shard).is_file():
            raise FileNotFoundError(f"{path / shard} is missing: {_INDEX} says that it holds weights")
        found = _file_headers(path / shard)
        for name in (name for name, file in weight_map.items() if file == shard):
            if name not in found:
                raise ValueError(f"{path / shard} lacks the tensor {name}, which {_INDEX} says it holds")
            headers[name] = found[name]
    return headers


def _read_weight_map(index: Path) -> dict[str, str]:
    document = _read_json(index)
    weight_map = document.get("weight_map") if isinstance(document, Mapping) else None
    if not isinstance(weight_map, Mapping) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index} is damaged: its weight_map should give the file of every tensor")
    for shard in weight_map.values():
        # Written on one system and read on another: neither's separators may lead elsewhere.
        if Path(shard).name != shard or "\\" in shard or "\0" in shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{index} names the file {shard!r}: a safetensors file in the same folder was expected")
    return dict(weight_map)


def _no_weights(path: Path) -> Exception:
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickles:
        return ValueError(
            f"{path} has its weights in {pickles[0]}: pickles can run code and are not read; convert them to safetensors"
        )
    return FileNotFoundError(f"{path} has no weights: neither {_SINGLE} nor {_INDEX}")


def _file_headers(file: Path) -> dict[str, _Tensor]:
    with _opened(file) as stream:
        slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118  (not a dict)
        return {name: _Tensor(file, name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as stream:
            yield stream
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from error


def _with_prefix(headers: dict[str, _Tensor], prefix: str, layout: Layout) -> dict[str, _Tensor]:
    """The headers by the names of the causal model, where a file has those of the bare one, "h.0.ln_1" for GPT-2."""
    if any(name.startswith(prefix) for name in headers):
        return headers
    outside = tuple(module for module in layout.modules.values() if not module.startswith(prefix))
    return {name if name.startswith(outside) else prefix + name: header for name, header in headers.items()}


def _places(layout: Layout, config: ModelConfig) -> dict[tuple[str, int | None], list[StoredTensor]]:
    """(parameter, layer) -> the tensors that it lies in, in order."""
    places: dict[tuple[str, int | None], list[StoredTensor]] = {}
    for tensor in stored_tensors(layout, config):
        for parameter in tensor.parameters:
            places.setdefault((parameter, tensor.layer), []).append(tensor)
    return places


def _check_tensors(config: ModelConfig, headers: Mapping[str, _Tensor], path: Path) -> None:
    """Every tensor that the config calls for must be there as it says, and no other."""
    layout = FAMILIES[config.family].layout
    expected = set()
    for wanted in stored_tensors(layout, config):
        tensor = headers.get(wanted.name)
        if tensor is None:
            raise ValueError(f"{path} lacks the tensor {wanted.name}, which {_CONFIG} calls for")
        if tensor.shape != wanted.shape:
            raise ValueError(
                f"{tensor.file}: {wanted.name} has shape {tensor.shape}, {_CONFIG} calls for {wanted.shape}"
            )
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"{tensor.file}: {wanted.name} is {tensor.dtype}; weights should be one of {', '.join(_DTYPES)}"
            )
        expected.add(wanted.name)
    ignored = {f"{layout.modules['head']}.weight"} if config.tie_embeddings else set()
    for name in headers:
        if name not in expected and name not in ignored and not name.endswith(layout.derived or ("\n",)):
            raise ValueError(f"{headers[name].file} holds {name}, which {_CONFIG} does not call for")


def _check_weights(model: Model) -> None:
    for parameter, shape in parameter_shapes(model.config).items():
        leaf = _leaf(model, parameter)
        if not hasattr(leaf, "dtype") or leaf.shape != shape:
            raise ValueError(f"{parameter} should be an array of shape {shape}; dequantize a quantized model first")


def _leaf(model: Model, parameter: str) -> Any:
    top, _, rest = parameter.partition("/")
    return model.params[top].get(rest) if rest else model.params.get(top)


def _values(model: Model, tensor: StoredTensor) -> np.ndarray:
    """One tensor as the file has it. Parts are views of the weights; only what is joined is copied."""
    parts = []
    for parameter in tensor.parameters:
        part = np.asarray(_leaf(model, parameter))
        part = part if tensor.layer is None else part[tensor.layer]
        parts.append(part if tensor.index is None else part[tensor.index])
    return packed(tensor, parts, FAMILIES[model.config.family].layout, model.config)


def _write_shards(folder: Path, model: Model, tensors: list[StoredTensor], max_shard_bytes: int) -> None:
    def nbytes(tensor: StoredTensor) -> int:
        return math.prod(tensor.shape) * _leaf(model, tensor.parameters[0]).dtype.itemsize

    shards: list[list[StoredTensor]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        if shards[-1] and nbytes(tensor) > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= nbytes(tensor)
    if len(shards) == 1:
        _write_tensors(folder / _SINGLE, {tensor.name: _values(model, tensor) for tensor in tensors})
        return
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        _write_tensors(folder / file, {tensor.name: _values(model, tensor) for tensor in shard})
    total = sum(map(nbytes, tensors))
    weight_map = {tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
    _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_tensors(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        save_file(contiguous, file, metadata={"format": "pt"})  # without which transformers does not read it
    except SafetensorError as error:
        raise OSError(f"{file} cannot be written: {error}") from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def _write_json(file: Path, document: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
