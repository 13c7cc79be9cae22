"""What inference gives, streamed to a `.npy` file or counted against labels."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ginex_jax.inference.layerwise import NodeOutputs
from ginex_jax.store.publishing import require_room


def write_outputs(
    path: Path, outputs: Iterable[NodeOutputs], *, num_rows: int, num_outputs: int, predictions: bool = False
) -> None:
    """Writes outputs as float32 [num_rows, num_outputs], or the number of the largest of each row as int64 [num_rows].

    The file appears at `path`, in place of one that was there, when it is complete and on the disk. Among equal outputs the first is
    the prediction.

    Args:
      outputs: of `infer`; row i of the file is that of its i-th node.
      num_rows: nodes in all.

    Raises:
      ValueError: other numbers of rows or outputs come.
      OSError: the disk is too small, or failed. Nothing is left behind then.
    """
    shape, dtype = ((num_rows,), np.dtype(np.int64)) if predictions else ((num_rows, num_outputs), np.dtype(np.float32))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    require_room(path.parent, int(np.prod(shape)) * dtype.itemsize)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial"
    try:
        with partial.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for rows in _checked(outputs, num_rows, num_outputs):
                np.ascontiguousarray(rows.argmax(axis=1) if predictions else rows, dtype).tofile(file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def accuracy(outputs: Iterable[NodeOutputs], labels: Int64[np.ndarray, " nodes"]) -> float:
    """The part of nodes whose largest output is the one of their label; those without a label, -1, do not count. NaN if none has one."""
    right = labelled = 0
    for node_ids, rows in outputs:
        expected = labels[node_ids]
        right += int((rows.argmax(axis=1) == expected).sum())
        labelled += int((expected >= 0).sum())
    return right / labelled if labelled else float("nan")


def _checked(outputs: Iterable[NodeOutputs], num_rows: int, num_outputs: int) -> Iterator[np.ndarray[Any, Any]]:
    done = 0
    for _, rows in outputs:
        done += len(rows)
        if rows.shape[1] != num_outputs or done > num_rows:
            raise ValueError(
                f"outputs should be [{num_rows}, {num_outputs}], got {rows.shape[1]} in {done} rows or more"
            )
        yield rows
    if done != num_rows:
        raise ValueError(f"outputs should be [{num_rows}, {num_outputs}], got {done} rows")
