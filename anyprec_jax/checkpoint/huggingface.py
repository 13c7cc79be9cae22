"""Hugging Face model folders: `config.json`, safetensors in one file or in shards, tokenizer files."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from anyprec_jax.checkpoint import export_record
from anyprec_jax.checkpoint.atomic import published, require_free, require_room
from anyprec_jax.checkpoint.safetensors_file import Described, write_safetensors
from anyprec_jax.checkpoint.source import Leaf, Source, model_source
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import (
    FAMILIES,
    Family,
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

Places: TypeAlias = dict[tuple[str, int | None], list[StoredTensor]]

MAX_SHARD_BYTES = 5_000_000_000  # more than one file above this, as in transformers; a tensor is never split

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


class FileTensor(NamedTuple):
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
    source = open_folder(path)
    export_record.check(path)

    def read(parameter: str, layer: int | None) -> np.ndarray:
        leaf = source.read(parameter, layer)
        assert isinstance(leaf, np.ndarray)
        return leaf

    return Model(config=source.config, params=assemble(source.config, read, dtype=dtype), tokenizer=source.tokenizer)


def open_folder(path: Path) -> Source:
    """The folder as a source: everything is checked but the weights' values, which `read` reads one tensor at a time.

    Raises:
      FileNotFoundError, ValueError: as for `load_folder`.
    """
    config = _read_config(path)
    family = FAMILIES[config.family]
    headers = with_prefix(read_headers(path), family)
    _check_tensors(config, headers, path)
    stored: dict[str, set[str]] = {}
    for tensor in stored_tensors(family.layout, config):
        for parameter in tensor.parameters:
            stored.setdefault(parameter, set()).add(headers[tensor.name].dtype)
    dtypes = {name: DTYPES[kinds.pop()] if len(kinds) == 1 else DTYPES["F32"] for name, kinds in stored.items()}
    places = places_of(family.layout, config)

    def values(parameter: str, tensor: StoredTensor) -> np.ndarray:
        whole = read_tensor(headers[tensor.name]).astype(dtypes[parameter], copy=False)
        return unpacked(tensor, whole, parameter, family.layout, config)

    def read(parameter: str, layer: int | None) -> Leaf:
        found = places[parameter, layer]
        return (
            values(parameter, found[0]) if found[0].index is None else np.stack([values(parameter, t) for t in found])
        )

    return Source(
        format="huggingface",
        path=path,
        config=config,
        tokenizer=Tokenizer.from_folder(path),  # now: a damaged one should not be reported after minutes of reading
        matrices={},
        dtypes=dtypes,
        precisions=(),
        read=read,
    )


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
    _check_plain(model)
    write_folder(path, model_source(model), max_shard_bytes=max_shard_bytes, is_export=False)


def write_folder(path: Path, source: Source, *, max_shard_bytes: int = MAX_SHARD_BYTES, is_export: bool = True) -> None:
    """Writes a plain source as a folder that `transformers` and `load_folder` read; it appears whole or not at all.

    Args:
      path: must not exist, or be an empty folder.
      source: without quantized matrices (`source.plain_source`). Weights keep their dtypes.
      max_shard_bytes: above this the weights go to several files; a tensor is never split.
      is_export: write a record with sizes and checksums, too.

    Raises:
      OSError: `path` is taken, there is not enough room, or it cannot be written.

    Memory: one tensor.
    """
    require_free(path)
    layout = FAMILIES[source.config.family].layout
    places = {tensor.name: tensor for tensor in by_layer(layout, source.config)}
    described = {
        name: Described(np.result_type(*(source.dtypes[part] for part in tensor.parameters)), tensor.shape)
        for name, tensor in places.items()
    }
    require_room(path.parent, sum(tensor.nbytes for tensor in described.values()))
    widest = max((tensor.dtype for tensor in described.values()), key=lambda dtype: dtype.itemsize)

    @functools.lru_cache(maxsize=1)  # experts come one after the other from the array that holds all of a layer
    def parameter_of(name: str, layer: int | None) -> np.ndarray:
        leaf = source.read(name, layer)
        assert isinstance(leaf, np.ndarray)
        return leaf

    def read(name: str) -> np.ndarray:
        tensor = places[name]
        parts = [parameter_of(parameter, tensor.layer) for parameter in tensor.parameters]
        parts = parts if tensor.index is None else [part[tensor.index] for part in parts]
        return packed(tensor, parts, layout, source.config).astype(described[name].dtype, copy=False)

    with published(path) as folder:
        _write_json(folder / _CONFIG, config_to_huggingface(source.config) | {"torch_dtype": widest.name})
        if source.tokenizer is not None:
            source.tokenizer.save(folder)
        files = _write_shards(folder, described, read, max_shard_bytes)
        if is_export:
            export_record.write(folder, source, files)


def by_layer(layout: Layout, config: ModelConfig) -> list[StoredTensor]:
    """Every tensor of a file, layer after layer, as other software writes and reads them."""
    every = list(stored_tensors(layout, config))
    outside = [tensor for tensor in every if tensor.layer is None]
    inside = sorted((tensor for tensor in every if tensor.layer is not None), key=lambda tensor: tensor.layer or 0)
    return [*outside[:1], *inside, *outside[1:]]


def _read_config(path: Path) -> ModelConfig:
    if not (path / _CONFIG).is_file():
        raise FileNotFoundError(f"{path} is not a Hugging Face folder: it has no {_CONFIG}")
    document = _read_json(path / _CONFIG)
    try:
        return config_from_huggingface(document)
    except ValueError as error:
        raise ValueError(f"{path / _CONFIG}: {error}") from error


def read_headers(path: Path) -> dict[str, FileTensor]:
    """What the files say they hold, by name of tensor."""
    if (path / _SINGLE).is_file():
        return _file_headers(path / _SINGLE)
    if not (path / _INDEX).is_file():
        raise _no_weights(path)
    weight_map = _read_weight_map(path / _INDEX)
    headers: dict[str, FileTensor] = {}
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


def read_tensor(tensor: FileTensor) -> np.ndarray:
    """One tensor; the file is opened anew for each, so that no more than one stays mapped."""
    with _opened(tensor.file) as stream:
        return stream.get_tensor(tensor.name)


def _file_headers(file: Path) -> dict[str, FileTensor]:
    with _opened(file) as stream:
        slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118  (not a dict)
        return {
            name: FileTensor(file, name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
        }


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as stream:
            yield stream
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from error


def with_prefix(headers: dict[str, FileTensor], family: Family) -> dict[str, FileTensor]:
    """The headers by the names of the causal model, where a file has those of the bare one, "h.0.ln_1" for GPT-2."""
    prefix = family.prefix
    if any(name.startswith(prefix) for name in headers):
        return headers
    outside = tuple(module for module in family.layout.modules.values() if not module.startswith(prefix))
    return {name if name.startswith(outside) else prefix + name: header for name, header in headers.items()}


def places_of(layout: Layout, config: ModelConfig) -> Places:
    """(parameter, layer) -> the tensors that it lies in, in order."""
    places: Places = {}
    for tensor in stored_tensors(layout, config):
        for parameter in tensor.parameters:
            places.setdefault((parameter, tensor.layer), []).append(tensor)
    return places


def _check_tensors(config: ModelConfig, headers: Mapping[str, FileTensor], path: Path) -> None:
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
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{tensor.file}: {wanted.name} is {tensor.dtype}; weights should be one of {', '.join(DTYPES)}"
            )
        expected.add(wanted.name)
    ignored = {f"{layout.modules['head']}.weight"} if config.tie_embeddings else set()
    for name in headers:
        if name not in expected and name not in ignored and not name.endswith(layout.derived or ("\n",)):
            raise ValueError(f"{headers[name].file} holds {name}, which {_CONFIG} does not call for")


def _check_plain(model: Model) -> None:
    shapes = parameter_shapes(model.config)
    for parameter, shape in shapes.items():
        top, _, rest = parameter.partition("/")
        leaf = model.params[top].get(rest) if rest else model.params.get(top)
        if leaf is None or not hasattr(leaf, "dtype") or leaf.shape != shape:
            raise ValueError(f"{parameter} should be an array of shape {shape}; dequantize a quantized model first")


def _write_shards(
    folder: Path, tensors: Mapping[str, Described], read: Callable[[str], np.ndarray], max_shard_bytes: int
) -> list[str]:
    """Writes the weights; returns the names of the files."""
    shards: list[dict[str, Described]] = [{}]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [_SINGLE]
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(folder / file, shard, read)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return files


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def _write_json(file: Path, document: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
