"""Arrays and matrices come out as SciPy and NumPy would load them; everything else is refused before it runs."""

import collections
import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from ginex_jax.ingest.allowed_pickle import read_array, read_csr, read_neighbors

ARRAYS = (
    np.arange(12, dtype=np.int32).reshape(3, 4),
    np.asfortranarray(np.random.default_rng(0).standard_normal((5, 3))),
    np.array([1.5, np.nan], np.float32),
    np.array([[1, 2]], ">i8"),
    np.array([True, False]),
    np.empty((0, 4), np.uint8),
)


def dumped(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def python2_pickle(array: np.ndarray) -> bytes:
    """What Python 2 wrote, protocol 2: names of old modules, and bytes as its `str`."""
    out = io.BytesIO()
    out.write(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01")
    out.write(b"(" + b"".join(b"K" + bytes([size]) for size in array.shape) + b"t")
    name = array.dtype.str[1:].encode()
    out.write(b"cnumpy\ndtype\nU" + bytes([len(name)]) + name + b"K\x00K\x01\x87R")
    out.write(b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
    data = array.tobytes()
    out.write(b"T" + len(data).to_bytes(4, "little") + data + b"tb.")
    return out.getvalue()


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_arrays_are_what_was_written(array: np.ndarray, protocol: int, tmp_path: Path) -> None:
    read = read_array(dumped(tmp_path / "a", array, protocol))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype.newbyteorder("=")


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    array = np.arange(-100, 140).reshape(12, 20)
    (tmp_path / "a").write_bytes(python2_pickle(array))
    np.testing.assert_array_equal(pickle.loads(python2_pickle(array), encoding="latin1"), array)  # NumPy's own opinion
    np.testing.assert_array_equal(read_array(tmp_path / "a"), array)


def test_sparse_matrices_are_what_was_written(tmp_path: Path) -> None:
    matrix = scipy.sparse.csr_matrix(scipy.sparse.random_array((30, 20), density=0.1, rng=0, dtype=np.float32))
    read = read_csr(dumped(tmp_path / "m", matrix))
    assert read.shape == matrix.shape
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(read, name), getattr(matrix, name))


def test_neighbours_are_a_dictionary(tmp_path: Path) -> None:
    graph = collections.defaultdict(list, {0: [1, 2], 1: [0], 2: []})
    assert read_neighbors(dumped(tmp_path / "g", graph)) == dict(graph)
    assert read_neighbors(dumped(tmp_path / "g", dict(graph), 0)) == dict(graph)


class Hostile:
    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Hostile(os.system, "touch pwned"), "posix.system"),
        (Hostile(eval, "1"), "builtins.eval"),
        (Hostile(getattr, "", "join"), "builtins.getattr"),
        (Hostile(np.load, "x"), "numpy.load"),
        (Hostile(np.fromfile, "x"), "numpy"),
        (Hostile(bytearray, 1 << 40), "builtins.bytearray"),
        (scipy.sparse.coo_matrix((2, 2)), "coo_matrix"),
        ({0: Hostile(__import__, "os")}, "builtins.__import__"),
    ],
)
@pytest.mark.parametrize("reader", [read_array, read_csr, read_neighbors])
def test_other_globals_are_refused_by_name(
    reader, value: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = dumped(tmp_path / "hostile", value)
    with pytest.raises(ValueError, match=f"hostile cannot be read: it names .*{name}.*, which is not allowed"):
        reader(path)
    assert [file.name for file in tmp_path.iterdir()] == ["hostile"]


@pytest.mark.parametrize(
    "program",
    [
        b"cnumpy\nndarray\n(N}X\x0c\x00\x00\x00__setstate__I1\nstb.",  # sets an attribute of a class
        b"cnumpy.core.multiarray\n_reconstruct\n}b.",
        b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",  # a string of a terabyte
        b"(" * 1000 + b".",
        b"}" + b"]" * 50_000 + b"0" * 49_999 + b".",
        b"\x80\x04\x95",
        b"",
        b"garbage",
        b"I1\n.",
        b"cnumpy\nndarray\n.",
        b"cnumpy\nndarray\n)R.",  # an array that was never filled
    ],
)
@pytest.mark.parametrize("reader", [read_array, read_csr, read_neighbors])
def test_damaged_programs_are_errors(reader, program: bytes, tmp_path: Path) -> None:
    (tmp_path / "hostile").write_bytes(program)
    with pytest.raises(ValueError, match="hostile"):
        reader(tmp_path / "hostile")


@pytest.mark.parametrize("array", [np.array([None, "x"], object), np.array(["abc"]), np.zeros(2, [("a", "f4")])])
def test_arrays_of_anything_but_numbers_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plain numbers are allowed"):
        read_array(dumped(tmp_path / "a", array))


def test_an_array_is_as_long_as_its_shape(tmp_path: Path) -> None:
    written = python2_pickle(np.zeros((12, 20)))
    (tmp_path / "a").write_bytes(written.replace(b"(K\x0cK\x14t", b"(K\x0cK\xfft"))
    pickletools.dis(written, io.StringIO())  # it is a pickle
    with pytest.raises(ValueError, match=r"array \(12, 255\) in 1920 bytes"):
        read_array(tmp_path / "a")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("indptr", np.array([0, 2, 1, 3], np.int32)),
        ("indptr", np.array([0, 1, 2], np.int32)),
        ("indices", np.array([0, 1, 9], np.int32)),
        ("indices", np.array([0, -1, 1], np.int32)),
        ("indices", np.array([0.0, 1.0, 1.0])),
        ("data", np.ones(2)),
        ("data", "text"),
        ("_shape", (3, -2)),
    ],
)
def test_a_matrix_that_contradicts_itself_is_refused(part: str, value: object, tmp_path: Path) -> None:
    matrix = scipy.sparse.csr_matrix((np.ones(3), np.array([0, 1, 1]), np.array([0, 1, 2, 3])), (3, 2))
    matrix.__dict__[part] = value
    with pytest.raises(ValueError, match="damaged|NumPy array"):
        read_csr(dumped(tmp_path / "m", matrix))


def test_neighbours_are_numbers(tmp_path: Path) -> None:
    for graph in ({0: ["a"]}, {"a": [1]}, {0: 1}, [0]):
        with pytest.raises(ValueError, match="g.* should be"):
            read_neighbors(dumped(tmp_path / "g", graph))


def nested() -> list:
    """A list that takes 2^60 steps to write out."""
    value: list = [1]
    for _ in range(60):
        value = [value, value]
    return value


def test_what_is_refused_is_not_written_out(tmp_path: Path) -> None:
    body = pickle.dumps(nested(), 2)[2:-1]
    with pytest.raises(ValueError, match="node 0 should be a number with a list of numbers, got list of list"):
        read_neighbors(dumped(tmp_path / "a", {0: nested()}))
    with pytest.raises(ValueError, match="got list of str"):
        read_neighbors(dumped(tmp_path / "a", {"a": ["b"]}))
    (tmp_path / "b").write_bytes(b"\x80\x02cscipy.sparse.csr\ncsr_matrix\n)R}X\x06\x00\x00\x00_shape" + body + b"sb.")
    with pytest.raises(ValueError, match="its shape should be two sizes"):
        read_csr(tmp_path / "b")
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R"
    (tmp_path / "c").write_bytes(b"\x80\x02cnumpy\nndarray\n)R(K\x01" + body + dtype + b"\x89X\x00\x00\x00\x00tb.")
    with pytest.raises(ValueError, match="whose shape or type is none"):
        read_array(tmp_path / "c")
