import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr

from ginex_jax.features import ArrayFeatures, FeatureStore
from ginex_jax.store.direct_features import DirectFeatures
from ginex_jax.store.tensorstore_features import TensorStoreFeatures, open_features
from tests.ginex_jax.stored_arrays import write_matrix, write_vector

IDS = np.concatenate([np.random.default_rng(1).integers(0, 1003, 200), [1002, 0, 0]])
VALUES = np.random.default_rng(0).standard_normal((1003, 100)).astype(np.float32)


def same(a, b):
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


@pytest.mark.parametrize("width", [1, 3, 128, 1025])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_all_stores_agree(tmp_path, width, dtype):
    values = np.random.default_rng(0).standard_normal((1003, width)).astype(dtype)
    path = write_matrix(tmp_path / "x", values)
    for implementation in ("direct", "tensorstore", "memory", None):
        store = open_features(path, implementation=implementation)
        assert isinstance(store, FeatureStore)
        assert (store.shape, store.dtype) == (values.shape, values.dtype)
        same(store.read_rows(IDS), values[IDS])
        slots = np.random.default_rng(2).permutation(300)[: len(IDS)]
        out = np.full((300, width), 7, dtype)
        store.read_rows(IDS, out=out, slots=slots)
        same(out, ArrayFeatures(values).read_rows(IDS, out=np.full((300, width), 7, dtype), slots=slots))
        assert store.read_rows(np.empty(0, np.int64)).shape == (0, width)
        assert store.stats.rows == 2 * len(IDS)


@pytest.mark.parametrize(
    "source",
    [
        lambda path: path,
        str,
        lambda path: f"file://{path}",
        lambda path: f"file://{path}/",
        lambda path: {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}},
        lambda path: {"driver": "zarr3", "kvstore": f"file://{path}/"},
        lambda path: {"driver": "file", "path": f"{path}/"},
        lambda path: json.dumps({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}),
    ],
)
def test_sources(tmp_path, source):
    path = write_matrix(tmp_path / "x", VALUES)
    same(TensorStoreFeatures(source(path)).read_rows(IDS), VALUES[IDS])


def test_the_best_that_works(tmp_path):
    path = write_matrix(tmp_path / "x", VALUES)
    assert isinstance(open_features(path), DirectFeatures)
    assert isinstance(open_features(str(path)), DirectFeatures)
    assert isinstance(open_features(f"file://{path}"), TensorStoreFeatures)
    assert isinstance(open_features(path, implementation="memory"), ArrayFeatures)
    zarr.save_array(tmp_path / "other", VALUES, zarr_format=3)  # compressed, no shards
    store = open_features(tmp_path / "other")
    assert isinstance(store, TensorStoreFeatures)
    same(store.read_rows(IDS), VALUES[IDS])
    with pytest.raises(ValueError, match="sharding_indexed"):
        open_features(tmp_path / "other", implementation="direct")
    with pytest.raises(ValueError, match="direct reads want a local folder"):
        open_features(f"file://{path}", implementation="direct")


def test_damage_is_never_passed_on_to_the_next_implementation(tmp_path):
    path = write_matrix(tmp_path / "x", VALUES)
    (path / "c" / "1" / "0").unlink()
    with pytest.raises(ValueError, match="c/1/0 is missing"):
        open_features(path)


def test_counts_distinct_chunks(tmp_path):
    store = TensorStoreFeatures(write_matrix(tmp_path / "x", VALUES))
    store.read_rows(np.array([0, 7, 8, 0]))
    assert (store.stats.rows, store.stats.requests) == (4, 2)


def test_the_indexes_of_shards_are_read_once(tmp_path):
    path = write_matrix(tmp_path / "x", VALUES)
    index_bytes, chunk_bytes = 64 * 16 + 4, 4096
    for cache_bytes, expected in ((None, chunk_bytes), (0, chunk_bytes + index_bytes)):
        store = TensorStoreFeatures(path, cache_bytes=cache_bytes)
        store.read_rows(np.array([0]))
        before = bytes_read_from_files()
        store.read_rows(np.array([300]))
        assert bytes_read_from_files() - before == expected


def bytes_read_from_files():
    (metric,) = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return metric["values"][0]["value"]


def test_one_line_for_what_cannot_be_opened(tmp_path):
    for source in (tmp_path / "gone", "{", "[1]", "unknown://x", {"driver": "zarr3"}, {"driver": "nothing"}):
        with pytest.raises(ValueError) as caught:
            TensorStoreFeatures(source)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700
    with pytest.raises(ValueError, match=r"features should be \[nodes, width\]"):
        TensorStoreFeatures(write_vector(tmp_path / "v", np.arange(5)))
    with pytest.raises(ValueError, match="an endpoint is for s3"):
        TensorStoreFeatures(tmp_path, endpoint="http://localhost:1")


@pytest.fixture
def s3(monkeypatch):
    """A local S3 service: its endpoint and a client."""
    boto3 = pytest.importorskip("boto3")
    server_module = pytest.importorskip("moto.server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    yield endpoint, client
    client.close()
    server.stop()


def test_over_s3(tmp_path, s3):
    endpoint, client = s3
    path = write_matrix(tmp_path / "x", VALUES)
    client.create_bucket(Bucket="bucket")
    for file in path.rglob("*"):
        if file.is_file():
            client.put_object(Bucket="bucket", Key=f"data/x/{file.relative_to(path)}", Body=file.read_bytes())
    shutil.rmtree(path)
    store = open_features("s3://bucket/data/x", endpoint=endpoint)
    same(store.read_rows(IDS), VALUES[IDS])
    kvstore = {"driver": "s3", "bucket": "bucket", "path": "data/x/", "endpoint": endpoint, "aws_region": "us-east-1"}
    same(TensorStoreFeatures({"driver": "zarr3", "kvstore": kvstore}).read_rows(IDS), VALUES[IDS])
