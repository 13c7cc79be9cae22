"""GGUF files opened, and their metadata by key and type."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderField

_MAGIC = b"GGUF"
# What the reader raises on a file that breaks the format, apart from ValueError.
_DAMAGE = (ValueError, LookupError, ArithmeticError, RecursionError)


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


def open_gguf(path: Path) -> GGUFReader:
    """A file's metadata and the places of its tensors.

    Raises:
      OSError: the file cannot be read.
      ValueError: not a GGUF file of a known version, or a truncated or damaged one.
    """
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


def required(reader: GGUFReader, key: str, kind: type, default: Any = None) -> Any:
    """A metadata value; `default`, or an error if that is None, where there is none."""
    found = value(reader, key, kind)
    found = default if found is None else found
    if found is None:
        raise ValueError(f"its metadata lack {key}")
    return found


def value(reader: GGUFReader, key: str, kind: type) -> Any:
    """A metadata value, or None. A number that is given for every layer must be the same for all."""
    field = reader.get_field(key)
    if field is None:
        return None
    found = field.contents()
    if isinstance(found, list) and found:
        if any(other != found[0] for other in found):
            raise ValueError(f"{key} differs between layers, which is not supported")
        found = found[0]
    if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
        raise ValueError(f"{key} should be a {kind.__name__}, got {found!r}")
    return found


def shortest(number: float | np.floating) -> float:
    """The decimal that was meant by a number stored in float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))
