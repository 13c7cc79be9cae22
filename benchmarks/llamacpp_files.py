"""GGUF files for the whole-model benchmarks: a model of a known shape with random weights, and llama.cpp's quantizations of one."""

import ctypes
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from anyprec_jax.models import LINEARS
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import FAMILIES, LAYERS, tensor_name
from benchmarks.llamacpp_build import PeerError
from benchmarks.llamacpp_library import ImportanceData, last_errors, load

FILE_TYPES = ("Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")


def write_random_model(path: Path, config: ModelConfig, *, seed: int = 0) -> Path:
    """A Llama with tied embeddings, float16, without a tokenizer; whole or not at all, one tensor in memory at a time.

    Norms are 1 and weights [n, k] normal with variance 1 / k, so that every linear keeps the scale of what it reads.
    """
    rng = np.random.default_rng(seed)
    shapes = dict(tensor_shapes(config))
    return write_llama(path, config, shapes, (_random_tensor(rng, shape) for shape in shapes.values()))


def write_llama(
    path: Path, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[np.ndarray]
) -> Path:
    """A Llama without a tokenizer, whole or not at all; `tensors` are those of `shapes`, in order, vectors float32 and matrices float16."""
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name(path.stem)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("none")

    for name, shape in shapes.items():
        dtype = _dtype(shape)
        writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor)
    writer.close()
    return partial.rename(path)


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of such a file, in order; weights are [n, k]."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "token_embd.weight", (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        for name, shape in (
            ("attn_norm", (hidden,)),
            ("attn_q", (queries, hidden)),
            ("attn_k", (keys, hidden)),
            ("attn_v", (keys, hidden)),
            ("attn_output", (hidden, queries)),
            ("ffn_norm", (hidden,)),
            ("ffn_gate", (inner, hidden)),
            ("ffn_up", (inner, hidden)),
            ("ffn_down", (hidden, inner)),
        ):
            yield f"blk.{layer}.{name}.weight", shape
    yield "output_norm.weight", (hidden,)


def quantize_file(
    source: Path,
    target: Path,
    file_type: str,
    *,
    threads: int = 2,
    importance: Mapping[str, np.ndarray] | None = None,
    keep_embedding: bool = False,
) -> Path:
    """`source` as `file_type` (Q4_K_M, ...) by llama.cpp's own choice of types per tensor, the head's included.

    A source that is quantized already is quantized again: right for timing, worse in quality. Whole or not at all.

    importance:      tensor name -> mean square of its inputs [k], what llama.cpp's "imatrix" holds.
    keep_embedding:  embedding and head stay float32.
    """
    library = load()
    partial = target.with_name(target.name + ".partial")
    params = library.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = file_type_number(file_type), threads, True
    if keep_embedding:
        params.token_embedding_type = params.output_tensor_type = int(gguf.GGMLQuantizationType.F32)
    entries = importance_entries(importance or {})
    if importance:
        params.imatrix = ctypes.cast(entries, ctypes.c_void_p)
    if library.llama_model_quantize(str(source).encode(), str(partial).encode(), params) != 0:
        partial.unlink(missing_ok=True)
        raise PeerError(f"llama.cpp could not quantize {source} to {file_type}: {last_errors()}")
    return partial.rename(target)


def importance_entries(importance: Mapping[str, np.ndarray]) -> "ctypes.Array[ImportanceData]":
    """As llama.cpp takes it: an array that ends with an empty entry, and keeps alive what it points to."""
    entries = (ImportanceData * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = (ctypes.c_float * len(values))(*values.tolist())
        entry.size = len(values)
    return entries


def float_copy(source: Path, target: Path) -> Path:
    """The same model with every tensor in float32, metadata and tokenizer included; whole or not at all."""
    reader, partial = gguf.GGUFReader(source), target.with_name(target.name + ".partial")
    architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE)
    assert architecture is not None
    writer = gguf.GGUFWriter(partial, architecture.contents(), use_temp_file=True)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE):
            kind, *of = field.types
            writer.add_key_value(name, field.contents(), kind, of[-1] if of else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.rename(target)


class MatrixTypes(NamedTuple):
    """What a file keeps some matrices in."""

    bits_per_weight: float  # scales included
    shares: dict[str, float]  # type -> share of the weights


def matrix_types(path: Path, names: Collection[str]) -> MatrixTypes:
    """Of the tensors of those names, which must be there."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights: dict[str, int] = {}
    for name in names:
        kind = tensors[name].tensor_type.name
        weights[kind] = weights.get(kind, 0) + int(tensors[name].n_elements)
    total = sum(weights.values())
    bits = 8 * sum(int(tensors[name].n_bytes) for name in names) / total
    return MatrixTypes(bits, {kind: count / total for kind, count in sorted(weights.items())})


def matrix_names(config: ModelConfig) -> dict[tuple[str, int], str]:
    """(linear, layer) -> name of its tensor in a file."""
    layout = FAMILIES[config.family].gguf
    assert layout is not None, "the model came from a GGUF file"
    return {
        (linear, layer): tensor_name(layout.modules, f"{LAYERS}{linear}", layer)
        for layer in range(config.num_layers)
        for linear in LINEARS
    }


def file_type_number(file_type: str) -> int:
    """Of llama.cpp's enum llama_ftype."""
    name = f"MOSTLY_{file_type}"
    if name not in gguf.LlamaFileType.__members__:
        raise ValueError(f"{file_type!r} is no file type of llama.cpp; those compared are {', '.join(FILE_TYPES)}")
    return int(gguf.LlamaFileType[name])


def bytes_per_token(path: Path) -> dict[str, int]:
    """Bytes of weights that decoding one token must read from a file: `layers`, `head`, and their sum, `total`.

    Norms and biases count with the layers. The embedding counts as the head where it is tied, else as nothing: one row.
    Keys and values come on top.
    """
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    embedding = sizes.pop("token_embd.weight")
    head = sizes.pop("output.weight", embedding)
    layers = sum(sizes.values())
    return {"layers": layers, "head": head, "total": layers + head}


def _dtype(shape: tuple[int, ...]) -> np.dtype:
    """Vectors stay float32, as llama.cpp wants them."""
    return np.dtype(np.float32 if len(shape) == 1 else np.float16)


def _random_tensor(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, _dtype(shape))
    weights = rng.standard_normal(shape, np.float32)
    weights *= np.float32(1 / math.sqrt(shape[-1]))
    return weights.astype(_dtype(shape))
