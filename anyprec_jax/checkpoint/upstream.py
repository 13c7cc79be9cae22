"""The paper authors' packed checkpoints: their codes and codebooks, bit for bit.

A folder with `config.json`, whose entry `anyprec` says what was quantized, tokenizer files and `pytorch_model.bin` (or the same tensors
as safetensors). A linear `NAME` is `NAME.qweight`, int32 `[parent, n, k / 32]`: planes, the most significant first, in the order
of bits that `upstream_layout` describes; and `NAME.lut{w}`, float16 `[n, 2**w]`, for every precision. All other tensors are those
of the Hugging Face model. After any-precision-llm at commit a3257d0, `quantization/pack.py`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from anyprec_jax.array import AnyPrecArray, validate
from anyprec_jax.checkpoint import export_record, torch_file
from anyprec_jax.checkpoint.assembly import model_of
from anyprec_jax.checkpoint.atomic import published, require_free, require_room
from anyprec_jax.checkpoint.huggingface import by_layer, read_headers, read_tensor
from anyprec_jax.checkpoint.manifest import CODEBOOK_KIND, MatrixEntry
from anyprec_jax.checkpoint.source import Leaf, Source, dequantized_rows, matrix_on_host
from anyprec_jax.checkpoint.torch_file import TorchFile, TorchWriter
from anyprec_jax.checkpoint.tree import is_exact
from anyprec_jax.checkpoint.upstream_layout import from_upstream, to_upstream
from anyprec_jax.config import MAX_PRECISION
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import (
    FAMILIES,
    LAYERS,
    config_from_huggingface,
    config_to_huggingface,
    parameter_shapes,
    tensor_name,
    tensors,
)
from anyprec_jax.models.model import Model
from anyprec_jax.tokenizer import Tokenizer

_CONFIG = "config.json"
_ENTRY = "anyprec"
_PICKLE = "pytorch_model.bin"
_PLAIN = ("float16", "float32", "bfloat16")
_ST_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32"}
_DERIVED = ".rotary_emb.inv_freq"
_METADATA_BYTES = 1 << 20


class _Tensors(NamedTuple):
    """Tensors of either kind of file: what is there, and how to read it."""

    where: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    read: Any  # name -> array


def is_upstream(path: Path) -> bool:
    """Whether a folder claims to be such a checkpoint; `open_folder` says whether it is a sound one."""
    try:
        document = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and _ENTRY in document


def open_folder(path: Path) -> Source:
    """The folder as a source: everything is checked but the values, which `read` reads a matrix at a time.

    Raises:
      FileNotFoundError: no weights, or a shard is missing.
      ValueError: an architecture or a form of quantization that is not supported, a damaged or truncated file, a pickle that asks for
        more than tensors, or a tensor that is missing, left over, or of another shape or dtype; when read, a matrix that breaks the
        invariants of `AnyPrecArray`.
    """
    config, seed, parent = _read_config(path)
    stored = _stored_tensors(path)
    matrices = _check_tensors(config, seed, parent, stored)
    modules = FAMILIES[config.family].modules
    dtypes = {name: _plain_dtype(name, config, stored) for name in parameter_shapes(config) if name not in matrices}

    def read(parameter: str, layer: int | None) -> Leaf:
        name = tensor_name(modules, parameter, layer)
        if parameter not in matrices:
            return stored.read(name).astype(dtypes[parameter], copy=False)
        module = name.removesuffix(".weight")
        planes = from_upstream(stored.read(f"{module}.qweight"))
        books = {w: stored.read(f"{module}.lut{w}") for w in range(seed, parent + 1)}
        matrix = matrix_on_host(planes, books, seed, parent, matrices[parameter].k)
        try:
            validate(matrix)
        except ValueError as error:
            raise ValueError(f"{stored.where}: {module}: {error}") from error
        return matrix

    return Source(
        format="upstream",
        path=path,
        config=config,
        tokenizer=Tokenizer.from_folder(path),
        matrices=matrices,
        dtypes=dtypes,
        precisions=tuple(range(seed, parent + 1)),
        read=read,
        provenance={"source": {"name": path.resolve().name, "format": "upstream"}},
    )


def load_folder(path: Path, *, precisions: Sequence[int] | None = None) -> Model:
    """Reads a model, checked against the checksums where there are some, unquantized leaves in float32.

    Raises:
      FileNotFoundError, ValueError: as for `open_folder`, or a precision that is not stored.
    """
    source = open_folder(path)
    export_record.check(path)
    return model_of(source, precisions=precisions)


def write_folder(path: Path, source: Source) -> None:
    """Writes a quantized source in the authors' layout; the folder appears whole or not at all.

    Codes and codebooks are kept bit for bit. Plain weights become float16, as upstream has them, where that loses nothing, and keep
    float32 otherwise; affine rows become plain.

    Args:
      path: must not exist, or be an empty folder.
      source: at every precision from seed to parent, the same for all linears, with k a multiple of 32.

    Raises:
      ValueError: the layout cannot hold it.
      OSError: the folder cannot be written.

    Memory: one matrix twice.
    """
    require_free(path)
    seed, parent = _check_storable(source)
    modules = FAMILIES[source.config.family].modules
    require_room(path.parent, _bytes_needed(source) + _METADATA_BYTES)
    with published(path) as folder:
        document = config_to_huggingface(source.config) | {"torch_dtype": "float16"}
        document[_ENTRY] = _description(source, seed, parent)
        (folder / _CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        if source.tokenizer is not None:
            source.tokenizer.save(folder)
        with torch_file.writing(folder / _PICKLE) as writer:
            for parameter, layer, _ in by_layer(source.config):
                _write(writer, tensor_name(modules, parameter, layer), source.read(parameter, layer))
        export_record.write(folder, source, [_PICKLE])


def _write(writer: TorchWriter, name: str, leaf: Leaf) -> None:
    if isinstance(leaf, AnyPrecArray):
        module = name.removesuffix(".weight")
        writer.write(f"{module}.qweight", to_upstream(np.asarray(leaf.bitplanes)))
        for w, book in leaf.codebooks.items():
            writer.write(f"{module}.lut{w}", np.asarray(book))
        return
    plain = leaf if isinstance(leaf, np.ndarray) else dequantized_rows(leaf, dtype=np.dtype(np.float32))
    narrow = np.dtype(np.float16) if is_exact(plain, np.dtype(np.float16)) else np.dtype(np.float32)
    writer.write(name, plain.astype(narrow, copy=False))


def _read_config(path: Path) -> tuple[ModelConfig, int, int]:
    file = path / _CONFIG
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        config = config_from_huggingface(document)
        entry = document.get(_ENTRY)
        if not isinstance(entry, Mapping):
            raise ValueError(f"its entry {_ENTRY!r} should be an object")
        seed, parent = entry.get("seed_precision"), entry.get("parent_precision")
        if type(seed) is not int or type(parent) is not int or not 1 <= seed <= parent <= MAX_PRECISION:
            raise ValueError(
                f"seed_precision {seed!r} and parent_precision {parent!r} are not 1 <= seed <= parent <= 8"
            )
        if entry.get("group_count", 1) != 1:
            raise ValueError(
                f"group_count {entry['group_count']!r} is not supported; supported is 1, a codebook for every row"
            )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from error
    return config, seed, parent


def _stored_tensors(path: Path) -> _Tensors:
    if (path / _PICKLE).is_file():
        file = TorchFile(path / _PICKLE)
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        return _Tensors(path / _PICKLE, shapes, {name: file.dtype(name).name for name in shapes}, file.read)
    headers = read_headers(path)
    return _Tensors(
        path,
        {name: header.shape for name, header in headers.items()},
        {name: _ST_DTYPES.get(header.dtype, header.dtype) for name, header in headers.items()},
        lambda name: read_tensor(headers[name].file, name),
    )


def _check_tensors(config: ModelConfig, seed: int, parent: int, stored: _Tensors) -> dict[str, MatrixEntry]:
    """Every tensor that the config calls for must be there, in its shape and dtype, and no other; returns what is quantized."""
    modules = FAMILIES[config.family].modules
    kinds = {str(w): CODEBOOK_KIND for w in range(seed, parent + 1)}
    matrices: dict[str, MatrixEntry] = {}
    expected: set[str] = set()
    for parameter, layer, shape in tensors(config):
        name = tensor_name(modules, parameter, layer)
        module = name.removesuffix(".weight")
        if layer == 0 and f"{module}.qweight" in stored.shapes:
            if shape[-1] % 32:
                raise ValueError(f"{stored.where}: {module} has k = {shape[-1]}, and packed rows are multiples of 32")
            matrices[parameter] = MatrixEntry(
                k=shape[-1], seed_precision=seed, parent_precision=parent, codebooks=kinds
            )
        if parameter not in matrices:
            wanted = {name: (shape, _PLAIN)}
        else:
            wanted = {f"{module}.qweight": ((parent, *shape[:-1], shape[-1] // 32), ("int32",))}
            wanted |= {f"{module}.lut{w}": ((*shape[:-1], 2 ** int(w)), ("float16",)) for w in kinds}
        for tensor, (size, dtypes) in wanted.items():
            _check_tensor(tensor, size, dtypes, stored)
        expected |= set(wanted)
    if not matrices:
        raise ValueError(f"{stored.where} has no packed linear, though {_CONFIG} says that the model is quantized")
    ignored = tensor_name(modules, "head", None)
    for name in stored.shapes:
        if name not in expected and not (config.tie_embeddings and name == ignored) and not name.endswith(_DERIVED):
            raise ValueError(f"{stored.where} holds {name}, which {_CONFIG} does not call for")
    return matrices


def _check_tensor(name: str, shape: tuple[int, ...], dtypes: tuple[str, ...], stored: _Tensors) -> None:
    found = stored.shapes.get(name)
    if found is None:
        raise ValueError(f"{stored.where} lacks the tensor {name}, which {_CONFIG} calls for")
    if found != shape:
        raise ValueError(f"{stored.where}: {name} has shape {found}, {_CONFIG} calls for {shape}")
    if stored.dtypes[name] not in dtypes:
        raise ValueError(f"{stored.where}: {name} is {stored.dtypes[name]}, not {' or '.join(dtypes)}")


def _plain_dtype(parameter: str, config: ModelConfig, stored: _Tensors) -> np.dtype:
    modules = FAMILIES[config.family].modules
    layers = range(config.num_layers) if parameter.startswith(LAYERS) else (None,)
    kinds = {stored.dtypes[tensor_name(modules, parameter, layer)] for layer in layers}
    kind = kinds.pop() if len(kinds) == 1 else "float32"
    return np.dtype(ml_dtypes.bfloat16) if kind == "bfloat16" else np.dtype(kind)


def _check_storable(source: Source) -> tuple[int, int]:
    """The one range of precisions of a source that the layout can hold."""
    stacks = {name: entry for name, entry in source.matrices.items() if not entry.is_affine}
    if not stacks:
        raise ValueError("the authors' layout holds any-precision matrices, and this model has none: quantize it first")
    ranges = {(entry.seed_precision, entry.parent_precision) for entry in stacks.values()}
    if len(ranges) > 1:
        raise ValueError(
            f"the authors' layout has one range of precisions for all linears, and this model has {sorted(ranges)}"
        )
    for name, entry in stacks.items():
        if entry.k % 32:
            raise ValueError(f"the authors' layout wants rows that are multiples of 32, and {name} has k = {entry.k}")
        if set(entry.codebooks.values()) != {CODEBOOK_KIND}:
            raise ValueError(f"the authors' layout holds float16 codebooks, and {name} has {entry.codebooks}")
    return ranges.pop()


def _description(source: Source, seed: int, parent: int) -> dict[str, Any]:
    """The entry of `config.json`, from which upstream builds its modules."""
    modules = FAMILIES[source.config.family].modules
    quantized = {name for name, entry in source.matrices.items() if not entry.is_affine}
    names = [modules[name] for name in parameter_shapes(source.config) if name in quantized]
    before = {name.partition(".{layer}.")[0] for name in names}
    model_name, _, layers_name = before.pop().rpartition(".")
    return {
        "seed_precision": seed,
        "parent_precision": parent,
        "group_count": 1,
        "arch_config": {
            "model_name": model_name,
            "layers_name": layers_name,
            "module_names": [name.partition(".{layer}.")[2] for name in names],
        },
    }


def _bytes_needed(source: Source) -> int:
    total = 0
    for name, shape in parameter_shapes(source.config).items():
        entry, weights = source.matrices.get(name), math.prod(shape)
        if entry is None or entry.is_affine:
            total += 4 * weights
        else:
            books = sum(2 ** int(w) for w in entry.codebooks)
            total += entry.parent_precision * weights // 8 + 2 * books * math.prod(shape[:-1])
    return total
