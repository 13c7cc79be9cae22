"""Safetensors files written tensor by tensor: the library's own writer wants all of them in memory at once."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ALIGNMENT = 8  # bytes; of the first tensor, as the library has it


class Described(NamedTuple):
    """What a header says of a tensor."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(file: Path, tensors: Mapping[str, Described], read: Callable[[str], np.ndarray]) -> None:
    """Writes a file that any reader of safetensors takes, `transformers` included.

    Args:
      file: is overwritten.
      tensors: what will be in it; float32, float16 or bfloat16.
      read: name -> the tensor, of the dtype and shape that `tensors` says; asked for one after the other, in that order.

    Raises:
      OSError: it cannot be written.

    Memory: one tensor.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # without which transformers does not read it
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little"))
        stream.write(encoded)
        for name, tensor in tensors.items():
            values = read(name)
            if values.dtype != tensor.dtype or values.shape != tensor.shape:
                raise ValueError(f"{name} is {values.dtype} {values.shape}, not {tensor.dtype} {tensor.shape}")
            stream.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
