"""The paper authors' packed checkpoints: their codes and codebooks, bit for bit.

A folder with `config.json`, whose entry `anyprec` says what was quantized, tokenizer files and `pytorch_model.bin` (or the same tensors
as safetensors). A linear `NAME` is `NAME.qweight`, int32 `[parent, n, k / 32]`: planes, the most significant first, in the order
of bits that `upstream_layout` describes; and `NAME.lut{w}`, float16 `[n, 2**w]`, for every precision. All other tensors are those
of the Hugging Face model. After any-precision-llm at commit a3257d0, `quantization/pack.py`.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from anyprec_jax.affine import AffineArray
from anyprec_jax.array import AnyPrecArray, validate
from anyprec_jax.checkpoint import export_record, torch_file
from anyprec_jax.checkpoint.assembly import model_of
from anyprec_jax.checkpoint.atomic import published, require_free, require_room
from anyprec_jax.checkpoint.huggingface import Places, by_layer, places_of, read_headers, read_tensor, with_prefix
from anyprec_jax.checkpoint.manifest import CODEBOOK_KIND, MatrixEntry
from anyprec_jax.checkpoint.source import Leaf, Source, dequantized_rows, matrix_on_host
from anyprec_jax.checkpoint.torch_file import TorchFile, TorchWriter
from anyprec_jax.checkpoint.tree import is_exact
from anyprec_jax.checkpoint.upstream_layout import from_upstream, to_upstream
from anyprec_jax.config import MAX_PRECISION
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
from anyprec_jax.tokenizer import Tokenizer

_CONFIG = "config.json"
_ENTRY = "anyprec"
_PICKLE = "pytorch_model.bin"
_PLAIN = ("float16", "float32", "bfloat16")
_ST_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32"}
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
    layout = FAMILIES[config.family].layout
    stored = _stored_tensors(path, FAMILIES[config.family])
    matrices = _check_tensors(config, seed, parent, stored)
    places = places_of(layout, config)
    dtypes = {name: _plain_dtype(name, places, stored) for name in parameter_shapes(config) if name not in matrices}

    def matrix(parameter: str, tensor: StoredTensor) -> AnyPrecArray:
        """Rows of a matrix are independent: those of a parameter are taken out of what it shares a tensor with."""
        module = tensor.name.removesuffix(".weight")

        def own(rows: np.ndarray) -> np.ndarray:
            return unpacked(tensor, rows, parameter, layout, config)

        planes = own(from_upstream(stored.read(f"{module}.qweight")).swapaxes(0, 1)).swapaxes(0, 1)
        books = {w: own(stored.read(f"{module}.lut{w}")) for w in range(seed, parent + 1)}
        result = matrix_on_host(np.ascontiguousarray(planes), books, seed, parent, matrices[parameter].k)
        try:
            validate(result)
        except ValueError as error:
            raise ValueError(f"{stored.where}: {module}: {error}") from error
        return result

    def read(parameter: str, layer: int | None) -> Leaf:
        found = places[parameter, layer]
        if parameter in matrices:
            parts: list[Any] = [matrix(parameter, tensor) for tensor in found]
            return parts[0] if found[0].index is None else jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
        wanted = dtypes[parameter]
        plain = [unpacked(t, stored.read(t.name).astype(wanted, copy=False), parameter, layout, config) for t in found]
        return plain[0] if found[0].index is None else np.stack(plain)

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
    layout = FAMILIES[source.config.family].layout
    require_room(path.parent, _bytes_needed(source) + _METADATA_BYTES)
    read = functools.lru_cache(maxsize=1)(source.read)  # experts come one after the other
    with published(path) as folder:
        document = config_to_huggingface(source.config) | {"torch_dtype": "float16"}
        document[_ENTRY] = _description(source, seed, parent)
        (folder / _CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        if source.tokenizer is not None:
            source.tokenizer.save(folder)
        with torch_file.writing(folder / _PICKLE) as writer:
            for tensor in by_layer(layout, source.config):
                leaves = [read(parameter, tensor.layer) for parameter in tensor.parameters]
                _write(writer, tensor, leaves, layout, source.config)
        export_record.write(folder, source, [_PICKLE])


def _write(writer: TorchWriter, tensor: StoredTensor, leaves: list[Leaf], layout: Layout, config: ModelConfig) -> None:
    """One tensor of the plain model, or the planes and codebooks in its place."""

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        parts = parts if tensor.index is None else [part[tensor.index] for part in parts]
        return packed(tensor, parts, layout, config)

    matrices = [leaf for leaf in leaves if isinstance(leaf, AnyPrecArray)]
    if matrices:
        module = tensor.name.removesuffix(".weight")
        planes = joined([np.asarray(matrix.bitplanes).swapaxes(-3, -2) for matrix in matrices]).swapaxes(0, 1)
        writer.write(f"{module}.qweight", to_upstream(planes))
        for w in matrices[0].codebooks:
            writer.write(f"{module}.lut{w}", joined([np.asarray(matrix.codebooks[w]) for matrix in matrices]))
        return
    rows = [leaf if isinstance(leaf, np.ndarray) else _plain_rows(leaf) for leaf in leaves]
    plain = joined(rows)
    narrow = np.dtype(np.float16) if is_exact(plain, np.dtype(np.float16)) else np.dtype(np.float32)
    writer.write(tensor.name, plain.astype(narrow, copy=False))


def _plain_rows(leaf: Leaf) -> np.ndarray:
    assert isinstance(leaf, AffineArray)
    return dequantized_rows(leaf, dtype=np.dtype(np.float32))


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


def _stored_tensors(path: Path, family: Family) -> _Tensors:
    if (path / _PICKLE).is_file():
        file = TorchFile(path / _PICKLE)
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        return _Tensors(path / _PICKLE, shapes, {name: file.dtype(name).name for name in shapes}, file.read)
    headers = with_prefix(read_headers(path), family)
    return _Tensors(
        path,
        {name: header.shape for name, header in headers.items()},
        {name: _ST_DTYPES.get(header.dtype, header.dtype) for name, header in headers.items()},
        lambda name: read_tensor(headers[name]),
    )


def _check_tensors(config: ModelConfig, seed: int, parent: int, stored: _Tensors) -> dict[str, MatrixEntry]:
    """Every tensor that the config calls for must be there, in its shape and dtype, and no other; returns what is quantized."""
    layout = FAMILIES[config.family].layout
    kinds = {str(w): CODEBOOK_KIND for w in range(seed, parent + 1)}
    matrices: dict[str, MatrixEntry] = {}
    expected: set[str] = set()
    for tensor in stored_tensors(layout, config):
        name, shape = tensor.name, tensor.shape
        module = name.removesuffix(".weight")
        if tensor.layer == 0 and not tensor.index and f"{module}.qweight" in stored.shapes:
            if tensor.parameters[0] in layout.transposed or len(shape) != 2 or shape[-1] % 32:
                raise ValueError(f"{stored.where}: {module} has shape {shape}, and packed rows are multiples of 32")
            entry = MatrixEntry(k=shape[-1], seed_precision=seed, parent_precision=parent, codebooks=kinds)
            matrices |= dict.fromkeys(tensor.parameters, entry)
        wanted: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {name: (shape, _PLAIN)}
        if tensor.parameters[0] in matrices:
            wanted = {f"{module}.qweight": ((parent, shape[0], shape[1] // 32), ("int32",))}
            wanted |= {f"{module}.lut{w}": ((shape[0], 2 ** int(w)), ("float16",)) for w in kinds}
        for part, (size, dtypes) in wanted.items():
            _check_tensor(part, size, dtypes, stored)
        expected |= set(wanted)
    if not matrices:
        raise ValueError(f"{stored.where} has no packed linear, though {_CONFIG} says that the model is quantized")
    ignored = {f"{layout.modules['head']}.weight"} if config.tie_embeddings else set()
    for name in stored.shapes:
        if name not in expected and name not in ignored and not name.endswith(layout.derived or ("\n",)):
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


def _plain_dtype(parameter: str, places: Places, stored: _Tensors) -> np.dtype:
    kinds = {stored.dtypes[t.name] for (name, _), found in places.items() if name == parameter for t in found}
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
        if name in FAMILIES[source.config.family].layout.transposed:
            raise ValueError(f"the authors' layout has no {name} of this family, whose weights lie transposed there")
        if entry.k % 32:
            raise ValueError(f"the authors' layout wants rows that are multiples of 32, and {name} has k = {entry.k}")
        if set(entry.codebooks.values()) != {CODEBOOK_KIND}:
            raise ValueError(f"the authors' layout holds float16 codebooks, and {name} has {entry.codebooks}")
    return ranges.pop()


def _description(source: Source, seed: int, parent: int) -> dict[str, Any]:
    """The entry of `config.json`, from which upstream builds its modules."""
    modules = FAMILIES[source.config.family].layout.modules
    quantized = {name for name, entry in source.matrices.items() if not entry.is_affine}
    names = list(dict.fromkeys(modules[name] for name in parameter_shapes(source.config) if name in quantized))
    names = _with_indices(names, source.config.num_experts or 0)
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


def _with_indices(modules: list[str], num_experts: int) -> list[str]:
    """One module for every expert, where experts have their own."""
    return [
        module.replace("{index}", str(index))
        for module in modules
        for index in (range(num_experts) if "{index}" in module else (0,))
    ]


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
