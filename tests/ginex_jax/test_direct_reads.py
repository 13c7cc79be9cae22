import concurrent.futures
import errno
import os

import numpy as np
import pytest

from ginex_jax.store import direct_reads
from ginex_jax.store.direct_reads import PieceReader, aligned_bytes

SIZES = (70_000, 300_001, 5_000)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}" for number in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        path.write_bytes(rng.bytes(size))
    return paths


def pieces(rng, count, *, largest=3000):
    """Pieces of all files, some of them at the very end, and their places, packed."""
    which = rng.integers(0, len(SIZES), count)
    sizes = rng.integers(1, largest, count)
    offsets = np.array([rng.integers(0, SIZES[file] - size + 1) for file, size in zip(which, sizes, strict=True)])
    ends = rng.random(count) < 0.1
    offsets[ends] = np.array(SIZES)[which[ends]] - sizes[ends]
    return which, offsets.astype(np.int64), sizes, np.concatenate([[0], np.cumsum(sizes)[:-1]])


def read(reader, which, offsets, sizes, places, **arguments):
    out = np.full(int((places + sizes).max()), 0xAA, np.uint8)
    counts = reader.read(which, offsets, sizes, places, out=out, **arguments)
    return out.tobytes(), counts


def read_by_hand(paths, which, offsets, sizes):
    contents = [path.read_bytes() for path in paths]
    return b"".join(contents[f][o : o + s] for f, o, s in zip(which, offsets, sizes, strict=True))


@pytest.mark.parametrize("num_threads", [1, 2, 16])
@pytest.mark.parametrize("count", [1, 7, 400])
@pytest.mark.parametrize("flag", ["direct", "buffered"])
def test_reads_pieces_anywhere(files, monkeypatch, num_threads, count, flag):
    if flag == "buffered":
        monkeypatch.setattr(direct_reads, "_O_DIRECT", 0)
    reader = PieceReader(files, max_piece_bytes=3000, num_threads=num_threads)
    for seed in range(3):
        what = pieces(np.random.default_rng(seed), count)
        contents, (requests, num_bytes) = read(reader, *what)
        assert contents == read_by_hand(files, *what[:3])
        assert 1 <= requests <= count
        assert num_bytes <= (what[2].sum() + 2 * count * (reader.unit + 8192))
    reader.close()


def test_unit_4096(files, monkeypatch):
    monkeypatch.setattr(direct_reads, "_UNITS", (4096,))
    reader = PieceReader(files, max_piece_bytes=3000)
    assert reader.unit in (1, 4096)
    what = pieces(np.random.default_rng(0), 300)
    assert read(reader, *what)[0] == read_by_hand(files, *what[:3])


def test_says_where_it_reads_through_the_page_cache(files, monkeypatch):
    monkeypatch.setattr(direct_reads, "_UNITS", ())  # nothing works
    reader = PieceReader(files, max_piece_bytes=3000)
    assert reader.unit == 1
    assert reader.note is not None
    assert "page cache" in reader.note


def test_repeats_and_neighbours_cost_one_request(files):
    reader = PieceReader(files, max_piece_bytes=512)
    offsets = np.array([1024, 0, 512, 1024, 0], np.int64)
    ones = np.ones(5, np.int64)
    contents, (requests, num_bytes) = read(reader, 0 * ones, offsets, 512 * ones, 512 * np.arange(5))
    assert (requests, num_bytes) == (1, 1536)
    assert contents == read_by_hand(files, 0 * ones, offsets, 512 * ones)
    far = np.array([0, 200_000], np.int64)
    assert read(reader, ones[:2], far, ones[:2], np.arange(2))[1][0] == 2


def test_reads_straight_into_aligned_places_and_nowhere_else(files):
    reader = PieceReader(files, max_piece_bytes=500)
    memory = aligned_bytes(8 * 512)
    memory[:] = 0xAA
    offsets = np.array([51_200, 0, 102_400, 0], np.int64)  # far apart, and one twice
    arguments = (np.ones(4, np.int64), offsets, np.full(4, 500, np.int64), np.array([0, 1024, 2048, 3072]))
    reader.read(*arguments, out=memory, room=512)
    contents = files[1].read_bytes()
    for offset, place in zip(offsets, (0, 1024, 2048, 3072), strict=True):
        assert memory[place : place + 500].tobytes() == contents[offset : offset + 500]
        assert (memory[place + 512 : place + 1024] == 0xAA).all()
    memory[:] = 0xAA
    reader.read(*arguments, out=memory, room=500)
    for place in (0, 1024, 2048, 3072):
        assert (memory[place + 500 : place + 1024] == 0xAA).all()


def test_pieces_larger_than_merged_requests(files):
    reader = PieceReader(files, max_piece_bytes=200_000, num_threads=2)
    what = pieces(np.random.default_rng(0), 1, largest=2)
    what = (np.array([1, 1, 1]), np.array([7, 50_000, 7]), np.array([200_000] * 3), np.array([0, 200_000, 400_000]))
    contents, (requests, _) = read(reader, *what)
    assert contents == read_by_hand(files, *what[:3])
    assert requests == 2


def test_no_pieces(files):
    reader = PieceReader(files, max_piece_bytes=1)
    nothing = np.empty(0, np.int64)
    assert reader.read(nothing, nothing, nothing, nothing, out=nothing) == (0, 0)
    assert PieceReader([], max_piece_bytes=1).read(nothing, nothing, nothing, nothing, out=nothing) == (0, 0)


def test_a_file_cut_behind_our_back_is_named(files):
    reader = PieceReader(files, max_piece_bytes=600)
    os.truncate(files[1], 100_000)
    ones = np.ones(300, np.int64)
    with pytest.raises(OSError, match=r"truncated: \d+ of \d+ bytes at offset \d+") as caught:
        read(reader, ones, np.arange(300) * 1000, 600 * ones, 600 * np.arange(300))
    assert caught.value.filename == str(files[1])
    assert read(reader, ones[:3], ones[:3], ones[:3], np.arange(3))[0]  # the rest can still be read


def test_the_systems_reason_is_passed_on(files):
    reader = PieceReader(files, max_piece_bytes=600)
    folder = os.open(files[0].parent, os.O_RDONLY)
    reader._descriptors[2] = folder
    with pytest.raises(IsADirectoryError, match="offset 0: Is a directory") as caught:
        read(reader, np.array([0, 2]), np.array([0, 4]), np.array([5, 5]), np.array([0, 5]))
    assert (caught.value.errno, caught.value.filename) == (errno.EISDIR, str(files[2]))
    os.close(folder)


def test_a_read_that_fails_for_a_moment_is_repeated(files, monkeypatch):
    reader = PieceReader(files, max_piece_bytes=600)
    kernel, calls = direct_reads._read, []

    def fails_once(*arguments):
        calls.append(1)
        return 0 if len(calls) == 1 else kernel(*arguments)

    monkeypatch.setattr(direct_reads, "_read", fails_once)
    what = pieces(np.random.default_rng(0), 3, largest=600)
    assert read(reader, *what)[0] == read_by_hand(files, *what[:3])
    monkeypatch.setattr(direct_reads, "_read", lambda *_: 0)
    with pytest.raises(OSError, match="keep failing"):
        read(reader, *what)


def test_threads_share_a_reader(files):
    reader = PieceReader(files, max_piece_bytes=3000, num_threads=4)
    work = [pieces(np.random.default_rng(seed), 200) for seed in range(16)]
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        for what, (contents, _) in zip(work, executor.map(lambda what: read(reader, *what), work), strict=True):
            assert contents == read_by_hand(files, *what[:3])


def test_closed(files):
    reader = PieceReader(files, max_piece_bytes=1)
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        read(reader, *pieces(np.random.default_rng(0), 3, largest=2))


def test_opening_fails_with_the_name(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        PieceReader([*files, tmp_path / "gone"], max_piece_bytes=1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        PieceReader(files, max_piece_bytes=1, num_threads=0)
