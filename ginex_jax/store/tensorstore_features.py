"""Feature rows through TensorStore: from any place and any layout that it reads; and the choice between the stores."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import tensorstore
from jaxtyping import Int64, Integer, Shaped

from ginex_jax.features import ArrayFeatures, FeatureStore, ReadCounter, ReadStats, destination
from ginex_jax.store.direct_features import DirectFeatures
from ginex_jax.store.shards import UnknownLayoutError

Implementation: TypeAlias = Literal["direct", "tensorstore", "memory"]
Source: TypeAlias = str | Path | Mapping[str, Any]

_ENTRY_BYTES = 16  # of a shard's index
_EXTRA_CACHE_BYTES = 32 << 20  # for chunks on their way, so that they do not push indexes out
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class TensorStoreFeatures:
    """Random access to the rows of an array [nodes, width] that TensorStore opens. A `FeatureStore`.

    Bytes and requests in `stats` are those of distinct chunks asked for, whether or not TensorStore still had one.
    """

    def __init__(
        self,
        source: Source,
        *,
        endpoint: str | None = None,
        cache_bytes: int | None = None,
        num_requests: int = 64,
    ) -> None:
        """Opens the array.

        Args:
          source: its folder; or a URL of its folder (`s3://`, `gs://`, `http://`, `file://`); or a TensorStore spec, as a mapping or as
            JSON. zarr 3 unless the spec says otherwise.
          endpoint: of an S3 service other than Amazon's, for an `s3://` URL. Credentials are found where Amazon's own tools find them.
          cache_bytes: memory for the indexes of shards, without which every read fetches them again. By default, what they take and
            32 MiB.
          num_requests: on their way at the same time.

        Raises:
          ValueError: there is no such array, it is no matrix, or it cannot be opened; one line that says why.
        """
        spec = _spec(source, endpoint)
        self._name = str(source) if not isinstance(source, Mapping) else json.dumps(spec)
        if cache_bytes is None:
            cache_bytes = _index_bytes(_opened(spec, 0, num_requests, self._name)) + _EXTRA_CACHE_BYTES
        self._store = _opened(spec, cache_bytes, num_requests, self._name)
        if self._store.ndim != 2:
            raise ValueError(f"features should be [nodes, width], and {self._name} is {list(self._store.shape)}")
        self._dtype = _dtype(self._store)
        self._chunk_rows = max(1, _chunk_shape(self._store.chunk_layout.read_chunk)[0])
        self._counter = ReadCounter()

    @property
    def shape(self) -> tuple[int, int]:
        return self._store.shape[0], self._store.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def stats(self) -> ReadStats:
        return self._counter.stats

    def read_rows(
        self,
        ids: Int64[np.ndarray, " rows"],
        *,
        out: Shaped[np.ndarray, "places width"] | None = None,
        slots: Integer[np.ndarray, " rows"] | None = None,
    ) -> Shaped[np.ndarray, "places width"]:
        """As `FeatureStore.read_rows`."""
        start = time.perf_counter()
        out = destination(self, ids, out, slots)
        chunks = 0
        if len(ids):
            out[slice(len(ids)) if slots is None else slots] = self._rows(ids)
            chunks = len(np.unique(ids // self._chunk_rows))
        num_bytes = chunks * self._chunk_rows * self.shape[1] * self._dtype.itemsize
        self._counter.add(rows=len(ids), num_bytes=num_bytes, requests=chunks, start=start)
        return out

    def _rows(self, ids: Int64[np.ndarray, " rows"]) -> Shaped[np.ndarray, "rows width"]:
        try:
            return self._store[ids].read().result().view(self._dtype)
        except (ValueError, OSError) as error:
            raise OSError(f"{self._name} cannot be read: {_first_line(error)}") from error


def open_features(
    source: Source, *, implementation: Implementation | None = None, endpoint: str | None = None
) -> FeatureStore:
    """Opens a feature matrix.

    Args:
      source: see `TensorStoreFeatures`; "direct" takes a folder only.
      implementation: "direct" reads at the rate of the local disk, "tensorstore" from anywhere, "memory" reads everything now. By
        default the first of "direct" and "tensorstore" that works.
      endpoint: see `TensorStoreFeatures`.

    Raises:
      ValueError: the array is missing, damaged, or not what the implementation reads.
      OSError: the disk or the network failed.
    """
    folder = _folder(source)
    if implementation in ("direct", None) and folder is not None:
        try:
            return DirectFeatures(folder)
        except UnknownLayoutError:
            if implementation == "direct":
                raise
    if implementation == "direct":
        raise ValueError(f"direct reads want a local folder, got {source!s:.200}")
    if implementation not in ("tensorstore", "memory", None):
        raise ValueError(f"implementation should be direct, tensorstore or memory, got {implementation!r}")
    store = TensorStoreFeatures(source, endpoint=endpoint)
    if implementation == "memory":
        return ArrayFeatures(store.read_rows(np.arange(store.shape[0])))
    return store


def _folder(source: Source) -> Path | None:
    """None where it is a URL or a spec."""
    if isinstance(source, Mapping) or (
        isinstance(source, str) and ("://" in source or source.lstrip().startswith("{"))
    ):
        return None
    return Path(source)


def _spec(source: Source, endpoint: str | None) -> dict[str, Any]:
    if isinstance(source, str) and source.lstrip().startswith("{"):
        try:
            source = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source!s:.200} is not the JSON of a TensorStore spec: {error}") from error
    if isinstance(source, Mapping):
        kvstore, given = source.get("kvstore"), dict(source)
        if kvstore is None and "path" in given:  # a spec of a place alone
            kvstore, given = given, {}
    elif isinstance(source, str) and "://" in source:
        kvstore, given = _folder_url(source), {}
    else:
        kvstore, given = {"driver": "file", "path": f"{Path(source).absolute()}/"}, {}
    if endpoint is not None:
        kvstore = _with_endpoint(kvstore, endpoint)
    return {"driver": "zarr3", **given, "kvstore": kvstore}


def _folder_url(url: str) -> str:
    return url if url.endswith("/") or "|" in url or "?" in url else f"{url}/"


def _with_endpoint(kvstore: Any, endpoint: str) -> dict[str, Any]:
    if isinstance(kvstore, str) and kvstore.startswith("s3://"):
        bucket, _, path = kvstore.removeprefix("s3://").partition("/")
        kvstore = {"driver": "s3", "bucket": bucket, "path": path}
    if not isinstance(kvstore, Mapping) or kvstore.get("driver") != "s3":
        raise ValueError(f"an endpoint is for s3:// URLs, got {kvstore!s:.200}")
    return {"aws_region": "us-east-1", **kvstore, "endpoint": endpoint}


def _opened(spec: dict[str, Any], cache_bytes: int, num_requests: int, name: str) -> tensorstore.TensorStore:
    context = {
        "cache_pool": {"total_bytes_limit": cache_bytes},
        "file_io_concurrency": {"limit": num_requests},
        "s3_request_concurrency": {"limit": num_requests},
        "http_request_concurrency": {"limit": num_requests},
    }
    # An array is not written while it is read: metadata and indexes are looked at once.
    spec = {"recheck_cached_data": "open", "recheck_cached_metadata": "open", **spec}
    spec["context"] = {**context, **spec.get("context", {})}
    try:
        return tensorstore.open(spec, open=True, read=True).result()
    except (ValueError, OSError, TypeError) as error:
        raise ValueError(f"{name:.300} cannot be opened: {_first_line(error)}") from error


def _index_bytes(store: tensorstore.TensorStore) -> int:
    """Of all shards' indexes; 0 where there are none."""
    layout = store.chunk_layout
    if store.ndim != 2:
        return 0
    inner, shard = (np.array(_chunk_shape(chunk)) for chunk in (layout.read_chunk, layout.write_chunk))
    if (inner == 0).any() or (shard == inner).all():
        return 0
    num_shards = -(-np.array(store.shape) // shard)
    return int(num_shards.prod() * (shard // inner).prod() * _ENTRY_BYTES)


def _chunk_shape(grid: tensorstore.ChunkLayout.Grid) -> tuple[int, ...]:
    return tuple(size or 0 for size in grid.shape or ())  # None or 0 where an array has no chunks along an axis


def _dtype(store: tensorstore.TensorStore) -> np.dtype[Any]:
    dtype = np.dtype(store.dtype.numpy_dtype)
    metadata = store.spec().to_json().get("metadata", {})
    return _BFLOAT16 if dtype == np.uint16 and metadata.get("attributes", {}).get("dtype") == "bfloat16" else dtype


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
