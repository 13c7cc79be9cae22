"""GGUF files, llama.cpp's format: weights of every type that the `gguf` package can decode, with settings and tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderField, ReaderTensor
from numpy.typing import DTypeLike

from anyprec_jax.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from anyprec_jax.checkpoint.source import Source
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import FAMILIES, Family, parameter_shapes, tensor_name, tensors
from anyprec_jax.models.model import Model
from anyprec_jax.models.parameters import assemble
from anyprec_jax.models.rope import frequencies
from anyprec_jax.models.rope_scaling import (
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    yarn_attention_factor,
)

_MAGIC = b"GGUF"
_ROPE_FACTORS = "rope_freqs.weight"
# What the reader raises on a file that breaks the format, apart from ValueError.
_DAMAGE = (ValueError, LookupError, ArithmeticError, RecursionError)


def load_file(path: Path, *, dtype: DTypeLike = np.float32) -> Model:
    """Reads a model; its tokenizer is None where the file has none.

    Rows of q and k that llama.cpp keeps in its own order come back in Hugging Face's. A missing output head means that the
    embedding is the head.

    Args:
      path: the file.
      dtype: of the weights in memory.

    Raises:
      OSError: the file cannot be read.
      ValueError: not a GGUF file, a truncated or damaged one, an architecture or tensor type that is not supported, or a tensor
        that is missing, left over or of another shape than the metadata call for.

    Memory: the weights once, and one tensor.
    """
    source = open_file(path)

    def read(parameter: str, layer: int | None) -> np.ndarray:
        leaf = source.read(parameter, layer)
        assert isinstance(leaf, np.ndarray)
        return leaf

    return Model(config=source.config, params=assemble(source.config, read, dtype=dtype), tokenizer=source.tokenizer)


def open_file(path: Path) -> Source:
    """The file as a source: everything is checked but the weights' values, which `read` decodes one tensor at a time.

    Raises:
      OSError, ValueError: as for `load_file`.
    """
    reader = _open(path)
    try:
        stored = {tensor.name: tensor for tensor in reader.tensors}
        name, family = _family_of(reader)
        config = _config(reader, name, family, stored)
        _check_tensors(config, family, stored)
        tokenizer = tokenizer_from_gguf(reader)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

    def read(parameter: str, layer: int | None) -> np.ndarray:
        tensor = stored.get(tensor_name(family.gguf_modules, parameter, layer))
        if tensor is None:  # `_check_tensors` let it pass: one bias of several
            return np.zeros(parameter_shapes(config)[parameter][1:], np.float32)
        values = _decoded(path, tensor)
        if parameter not in family.gguf_permuted:
            return values
        return _with_halves_apart(values, config.num_heads if parameter.startswith("layers/q") else config.num_kv_heads)

    return Source(
        format="gguf",
        path=path,
        config=config,
        tokenizer=tokenizer,
        matrices={},
        dtypes=dict.fromkeys(parameter_shapes(config), np.dtype(np.float32)),
        precisions=(),
        read=lambda parameter, layer: read(parameter, layer).astype(np.float32, copy=False),
    )


class _Reader(GGUFReader):
    """The package's reader, which believes every count in the file, made to stop at the file's end; and arrays read whole."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, *args: Any, **kwargs: Any) -> np.ndarray:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise ValueError(f"it is truncated: it ends at byte {len(self.data):,}, and byte {end:,} was expected")
        return super()._get(offset, dtype, count, *args, **kwargs)

    def _get_field_parts(self, orig_offs: int, raw_type: Any) -> tuple[int, list, list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        kind, length, start = GGUFValueType(head[0][0]), int(head[1][0]), orig_offs + 12
        if kind == GGUFValueType.STRING:
            strings, end = self._strings(start, length)
            return end - orig_offs, [*head, *strings], list(range(2, 2 + length)), [GGUFValueType.ARRAY, kind]
        if kind in self.gguf_scalar_to_np:
            values = self._get(start, self.gguf_scalar_to_np[kind], length)
            return 12 + values.nbytes, [*head, values], [2], [GGUFValueType.ARRAY, kind]
        return super()._get_field_parts(orig_offs, raw_type)

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        known = {kind.value for kind in GGMLQuantizationType}
        for field in fields:
            if field.parts[4][0] not in known:
                raise ValueError(f"the tensor {field.name} is of type {field.parts[4][0]}, which is not known")
        super()._build_tensors(start_offs, fields)

    def _strings(self, start: int, length: int) -> tuple[list[memoryview], int]:
        """The bytes of `length` strings, and where they end. A vocabulary has a hundred thousand: no arrays for each."""
        data, strings = self.data.data, []
        for _ in range(length):
            size = int.from_bytes(data[start : start + 8], "little")
            start += 8 + size
            if start > len(data):
                raise ValueError(f"it is truncated: it ends at byte {len(data):,}, and byte {start:,} was expected")
            strings.append(data[start - size : start])
        return strings, start


def _open(path: Path) -> GGUFReader:
    with path.open("rb") as stream:
        magic = stream.read(len(_MAGIC))
    if magic != _MAGIC:
        raise ValueError(f"{path} is not a GGUF file: it starts with {magic!r}, not {_MAGIC!r}")
    try:
        with np.errstate(over="raise"):
            reader = _Reader(path)
    except _DAMAGE as error:
        raise ValueError(f"{path} is not a whole GGUF file of a known version: {error}") from error
    if reader.byte_order != "I":
        raise ValueError(f"{path} has the byte order of another kind of machine: convert it there")
    return reader


def _family_of(reader: GGUFReader) -> tuple[str, Family]:
    architecture = _value(reader, "general.architecture", str)
    for name, family in FAMILIES.items():
        if family.gguf_architecture == architecture:
            return name, family
    supported = ", ".join(family.gguf_architecture for family in FAMILIES.values())
    raise ValueError(f"GGUF architecture {architecture!r} is not supported; supported are {supported}")


def _config(reader: GGUFReader, name: str, family: Family, stored: Mapping[str, ReaderTensor]) -> ModelConfig:
    prefix = family.gguf_architecture

    def number(key: str, default: int | None = None) -> int:
        return _required(reader, f"{prefix}.{key}", int, default)

    if number("expert_count", 0):
        raise ValueError("mixtures of experts are not supported")
    if _required(reader, "split.count", int, 1) > 1:
        raise ValueError("it is one part of a model that was split: join the parts (llama-gguf-split --merge)")
    hidden_size, num_heads = number("embedding_length"), number("attention.head_count")
    if num_heads < 1:
        raise ValueError(f"{prefix}.attention.head_count is {num_heads}")
    head_dim = number("attention.key_length", hidden_size // num_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if number(key, head_dim) != head_dim:
            raise ValueError(
                f"{prefix}.{key} {number(key)} is not supported; supported is the width of a head, {head_dim}"
            )
    theta = _shortest(_required(reader, f"{prefix}.rope.freq_base", float, 10_000.0))
    embedding = stored.get(tensor_name(family.gguf_modules, "embedding", None))
    if embedding is None:
        raise ValueError(f"it lacks the tensor {tensor_name(family.gguf_modules, 'embedding', None)}")
    ends = [_value(reader, f"tokenizer.ggml.{key}_token_id", int) for key in ("eos", "eot", "eom")]
    return ModelConfig(
        family=name,
        vocab_size=int(embedding.shape[-1]),
        hidden_size=hidden_size,
        intermediate_size=number("feed_forward_length"),
        num_layers=number("block_count"),
        num_heads=num_heads,
        num_kv_heads=number("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_position_embeddings=number("context_length"),
        rms_norm_eps=_shortest(_required(reader, f"{prefix}.attention.layer_norm_rms_epsilon", float)),
        rope_theta=theta,
        rope_scaling=_rope_scaling(reader, prefix, head_dim, theta, stored.get(_ROPE_FACTORS)),
        tie_embeddings=tensor_name(family.gguf_modules, "head", None) not in stored,
        attention_bias=_has_bias(family, stored, "q_proj", "k_proj", "v_proj", "o_proj"),
        mlp_bias=_has_bias(family, stored, "gate_proj", "up_proj", "down_proj"),
        bos_token_id=_value(reader, "tokenizer.ggml.bos_token_id", int),
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        pad_token_id=_value(reader, "tokenizer.ggml.padding_token_id", int),
    )


def _rope_scaling(
    reader: GGUFReader, prefix: str, head_dim: int, theta: float, factors: ReaderTensor | None
) -> RopeScaling | None:
    def number(key: str, default: float) -> float:
        return _shortest(_required(reader, f"{prefix}.rope.{key}", float, default))

    kind = _required(reader, f"{prefix}.rope.scaling.type", str, "linear")
    factor = number("scaling.factor", number("scale_linear", 1.0)) or 1.0  # llama.cpp: 0 is none
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(
            f"rope scaling {kind!r} is not supported; supported are none, linear, yarn and {_ROPE_FACTORS}"
        )
    if kind == "none" or factor == 1.0:
        return None if factors is None else _scaling_by_factors(np.asarray(factors.data, np.float32), head_dim, theta)
    if factors is not None:
        raise ValueError(f"rope scaling {kind!r} together with {_ROPE_FACTORS} is not supported")
    if kind == "linear":
        return LinearScaling(factor=factor)
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=_required(reader, f"{prefix}.rope.scaling.original_context_length", int),
        attention_factor=number("scaling.attn_factor", 1.0) * yarn_attention_factor(factor),
        beta_fast=number("scaling.yarn_beta_fast", 32.0),
        beta_slow=number("scaling.yarn_beta_slow", 1.0),
    )


def _scaling_by_factors(factors: np.ndarray, head_dim: int, theta: float) -> RopeScaling | None:
    """The scaling that a tensor of factors stands for: Llama 3's by name if it is that one, so that other programs know it too."""
    if factors.shape != (head_dim // 2,):
        raise ValueError(
            f"{_ROPE_FACTORS} has shape {factors.shape}, and heads of {head_dim} have {head_dim // 2} pairs"
        )
    by_pair = FrequencyFactors(factors=tuple(_shortest(factor) for factor in factors))
    if np.all(factors == 1):
        return None
    # Every Llama from 3.1 on was released with these three numbers; the file itself does not keep them.
    llama3 = Llama3Scaling(
        factor=max(by_pair.factors), low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    meant = frequencies(head_dim, theta, None) / frequencies(head_dim, theta, llama3)
    return llama3 if np.allclose(factors, meant, rtol=1e-5, atol=0) else by_pair


def _check_tensors(config: ModelConfig, family: Family, stored: Mapping[str, ReaderTensor]) -> None:
    """Every tensor that the metadata call for must be there in its shape, and no other."""
    expected = {_ROPE_FACTORS}
    for parameter, layer, shape in tensors(config):
        name = tensor_name(family.gguf_modules, parameter, layer)
        expected.add(name)
        if name not in stored:
            if parameter.endswith(
                "_bias"
            ):  # llama.cpp has each bias or not; Hugging Face all or none, and zero is no bias
                continue
            raise ValueError(f"it lacks the tensor {name}")
        found = tuple(int(size) for size in reversed(stored[name].shape))
        if found != shape:
            raise ValueError(f"{name} has shape {found}, the metadata call for {shape}")
    if unknown := sorted(set(stored) - expected):
        raise ValueError(f"it holds {unknown[0]}, which this architecture does not call for")


def _has_bias(family: Family, stored: Mapping[str, ReaderTensor], *names: str) -> bool:
    return any(tensor_name(family.gguf_modules, f"layers/{name}_bias", 0) in stored for name in names)


def _decoded(path: Path, tensor: ReaderTensor) -> np.ndarray:
    """A tensor's values as floats, read from the file rather than through the reader's map, which would keep them in memory."""
    data = np.fromfile(path, np.uint8, tensor.n_bytes, offset=tensor.data_offset)
    if data.size != tensor.n_bytes:
        raise ValueError(f"{path} changed while it was read: {tensor.name} is cut short")
    data = data.view(tensor.data.dtype).reshape(tensor.data.shape)
    if data.dtype.kind == "f":
        return data
    try:
        with np.errstate(all="ignore"):  # infinite scales give NaN, and NaN is for the user of the weights to judge
            return gguf.dequantize(data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ValueError(
            f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which cannot be decoded"
        ) from error


def _with_halves_apart(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Undoes llama.cpp's order of rows: the members of a rotary pair go from side by side to half a head apart."""
    pairs = values.shape[0] // num_heads // 2
    return values.reshape(num_heads, pairs, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _required(reader: GGUFReader, key: str, kind: type, default: Any = None) -> Any:
    value = _value(reader, key, kind)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"its metadata lack {key}")
    return value


def _value(reader: GGUFReader, key: str, kind: type) -> Any:
    """A metadata value, or None. A number that is given for every layer must be the same for all."""
    field = reader.get_field(key)
    if field is None:
        return None
    value = field.contents()
    if isinstance(value, list) and value:
        if any(other != value[0] for other in value):
            raise ValueError(f"{key} differs between layers, which is not supported")
        value = value[0]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{key} should be a {kind.__name__}, got {value!r}")
    return value


def _shortest(number: float | np.floating) -> float:
    """The decimal that was meant by a number stored in float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))
