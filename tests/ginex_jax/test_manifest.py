"""The manifest: round trip, and every way it can be wrong."""

import json

import numpy as np
import pytest

from ginex_jax.store import manifest as manifests
from ginex_jax.store.layout import ArrayLayout
from ginex_jax.store.manifest import ArrayEntry, Manifest, ShardEntry, read_manifest, write_manifest


def entry(shape, dtype="int64"):
    layout = ArrayLayout(shape=shape, dtype=np.dtype(dtype))
    shards = tuple(ShardEntry(nbytes=layout.shard_bytes(shard), crc32c=shard + 7) for shard in range(layout.num_shards))
    return ArrayEntry(shape=shape, dtype=dtype, shards=shards)


def small(**changes):
    arrays = {"indptr": entry((4,)), "indices": entry((5,), "int32"), "features": entry((3, 7), "float32")}
    fields = {"num_nodes": 3, "num_edges": 5, "arrays": arrays, "provenance": {"source": "test"}}
    return Manifest(**fields | changes)


def test_round_trip(tmp_path):
    manifest = small(node_order="bfs", has_string_ids=True)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert json.loads((tmp_path / "zarr.json").read_text())["node_type"] == "group"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_nodes": 4}, "indptr has 4 rows, and should have 5"),
        ({"num_edges": 6}, "indices has 5 rows, and should have 6"),
        ({"num_edges": -1}, "at least 0"),
        ({"node_order": "random"}, "not known"),
        ({"arrays": {"indptr": entry((4,))}}, "array indices is missing"),
        ({"arrays": {"../other": entry((4,))}}, "not one of"),
        ({"arrays": {"indptr": entry((4,), "float32"), "indices": entry((5,))}}, r"indptr cannot be float32 \[4\]"),
        ({"arrays": {"indptr": entry((4, 2)), "indices": entry((5,))}}, r"indptr cannot be int64 \[4, 2\]"),
        ({"arrays": {"indptr": entry((4,)), "indices": entry((5,)), "labels": entry((3, 2))}}, "labels cannot be"),
    ],
)
def test_contradictions(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        small(**changes)


def test_shards_fit_the_shape():
    with pytest.raises(ValueError, match="do not fit shape"):
        ArrayEntry(shape=(5,), dtype="int64", shards=())
    with pytest.raises(ValueError, match="do not fit shape"):
        ArrayEntry(shape=(5,), dtype="int64", shards=(ShardEntry(nbytes=40, crc32c=0),))
    with pytest.raises(ValueError, match="not one of"):
        ArrayEntry(shape=(5,), dtype="object", shards=())


class TestDamage:
    def edited(self, folder, edit):
        write_manifest(folder, small())
        file = folder / "manifest.json"
        document = json.loads(file.read_text())
        edit(document)
        file.write_text(json.dumps(document))

    def test_an_edited_number(self, tmp_path):
        self.edited(tmp_path, lambda document: document.update(num_edges=4))
        with pytest.raises(ValueError, match="was edited or is damaged"):
            read_manifest(tmp_path)

    def test_an_edited_checksum(self, tmp_path):
        self.edited(tmp_path, lambda document: document["arrays"]["indptr"]["shards"][0].update(crc32c=1))
        with pytest.raises(ValueError, match="was edited or is damaged"):
            read_manifest(tmp_path)

    def test_a_newer_version(self, tmp_path):
        self.edited(tmp_path, lambda document: document.update(format_version=2))
        with pytest.raises(ValueError, match="has format version 2; this version of bandwise reads 1"):
            read_manifest(tmp_path)

    def test_another_format(self, tmp_path):
        self.edited(tmp_path, lambda document: document.update(format="bandwise.anyprec"))
        with pytest.raises(ValueError, match="is not the manifest of a dataset"):
            read_manifest(tmp_path)

    def test_a_provenance_of_another_kind(self, tmp_path):
        def edit(document):
            del document["digest"]
            document["provenance"] = ["test"]
            document["digest"] = manifests._digest(document)

        self.edited(tmp_path, edit)
        with pytest.raises(ValueError, match="its provenance is no object"):
            read_manifest(tmp_path)

    @pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
    def test_not_json(self, tmp_path, text):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json"):
            read_manifest(tmp_path)

    def test_no_manifest(self, tmp_path):
        with pytest.raises(ValueError, match="is not a dataset"):
            read_manifest(tmp_path)
