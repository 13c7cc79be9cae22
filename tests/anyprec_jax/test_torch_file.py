"""PyTorch's files read without PyTorch: real ones, and hostile ones."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anyprec_jax.checkpoint import torch_file
from anyprec_jax.checkpoint.torch_file import TorchFile
from anyprec_jax.checkpoint.torch_pickle import Storage, Tensor, read_tensors, write_tensors

torch = pytest.importorskip("torch", reason="the files are PyTorch's own: install the extra 'parity'")

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
]


def saved(path: Path, value: object, **options: object) -> Path:
    torch.save(value, path, **options)
    return path


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float64).numpy()


def assert_reads(path: Path, expected: dict[str, torch.Tensor]) -> None:
    file = TorchFile(path)
    assert set(file.tensors) == set(expected)
    for name, tensor in expected.items():
        values = file.read(name)
        assert values.shape == tuple(tensor.shape)
        assert str(tensor.dtype) == f"torch.{file.dtype(name).name}"
        np.testing.assert_array_equal(values.astype(np.float64), numbers(tensor))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    assert_reads(
        saved(tmp_path / "a.bin", {"x": tensor, "empty": torch.zeros(0, dtype=dtype)}),
        {"x": tensor, "empty": tensor[:0, 0, 0]},
    )


def test_views_of_one_storage(tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    views = {
        "all": base,
        "rows": base[2:4],
        "columns": base[:, 3:7],
        "turned": base.T,
        "one": base[1, 2],
        "wide": base[:, :1].expand(5, 9),
    }
    assert_reads(saved(tmp_path / "a.bin", views), views)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts_of_modules(protocol: int, tmp_path: Path) -> None:
    """OrderedDict with a `_metadata` attribute; parameters where it was kept with its variables."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    for state in (module.state_dict(), module.state_dict(keep_vars=True)):
        assert_reads(
            saved(tmp_path / f"{len(list(tmp_path.iterdir()))}.bin", state, pickle_protocol=protocol), dict(state)
        )


def test_what_is_written_torch_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a.qweight": rng.integers(-(2**31), 2**31, (3, 5, 2), np.int32),
        "a.lut3": rng.normal(size=(5, 8)).astype(np.float16),
        "ä.weight": rng.normal(size=(7,)).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "turned": rng.normal(size=(4, 6)).astype(np.float32).T,
    }
    with torch_file.writing(tmp_path / "a.bin") as writer:
        for name, values in arrays.items():
            writer.write(name, values)
    for options in ({}, {"mmap": True}):
        back = torch.load(tmp_path / "a.bin", weights_only=True, **options)
        assert list(back) == list(arrays)
        for name, values in arrays.items():
            np.testing.assert_array_equal(back[name].numpy(), values)
            assert back[name].is_contiguous()
    assert zipfile.ZipFile(tmp_path / "a.bin").testzip() is None
    file = TorchFile(tmp_path / "a.bin")
    for name, values in arrays.items():
        np.testing.assert_array_equal(file.read(name), values)


def test_large_numbers_survive() -> None:
    """What no test can afford to store: sizes beyond 32 bits."""
    tensors = {"x": Tensor(Storage("float16", "0", 2**40), 2**33, (2**32, 2), (2, 1))}
    assert read_tensors(write_tensors(tensors)) == tensors


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


HOSTILE: dict[str, tuple[object, str]] = {
    "a shell": ({"x": Calls(os.system, "touch pwned")}, "names 'posix.system', which is not allowed"),
    "eval": ({"x": Calls(eval, "1")}, r"builtins?_*.eval"),
    "getattr": ({"x": Calls(getattr, "a", "join")}, "getattr', which is not allowed"),
    "NumPy's arrays": ({"x": np.zeros(3)}, r"_reconstruct', which is not allowed"),
    "a class": ({"x": Path("/etc/passwd")}, "Path', which is not allowed"),
    "an object of ours": ({"x": Calls(TorchFile, Path("/etc/passwd"))}, "TorchFile', which is not allowed"),
    "torch's own code": ({"x": Calls(torch.load, "/etc/passwd")}, r"torch.serialization.load', which is not allowed"),
    "a list": ([1, 2], "APPENDS, which is not allowed"),
    "numbers": ({"x": 1.5}, "is not a dict of tensors"),
    "a nested dict": ({"x": {"y": 2}}, "is not a dict of tensors"),
    "keys that are numbers": ({1: "x"}, "keys that are not text"),
    "a set": ({"x": {1}}, "not allowed"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pickle_that_wants_more_is_refused(
    kind: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, message = HOSTILE[kind]
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(value, protocol=protocol)
    if protocol == 0:  # the instructions of text pickles are not those of PyTorch
        message = "not allowed|not a dict|not text"
    with zipfile.ZipFile("a.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    with pytest.raises(ValueError, match=message) as raised:
        TorchFile(Path("a.bin"))
    assert "\n" not in str(raised.value) and "a.bin" in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_saved_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torch.nn.modules.linear.Linear', which is not allowed"):
        TorchFile(saved(tmp_path / "a.bin", torch.nn.Linear(2, 2)))


INSTRUCTIONS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "damaged|cut short|exhausted"),
    "cut short": (b"\x80\x02}", "cut short|exhausted"),
    "an empty stack": (b"\x80\x02.", "damaged"),
    "a memo that is not there": (b"\x80\x02h\x07.", "damaged"),
    "a memo at the end of the world": (b"\x80\x02}r\xff\xff\xff\xff.", "^$"),
    "no mark": (b"\x80\x02}}u.", "damaged"),
    "no instruction": (b"\x80\x02\xff.", "unknown"),
    "a text longer than the file": (b"\x80\x02X\xff\xff\xff\x7fx.", "expected"),
    "attributes of a tuple": (b"\x80\x02)}b.", "not a dict"),
    "a call of a text": (b"\x80\x02X\x01\x00\x00\x00x)R.", "calls something"),
    "a call of a storage": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls something"),
    "a tensor of nothing": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "make no tensor"),
    "persistent nonsense": (b"\x80\x02)Q.", "not a tensor's storage"),
    "an instance": (b"\x80\x02(ios\nsystem\n.", "INST, which is not allowed"),
    "a new object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ, which is not allowed"),
    "an extension": (b"\x80\x02\x82\x01.", "EXT1, which is not allowed"),
    "a buffer": (b"\x80\x05\x97.", "NEXT_BUFFER, which is not allowed"),
    "a name with spaces": (b"\x80\x02ctorch\nFloat Storage\n.", "not allowed"),
    "a name from the outside": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "not allowed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_instructions(kind: str) -> None:
    pickled, message = INSTRUCTIONS[kind]
    if message == "^$":
        assert read_tensors(pickled) == {}  # and it takes no room
        return
    with pytest.raises(ValueError, match=message) as raised:
        read_tensors(pickled)
    assert "\n" not in str(raised.value)


def test_a_tower_of_tuples_costs_nothing() -> None:
    """Two to the power of 60 leaves, spelt out in 60 lines: nothing may walk over them."""
    tower = b"\x80\x02)" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    for ending in (b".", b"}q\xf0h\x3b)s.", b"Q.", b")R."):
        with pytest.raises(ValueError, match="pickle"):
            read_tensors(tower + ending)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return saved(tmp_path / "a.bin", OrderedDict(x=torch.arange(1000, dtype=torch.float32), y=torch.ones(3, 4)))


def rewritten(path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None], **options: int) -> None:
    """The archive with its entries changed, or left out."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in entries:
            if (changed := change(name, content)) is not None:
                archive.writestr(*changed)


def claim(path: Path, **sizes: object) -> None:
    """Other words of the pickle about tensor x."""
    fields = {"count": 1000, "offset": 0, "shape": (1000,), "strides": (1,), "dtype": "float32", "key": "0"} | sizes
    tensor = Tensor(
        Storage(fields["dtype"], fields["key"], fields["count"]), fields["offset"], fields["shape"], fields["strides"]
    )
    pickled = write_tensors({"x": tensor})
    rewritten(path, lambda name, content: (name, pickled if name.endswith("data.pkl") else content))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(np.arange(500, 600, dtype=np.float32).tobytes()) + 9] ^= 4
    path.write_bytes(bytes(content))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "no zip archive"),
    "text": (lambda p: p.write_text("weights"), "no zip archive"),
    "cut in half": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "no zip archive, or cut short"),
    "beginning lost": (lambda p: p.write_bytes(p.read_bytes()[3000:]), "not read"),
    "compressed": (lambda p: rewritten(p, lambda n, c: (n, c), compression=zipfile.ZIP_DEFLATED), "compressed"),
    "a bomb": (
        lambda p: rewritten(p, lambda n, c: (n, c if "data/" not in n else bytes(50_000_000)), compression=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "no pickle": (lambda p: rewritten(p, lambda n, c: None if n.endswith(".pkl") else (n, c)), "no data.pkl"),
    "no storage": (lambda p: rewritten(p, lambda n, c: None if n.endswith("data/0") else (n, c)), "lacks the storage '0'"),
    "a storage from outside": (lambda p: claim(p, key="../../etc/passwd"), "lacks the storage"),
    "a short storage": (lambda p: rewritten(p, lambda n, c: (n, c[:-4] if n.endswith("data/0") else c)), "3,996 bytes, and 1,000 float32"),
    "a huge storage": (lambda p: claim(p, count=2**50, shape=(2**50,)), "4,000 bytes, and 1,125,899,906,842,624 float32"),
    "a huge tensor": (lambda p: claim(p, shape=(2**50,)), "reaches beyond its storage"),
    "an offset": (lambda p: claim(p, offset=1), "reaches beyond its storage"),
    "strides": (lambda p: claim(p, shape=(10, 10), strides=(1, 200)), "reaches beyond its storage"),
    "another dtype": (lambda p: claim(p, dtype="float64"), "4,000 bytes, and 1,000 float64"),
    "big-endian": (lambda p: rewritten(p, lambda n, c: (n, b"big" if n.endswith("byteorder") else c)), "byte order"),
    "the old format": (lambda p: torch.save({"x": torch.ones(2)}, p, _use_new_zipfile_serialization=False), "before 1.6"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_clear_line(kind: str, sound: Path) -> None:
    damage, message = DAMAGE[kind]
    damage(sound)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as raised:
        TorchFile(sound)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(raised.value) and "a.bin" in str(raised.value)
    assert peak < 5_000_000


def test_a_flipped_bit(sound: Path) -> None:
    flipped(sound)
    with pytest.raises(ValueError, match="storage 0 does not match its checksum"):
        TorchFile(sound).read("x")
    assert TorchFile(sound).read("y").shape == (3, 4)


def test_two_entries_of_one_name(sound: Path) -> None:
    with zipfile.ZipFile(sound, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"again")
    with pytest.raises(ValueError, match="two entries"):
        TorchFile(sound)


def test_entries_that_lie_over_each_other(tmp_path: Path) -> None:
    """A directory of a thousand names for the same bytes: their sizes add up to more than the file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
        first = archive.infolist()[0]
        for number in range(1000):
            copy = zipfile.ZipInfo(f"archive/data/{number}")
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            copy.file_size = copy.compress_size = first.file_size
            archive.filelist.append(copy)
        archive._didModify = True
    (tmp_path / "a.bin").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="more than the file"):
        TorchFile(tmp_path / "a.bin")


def test_no_truncation_and_no_flipped_byte_surprises(tmp_path: Path) -> None:
    """Whatever is damaged: read as before, or refused with a ValueError of one line."""
    path = saved(tmp_path / "a.bin", {"x": torch.arange(40, dtype=torch.int32)})
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content[: rng.integers(len(content))] if rng.random() < 0.3 else content)
        for place in rng.integers(0, max(len(damaged), 1), 3)[: len(damaged)]:
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            file = TorchFile(path)
            for name in file.tensors:
                file.read(name)
        except ValueError as error:
            assert "\n" not in str(error)


def test_a_pickle_too_large_to_be_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.infolist()[0].file_size = archive.infolist()[0].compress_size = (64 << 20) + 1
    with (tmp_path / "a.bin").open("r+b") as stream:  # a hole: it takes no room
        directory = stream.read()
        stream.seek(0)
        start = directory.index(b"PK\x01\x02")
        stream.truncate(0)
        stream.write(directory[:start])
        stream.seek((64 << 20) + 1, os.SEEK_CUR)
        end = bytearray(directory[start:])
        place = end.index(b"PK\x05\x06")
        end[place + 16 : place + 20] = struct.pack("<I", stream.tell())
        stream.write(end)
    with pytest.raises(ValueError, match="67,108,865 bytes, too large"):
        TorchFile(tmp_path / "a.bin")
