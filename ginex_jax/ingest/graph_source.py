"""What a folder of somebody's graph holds, before any of it is read: sizes, and streams to read the rest from."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Shaped

EdgeBlock = tuple[Int64[np.ndarray, " edges"], Int64[np.ndarray, " edges"]]  # sources and targets


@runtime_checkable
class MatrixSource(Protocol):
    """The rows of a matrix [num_rows, width], in order, a block at a time."""

    @property
    def name(self) -> str:
        """Where it comes from, for messages."""
        ...

    @property
    def num_rows(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def blocks(self, rows_per_block: int) -> Iterator[Shaped[np.ndarray, "rows width"]]:
        """All rows, `rows_per_block` at most at a time; every call starts again. A block is the receiver's to change.

        Raises:
          ValueError: the data are not what their header promised; the message names the file.
          OSError: reading failed.
        """
        ...


class GraphSource(NamedTuple):
    """A graph as its folder lists it: nothing added, sorted or dropped.

    `edges(edges_per_block)` yields (sources, targets) and starts again with every call. Labels have one column of classes, or several
    of tasks; see `ginex_jax.ingest.labels`. Splits are ascending or not as listed, distinct, and in range.
    """

    num_nodes: int
    edges: Callable[[int], Iterator[EdgeBlock]]
    features: MatrixSource | None = None
    labels: MatrixSource | None = None
    train: Int64[np.ndarray, " train"] | None = None
    valid: Int64[np.ndarray, " valid"] | None = None
    test: Int64[np.ndarray, " test"] | None = None
    edges_name: str = ""  # of the file, for messages


class ArrayMatrix:
    """A matrix in memory as a source; a vector [rows] is a matrix of width 1."""

    def __init__(self, values: Shaped[np.ndarray, "..."], *, name: str = "array") -> None:
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] < 1:
            raise ValueError(f"{name} should be [rows] or [rows, width], got {values.shape}")
        self._values, self.name = values, name

    @property
    def num_rows(self) -> int:
        return self._values.shape[0]

    @property
    def width(self) -> int:
        return self._values.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._values.dtype

    def blocks(self, rows_per_block: int) -> Iterator[Shaped[np.ndarray, "rows width"]]:
        for start in range(0, self.num_rows, rows_per_block):
            yield self._values[start : start + rows_per_block].copy()
