"""Old pickles of arrays and sparse matrices, read without running anything that they name.

A pickle is a program, and what it may call is the whole danger. Here it may call the classes below and nothing else: none of NumPy's
or SciPy's own functions, whose names only choose a stand-in. What comes out is checked and then turned into arrays.
"""

import collections
import io
import math
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

_MAX_BYTES = 512 << 20
_TYPES = {"f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class CsrMatrix(NamedTuple):
    """A sparse matrix by rows: the columns `indices[indptr[r] : indptr[r + 1]]` of row r hold `data`, and all others 0."""

    shape: tuple[int, int]
    indptr: Int64[np.ndarray, " rows_plus_one"]
    indices: Int64[np.ndarray, " values"]
    data: Shaped[np.ndarray, " values"]


def read_array(path: Path) -> Shaped[np.ndarray, "..."]:
    """A pickled NumPy array.

    Raises:
      ValueError: the file is damaged, holds something else, or names a global that is not allowed.
    """
    return _array(_load(path), path)


def read_csr(path: Path) -> CsrMatrix:
    """A pickled `scipy.sparse.csr_matrix`; SciPy is not needed. Errors as `read_array`, and where the matrix contradicts itself."""
    matrix = _load(path)
    if not isinstance(matrix, _Csr) or not isinstance(matrix.state, dict):
        raise ValueError(f"{path} should be a pickled csr_matrix, got {_described(matrix)}")
    state = matrix.state
    shape = state.get("_shape", state.get("shape"))
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(type(size) is int and size >= 0 for size in shape)):
        raise ValueError(f"{path} is damaged: its shape should be two sizes")
    indptr, indices, data = (_array(state.get(name), path) for name in ("indptr", "indices", "data"))
    if not all(a.ndim == 1 for a in (indptr, indices, data)) or indptr.dtype.kind != "i" or indices.dtype.kind != "i":
        raise ValueError(f"{path} is damaged: indptr, indices and data should be vectors, the first two of integers")
    if (
        len(indptr) != shape[0] + 1
        or indptr[0] != 0
        or (np.diff(indptr) < 0).any()
        or not indptr[-1] == len(indices) == len(data)
    ):
        raise ValueError(f"{path} is damaged: its rows do not fit its {len(data)} values")
    if len(indices) and (indices.min() < 0 or indices.max() >= shape[1]):
        raise ValueError(f"{path} is damaged: columns {indices.min()} to {indices.max()} of {shape[1]}")
    return CsrMatrix(shape, indptr.astype(np.int64), indices.astype(np.int64), data)


def read_neighbors(path: Path) -> dict[int, list[int]]:
    """A pickled dictionary of each node's list of neighbours. Errors as `read_array`."""
    graph = _load(path)
    if not isinstance(graph, dict):
        raise ValueError(f"{path} should be a pickled dictionary of lists, got {_described(graph)}")
    for node, neighbors in graph.items():
        if type(node) is not int or type(neighbors) is not list or not all(type(v) is int for v in neighbors):
            name = f"node {node}" if type(node) is int else f"a node that is {_described(node)}"
            raise ValueError(f"{path}: {name} should be a number with a list of numbers, got {_contents(neighbors)}")
    return dict(graph)


class _Sealed(type):
    """A pickle can set attributes of the classes it names; not of these."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"it sets {cls.__name__}.{name}")


class _Dtype(metaclass=_Sealed):
    """In the place of `numpy.dtype`."""

    def __init__(self, name: object, *_: object) -> None:
        if name not in _TYPES:
            raise pickle.UnpicklingError(f"it has an array of {_shown(name)}, and plain numbers are allowed")
        self.name, self.order = str(name), "<"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it has byte order {_shown(state[1])}")
        self.order = state[1]


class _Array(metaclass=_Sealed):
    """In the place of `numpy.ndarray`."""

    values: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        self.values = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype) or not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError("it has an array whose shape or type is none")
        data = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 had one type for both
        numpy_dtype = np.dtype(dtype.order + dtype.name)
        if type(data) is not bytes or len(data) != math.prod(shape) * numpy_dtype.itemsize:
            raise pickle.UnpicklingError(f"it has an array {shape!s:.80} in {len(data)} bytes")
        values = np.frombuffer(data, numpy_dtype).reshape(shape, order="F" if is_fortran else "C")
        self.values = values.astype(numpy_dtype.newbyteorder("="))


class _Reconstruct(metaclass=_Sealed):
    """In the place of `numpy.core.multiarray._reconstruct`, which makes an array that is filled later."""

    def __new__(cls, *_: object) -> Any:
        return _Array()


class _Csr(metaclass=_Sealed):
    """In the place of `scipy.sparse.csr_matrix`."""

    state: Any = None

    def __init__(self, *_: object) -> None:
        self.state = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("scipy.sparse.csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_matrix"): _Csr,
    ("collections", "defaultdict"): collections.defaultdict,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not allowed") from None


def _load(path: Path) -> Any:
    num_bytes = path.stat().st_size
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"{path} is {num_bytes:,} bytes, and a pickle is read up to {_MAX_BYTES:,}")
    try:
        return _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged program can fail in any way
        raise ValueError(f"{path} cannot be read: {str(error)[:200] or type(error).__name__}") from error


def _array(value: Any, path: Path) -> Shaped[np.ndarray, "..."]:
    if not isinstance(value, _Array) or value.values is None:
        raise ValueError(f"{path} should hold a NumPy array, got {_described(value)}")
    return value.values


def _described(value: object) -> str:
    """The kind of a value. Values themselves are not shown: a few hundred bytes build lists that take forever to write out."""
    return {"_Array": "an array", "_Csr": "a csr_matrix"}.get(type(value).__name__, type(value).__name__)


def _shown(value: object) -> str:
    return f"{value!r:.40}" if type(value) is str else _described(value)


def _contents(neighbors: object) -> str:
    if type(neighbors) is not list:
        return _described(neighbors)
    return f"list of {', '.join(sorted({_described(value) for value in neighbors})) or 'nothing'}"
