"""GGUF files, llama.cpp's format: weights of every type that the `gguf` package can decode, with settings and tokenizer."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import ReaderTensor
from numpy.typing import DTypeLike

from anyprec_jax.checkpoint.gguf_config import (
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
    config_from_gguf,
    family_of,
)
from anyprec_jax.checkpoint.gguf_reader import open_gguf
from anyprec_jax.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from anyprec_jax.checkpoint.source import Source
from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import Layout, StoredTensor, parameter_shapes, stored_tensors, unpacked
from anyprec_jax.models.model import Model
from anyprec_jax.models.parameters import assemble


def load_file(path: Path, *, dtype: DTypeLike = np.float32) -> Model:
    """Reads a model; its tokenizer is None where the file has none.

    Rows of q and k that llama.cpp keeps in its own order come back in Hugging Face's, and so do norms with one added. A missing output
    head means that the embedding is the head.

    Args:
      path: the file.
      dtype: of the weights in memory.

    Raises:
      OSError: the file cannot be read.
      ValueError: not a GGUF file, a truncated or damaged one, an architecture or tensor type that is not supported, or a tensor
        that is missing, left over or of another shape than the metadata call for.

    Memory: the weights once, and one layer of a parameter.
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
    reader = open_gguf(path)
    try:
        stored = {tensor.name: tensor for tensor in reader.tensors}
        name, family = family_of(reader)
        layout = family.gguf
        assert layout is not None
        config = config_from_gguf(reader, name, family, stored)
        places = _places(config, layout, stored)
        tokenizer = tokenizer_from_gguf(reader)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

    shapes = parameter_shapes(config)

    def read(parameter: str, layer: int | None) -> np.ndarray:
        place = places[parameter, layer]
        tensor = stored.get(place.name)
        if tensor is None:  # `_places` let it pass: one bias of several
            return np.zeros(shapes[parameter][1:], np.float32)
        if len(place.shape) == 3:  # the experts of a layer
            experts = np.empty(place.shape, np.float32)
            for index in range(place.shape[0]):
                experts[index] = _decoded(path, tensor, index)
            return experts
        values = _decoded(path, tensor).reshape(place.shape).astype(np.float32, copy=False)
        return unpacked(place, values, parameter, layout, config)

    return Source(
        format="gguf",
        path=path,
        config=config,
        tokenizer=tokenizer,
        matrices={},
        dtypes=dict.fromkeys(shapes, np.dtype(np.float32)),
        precisions=(),
        read=read,
    )


def _places(
    config: ModelConfig, layout: Layout, stored: Mapping[str, ReaderTensor]
) -> dict[tuple[str, int | None], StoredTensor]:
    """(parameter, layer) -> where it lies. Every tensor that the metadata call for must be there in its shape, and no other."""
    expected, places = {ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS}, {}
    for tensor in stored_tensors(layout, config):
        expected.add(tensor.name)
        places |= {(parameter, tensor.layer): tensor for parameter in tensor.parameters}
        if tensor.name not in stored:
            # llama.cpp has each bias or not; Hugging Face all or none, and zero is no bias.
            if tensor.name.endswith(".bias") and "norm" not in tensor.name:
                continue
            raise ValueError(f"it lacks the tensor {tensor.name}")
        found = tuple(int(size) for size in reversed(stored[tensor.name].shape))
        if found != tensor.shape:
            raise ValueError(f"{tensor.name} has shape {found}, the metadata call for {tensor.shape}")
    if unknown := sorted(set(stored) - expected):
        raise ValueError(f"it holds {unknown[0]}, which this architecture does not call for")
    return places


def _decoded(path: Path, tensor: ReaderTensor, index: int | None = None) -> np.ndarray:
    """A tensor's values as floats, or those of one index along its first axis, read from the file rather than through the reader's map,
    which would keep them in memory."""
    shape, offset, size = tensor.data.shape, tensor.data_offset, tensor.n_bytes
    if index is not None:
        size //= shape[0]
        shape, offset = shape[1:], offset + index * size
    data = np.fromfile(path, np.uint8, size, offset=offset)
    if data.size != size:
        raise ValueError(f"{path} changed while it was read: {tensor.name} is cut short")
    data = data.view(tensor.data.dtype).reshape(shape)
    if data.dtype.kind == "f":
        return data
    try:
        with np.errstate(all="ignore"):  # infinite scales give NaN, and NaN is for the user of the weights to judge
            return gguf.dequantize(data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ValueError(
            f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which cannot be decoded"
        ) from error
