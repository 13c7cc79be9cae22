"""Arrays as datasets hold them, and as other writers may leave them, made by TensorStore."""

from pathlib import Path

import ml_dtypes
import numpy as np
import tensorstore

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def spec(path: Path, shape: tuple[int, ...], dtype: str, *, shard_rows: int, inner_rows: int, width: int = 1) -> dict:
    columns = [width] if len(shape) == 2 else []
    inner = {
        "chunk_shape": [inner_rows, *columns],
        "codecs": [BYTES],
        "index_codecs": [BYTES, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": list(shape),
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *columns]}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        },
    }


def write_matrix(path: Path, values: np.ndarray, *, shard_rows: int = 512, keep_fill: bool = True) -> Path:
    """Rows padded and chunked as in a dataset; shards are smaller."""
    row_bytes = values.shape[1] * values.itemsize
    stride = 1 << (row_bytes - 1).bit_length() if row_bytes <= 512 else -(-row_bytes // 512) * 512
    inner_rows = max(1, 4096 // stride)
    is_bfloat16 = values.dtype == ml_dtypes.bfloat16
    stored = values.view(np.uint16) if is_bfloat16 else values
    shard_rows = -(-shard_rows // inner_rows) * inner_rows
    created = spec(
        path,
        values.shape,
        stored.dtype.name,
        shard_rows=shard_rows,
        inner_rows=inner_rows,
        width=stride // values.itemsize,
    )
    created["store_data_equal_to_fill_value"] = keep_fill
    if is_bfloat16:
        created["metadata"]["attributes"] = {"dtype": "bfloat16"}
    store = tensorstore.open(created, create=True).result()
    if len(values):
        store[:].write(stored).result()
    return path


def write_vector(
    path: Path, values: np.ndarray, *, shard_rows: int = 1 << 12, inner_rows: int = 1 << 10, keep_fill: bool = True
) -> Path:
    created = spec(path, values.shape, values.dtype.name, shard_rows=shard_rows, inner_rows=inner_rows)
    created["store_data_equal_to_fill_value"] = keep_fill
    store = tensorstore.open(created, create=True).result()
    if len(values):
        store[:].write(values).result()
    return path


def rewrite(path: Path, start: int, rows: np.ndarray) -> None:
    """Writes some rows again, which moves their chunks to the end of the shard."""
    opened = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    tensorstore.open(opened).result()[start : start + len(rows)].write(rows).result()
