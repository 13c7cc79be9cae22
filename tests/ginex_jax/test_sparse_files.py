"""Sparse matrices saved by SciPy, against SciPy's own coordinates."""

import numpy as np
import pytest
import scipy.sparse

from ginex_jax.ingest import sparse_files
from ginex_jax.ingest.sparse_files import read_sparse, sparse_shape

RNG = np.random.default_rng(0)


def matrix(kind, *, shape=(300, 300), dtype=np.float32):
    """With empty rows and columns at the end, and one row that is full."""
    dense = scipy.sparse.random_array((200, 200), density=0.02, rng=RNG, dtype=np.float32).tolil()
    dense[7, :] = 1
    found = scipy.sparse.coo_array(dense)
    found = scipy.sparse.coo_array((found.data.astype(dtype), found.coords), shape=shape)
    return found.asformat(kind)


def read(path, **options):
    blocks = list(read_sparse(path, **options))
    assert all(len(block.sources) for block in blocks)
    row = 1
    for block in blocks:
        assert block.first_row == row
        row += len(block.sources)
    return [
        None if blocks[0][i] is None else np.concatenate([block[i] for block in blocks]).tolist() for i in range(3)
    ], max(len(block.sources) for block in blocks)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("edges_per_block", [1, 64, 1 << 20])
@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_equals_scipy(tmp_path, monkeypatch, kind, edges_per_block, compressed):
    monkeypatch.setattr(sparse_files, "_POINTERS_AT_ONCE", 13)
    saved = matrix(kind) if edges_per_block > 1 else matrix(kind)[:20, :9]
    path = tmp_path / "matrix.npz"
    scipy.sparse.save_npz(path, saved, compressed=compressed)
    found, longest = read(path, edges_per_block=edges_per_block, weighted=True)
    oracle = saved.tocoo()
    assert found == [oracle.coords[0].tolist(), oracle.coords[1].tolist(), oracle.data.tolist()]
    assert longest <= edges_per_block
    assert sparse_shape(path) == saved.shape
    assert read(path, weighted=False)[0] == [*found[:2], None]


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.float64])
def test_kinds_of_values(tmp_path, dtype):
    saved = matrix("csr", dtype=dtype)
    scipy.sparse.save_npz(tmp_path / "matrix.npz", saved)
    assert read(tmp_path / "matrix.npz", weighted=True)[0][2] == saved.data.astype(np.float64).tolist()


def test_stored_zeros_and_repeated_entries_are_edges(tmp_path):
    saved = scipy.sparse.coo_matrix(([0.0, 2.0, 3.0], ([1, 2, 2], [0, 1, 1])), shape=(3, 5))
    scipy.sparse.save_npz(tmp_path / "matrix.npz", saved)
    assert read(tmp_path / "matrix.npz", weighted=True)[0] == [[1, 2, 2], [0, 1, 1], [0.0, 2.0, 3.0]]
    assert sparse_shape(tmp_path / "matrix.npz") == (3, 5)


@pytest.mark.parametrize("kind", ["csr", "coo"])
def test_no_entries(tmp_path, kind):
    scipy.sparse.save_npz(tmp_path / "matrix.npz", scipy.sparse.coo_array((4, 4), dtype=float).asformat(kind))
    assert list(read_sparse(tmp_path / "matrix.npz")) == []


@pytest.mark.parametrize("kind", ["bsr", "dia"])
def test_other_formats(tmp_path, kind):
    scipy.sparse.save_npz(tmp_path / "matrix.npz", scipy.sparse.eye_array(4).asformat(kind))
    with pytest.raises(ValueError, match=rf"is a {kind} matrix, and csr, csc, coo can be read: save it as .tocsr"):
        sparse_shape(tmp_path / "matrix.npz")


DAMAGE = {
    "indptr should be": {"indptr": np.array([0, 1])},
    "indptr should begin with 0": {"indptr": np.array([1, 1, 2, 3])},
    "indptr falls after list 1": {"indptr": np.array([0, 2, 1, 3])},
    "indptr goes up to 9": {"indptr": np.array([0, 2, 2, 9])},
    "indptr ends at 2": {"indptr": np.array([0, 1, 1, 2])},
    "should have 3 values": {"data": np.ones(2)},
    "should be a vector of numbers": {"indices": np.ones((3, 1), int)},
    "data should be a vector of numbers, got complex128": {"data": np.ones(3, complex)},
    "its shape is": {"shape": np.array([3])},
    "its shape is \\[\\]": {"shape": np.empty(0, int)},
    "is a nameless matrix": {"format": np.empty(0, "S3")},
    "is no sparse matrix saved by SciPy: it has": {"format": None},
    "has no array 'indices'": {"indices": None},
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage(tmp_path, message):
    path = tmp_path / "matrix.npz"
    members = {
        "format": np.array(b"csr"),
        "shape": np.array([3, 3]),
        "indptr": np.array([0, 1, 2, 3]),
        "indices": np.array([0, 1, 2]),
        "data": np.ones(3),
    }
    np.savez(path, **{name: array for name, array in (members | DAMAGE[message]).items() if array is not None})
    with pytest.raises(ValueError, match=rf"{path}.*{message}"):
        list(read_sparse(path, weighted=True))


def test_coordinates_of_different_lengths(tmp_path):
    path = tmp_path / "matrix.npz"
    np.savez(path, format=np.array(b"coo"), shape=np.array([3, 3]), row=np.arange(3), col=np.arange(2), data=np.ones(3))
    with pytest.raises(ValueError, match=r"3 rows of entries, and \(2,\) columns"):
        list(read_sparse(path))
