"""The manifest alone, without arrays: what `test_artefact` cannot reach through a whole artefact."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from anyprec_jax.checkpoint import manifest as manifests
from anyprec_jax.checkpoint.manifest import ArrayEntry, Manifest, MatrixEntry
from anyprec_jax.models.precision_map import QuantizationErrors


def matrix(seed: int, parent: int) -> MatrixEntry:
    books = {str(w): manifests.CODEBOOK_KIND for w in range(seed, parent + 1)}
    return MatrixEntry(k=5, seed_precision=seed, parent_precision=parent, codebooks=books)


def test_precisions_are_those_that_every_matrix_has() -> None:
    matrices = {"a": matrix(2, 6), "b": matrix(4, 8), "c": matrix(3, 7)}
    assert Manifest(matrices=matrices, arrays={}, provenance={}).precisions == (4, 5, 6)
    assert Manifest(matrices={}, arrays={}, provenance={}).precisions == ()


@pytest.mark.parametrize("nbytes", [0, 23, 25, 48])
def test_bytes_that_do_not_fit_the_shape(nbytes: int) -> None:
    with pytest.raises(ValueError, match=rf"{nbytes} bytes do not fit shape \(2, 3\) of uint32, which takes 24"):
        ArrayEntry(shape=(2, 3), dtype="uint32", nbytes=nbytes, sha256="")


def test_checksums_are_of_the_bytes_in_c_order() -> None:
    array = np.arange(6, dtype=np.uint32).reshape(2, 3)
    entry = manifests.array_entry(array)
    assert entry == manifests.array_entry(np.asfortranarray(array))
    assert entry.sha256 != manifests.array_entry(array.T).sha256
    assert manifests.array_entry(np.zeros(0, np.float32)).sha256.startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_a_manifest_too_large_to_be_one_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as stream:
        os.truncate(stream.fileno(), (64 << 20) + 1)  # a hole: it takes no room
    with pytest.raises(ValueError, match="67,108,865 bytes, too large for a manifest"):
        manifests.read(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_versions(version: object, tmp_path: Path) -> None:
    document = {"format": manifests.FORMAT, "format_version": version, "matrices": {}, "arrays": {}, "provenance": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"has format version {version!r}; this version of bandwise reads 1"):
        manifests.read(tmp_path)


class TestErrors:
    def test_they_come_back_to_the_bit(self, tmp_path: Path) -> None:
        table = np.random.default_rng(0).lognormal(sigma=9.0, size=(4, 3))
        errors = QuantizationErrors((3, 4, 6), {"o_proj": table})
        manifests.write(tmp_path, Manifest(matrices={}, arrays={}, provenance={}, errors=errors))
        got = manifests.read(tmp_path).errors
        assert got is not None and got.precisions == (3, 4, 6) and set(got.linears) == {"o_proj"}
        np.testing.assert_array_equal(got.linears["o_proj"], table)

    def test_most_artefacts_have_none(self, tmp_path: Path) -> None:
        manifests.write(tmp_path, Manifest(matrices={}, arrays={}, provenance={}))
        assert "errors" not in json.loads((tmp_path / "manifest.json").read_text())
        assert manifests.read(tmp_path).errors is None

    @pytest.mark.parametrize(
        "errors",
        [
            [],
            {"precisions": [3, 4]},
            {"precisions": [4, 3], "linears": {}},
            {"precisions": [3, 9], "linears": {}},
            {"precisions": ["3"], "linears": {}},
            {"precisions": [3, 4], "linears": {"o_proj": [[1.0, 2.0], [3.0]]}},
            {"precisions": [3, 4], "linears": {"o_proj": [[1.0, -2.0]]}},
            {"precisions": [3, 4], "linears": {"o_proj": [[1.0, float("nan")]]}},
            {"precisions": [3, 4], "linears": {"o_proj": [[1.0, {}]]}},
            {"precisions": [3, 4], "linears": ["o_proj"]},
        ],
    )
    def test_nonsense_is_damage(self, errors: object, tmp_path: Path) -> None:
        document = {"format": manifests.FORMAT, "format_version": 1, "matrices": {}, "arrays": {}, "provenance": {}}
        (tmp_path / "manifest.json").write_text(json.dumps(document | {"errors": errors}))
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            manifests.read(tmp_path)
