"""PyTorch's file of tensors (`torch.save` of a state dict): a zip archive of one pickle and one entry for every storage.

Nothing is unpacked to disk and nothing is decompressed: entries are stored as they are, and those that are not are refused.
"""

import contextlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from anyprec_jax.checkpoint import torch_pickle
from anyprec_jax.checkpoint.torch_pickle import Storage, Tensor

_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_MAX_PICKLE_BYTES = 64 << 20
_MAX_ENTRIES = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
_BLOCK_BYTES = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # no clock in the file: equal tensors, equal bytes


class _Entry(NamedTuple):
    """Where the bytes of an entry are."""

    start: int
    nbytes: int
    crc: int


class TorchFile:
    """The tensors of one file, read one by one.

    Attributes:
      tensors: what the pickle says of each, by name. Shapes are claims: compare them with what you expect before reading.
    """

    def __init__(self, path: Path) -> None:
        """Reads the archive's directory and its pickle.

        Raises:
          OSError: it cannot be read.
          ValueError: it is not such a file, it is damaged or truncated, or its pickle asks for more than tensors.
        """
        self._path = path
        self._checked: set[str] = set()
        try:
            self._entries, prefix = _directory(path)
            pickled = self._bytes(self._entries[f"{prefix}/data.pkl"])
            order = self._entries.get(f"{prefix}/byteorder")
            if order is not None and self._bytes(order) != b"little":
                raise ValueError("it has the byte order of another kind of machine: save it there as safetensors")
            self.tensors: Mapping[str, Tensor] = torch_pickle.read_tensors(pickled)
            self._storages = {}
            for tensor in self.tensors.values():
                self._storages[tensor.storage.key] = self._located(tensor, prefix)
        except ValueError as error:
            raise ValueError(f"{path} is not read: {error}") from error

    def dtype(self, name: str) -> np.dtype:
        """Of the numbers of a tensor."""
        return _dtype(self.tensors[name].storage)

    def read(self, name: str) -> np.ndarray:
        """One tensor, read from the file and checked against the checksum of its storage.

        Memory: the tensor; where it is a view that is not contiguous, its storage too.

        Raises:
          ValueError: the bytes do not match their checksum.
        """
        tensor = self.tensors[name]
        dtype, count = _dtype(tensor.storage), math.prod(tensor.shape)
        self._check(tensor.storage.key)
        start = self._storages[tensor.storage.key].start
        if _is_contiguous(tensor):
            numbers = np.fromfile(self._path, dtype, count, offset=start + tensor.offset * dtype.itemsize)
            return numbers.reshape(tensor.shape)
        storage = np.fromfile(self._path, dtype, tensor.storage.count, offset=start)[tensor.offset :]
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(storage, tensor.shape, strides, writeable=False).copy()

    def _located(self, tensor: Tensor, prefix: str) -> _Entry:
        storage = tensor.storage
        entry = self._entries.get(f"{prefix}/data/{storage.key}")
        if entry is None:
            raise ValueError(f"it lacks the storage {storage.key[:40]!a}")
        if entry.nbytes != storage.count * _dtype(storage).itemsize:
            raise ValueError(
                f"storage {storage.key} has {entry.nbytes:,} bytes, and {storage.count:,} {storage.dtype} were said"
            )
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
        if 0 not in tensor.shape and tensor.offset + last >= storage.count:
            raise ValueError(f"a tensor reaches beyond its storage {storage.key}")
        return entry

    def _bytes(self, entry: _Entry) -> bytes:
        if entry.nbytes > _MAX_PICKLE_BYTES:
            raise ValueError(f"its pickle is of {entry.nbytes:,} bytes, too large for descriptions of tensors")
        with self._path.open("rb") as stream:
            stream.seek(entry.start)
            content = stream.read(entry.nbytes)
        if zlib.crc32(content) != entry.crc:
            raise ValueError("its pickle does not match its checksum: it is damaged")
        return content

    def _check(self, key: str) -> None:
        """Compares a storage with its checksum, the first time that it is asked for."""
        if key in self._checked:
            return
        entry, crc = self._storages[key], 0
        with self._path.open("rb") as stream:
            stream.seek(entry.start)
            for start in range(0, entry.nbytes, _BLOCK_BYTES):
                crc = zlib.crc32(stream.read(min(_BLOCK_BYTES, entry.nbytes - start)), crc)
        if crc != entry.crc:
            raise ValueError(f"{self._path} is damaged: its storage {key} does not match its checksum")
        self._checked.add(key)


class TorchWriter:
    """Tensors on their way into a file, one by one; see `writing`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._tensors: dict[str, Tensor] = {}

    def write(self, name: str, values: np.ndarray) -> None:
        """Adds a tensor."""
        storage = Storage(values.dtype.name, str(len(self._tensors)), values.size)
        strides = [math.prod(values.shape[axis + 1 :]) for axis in range(values.ndim)]
        self._tensors[name] = Tensor(storage, 0, values.shape, tuple(strides))
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        _add(self._archive, f"data/{storage.key}", content)

    def _finish(self) -> None:
        _add(self._archive, "data.pkl", torch_pickle.write_tensors(self._tensors))
        _add(self._archive, "byteorder", b"little")
        _add(self._archive, "version", b"3\n")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[TorchWriter]:
    """Yields what writes a file that `torch.load` reads, `weights_only` too.

    Memory: nothing beyond the tensor being written.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        writer = TorchWriter(archive)
        yield writer
        writer._finish()


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    with archive.open(zipfile.ZipInfo(f"archive/{name}", _EPOCH), "w", force_zip64=True) as stream:
        for start in range(0, len(content), _BLOCK_BYTES):
            stream.write(content[start : start + _BLOCK_BYTES])


def _directory(path: Path) -> tuple[dict[str, _Entry], str]:
    """Every entry of the archive, and the folder that they are in."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(
            f"it is no zip archive, or cut short ({error}); files of PyTorch before 1.6 are not read"
        ) from error
    size = path.stat().st_size
    if len(infos) > _MAX_ENTRIES:
        raise ValueError(f"it has {len(infos):,} entries, more than a model")
    entries: dict[str, _Entry] = {}
    with path.open("rb") as stream:
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise ValueError(
                    f"its entry {info.filename[:80]!a} is compressed or encrypted, which PyTorch does not do"
                )
            if info.filename in entries:
                raise ValueError(f"it has two entries {info.filename[:80]!a}")
            start = _start(stream, info.header_offset, size)
            if start + info.file_size > size:
                raise ValueError(f"its entry {info.filename[:80]!a} reaches beyond the end: it is cut short")
            entries[info.filename] = _Entry(start, info.file_size, info.CRC)
    if sum(entry.nbytes for entry in entries.values()) > size:
        raise ValueError("its entries add up to more than the file")
    prefixes = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(prefixes) != 1:
        raise ValueError("it has no data.pkl of its own: it is not a file of torch.save")
    return entries, prefixes[0]


def _start(stream: BinaryIO, offset: int, size: int) -> int:
    """Where the content of an entry begins: after its local header, whose lengths the directory does not know."""
    if not 0 <= offset <= size - _LOCAL_HEADER.size:
        raise ValueError("its directory points beyond the file")
    stream.seek(offset)
    signature, name, extra = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ValueError("its directory points to something that is no entry")
    return offset + _LOCAL_HEADER.size + name + extra


def _dtype(storage: Storage) -> np.dtype:
    return _DTYPES.get(storage.dtype) or np.dtype(storage.dtype)


def _is_contiguous(tensor: Tensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
