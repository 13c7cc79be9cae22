"""Edge lists of every format against the arrays they were written from; and what is wrong with them."""

import collections
import gzip
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ginex_jax.ingest import edge_text
from ginex_jax.ingest.edge_blocks import clean
from ginex_jax.ingest.edge_files import count_edges, guess_edges, read_edges
from ginex_jax.ingest.sources import open_source

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
SOURCES, TARGETS = RNG.integers(0, 1000, (2, 537))
WEIGHTS = RNG.random(537, np.float32)


def lines(delimiter, *columns):
    return "".join(delimiter.join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)


def write_text(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def parquet(path, row_group_size=100, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


WRITERS = {
    "e.parquet": lambda path: parquet(path, other=WEIGHTS, dst=TARGETS, src=SOURCES.astype(np.int32), w=WEIGHTS),
    "e.pq": lambda path: parquet(path, src=SOURCES.astype(float), dst=TARGETS.astype(np.uint16), w=WEIGHTS),
    "e.csv": lambda path: write_text(path, "dst,w,src\n" + lines(",", TARGETS, WEIGHTS, SOURCES)),
    "quoted.csv": lambda path: write_text(path, '"src";"dst";"w"\r\n' + lines(";", SOURCES, TARGETS, WEIGHTS)),
    "bare.csv": lambda path: write_text(path, lines(",", SOURCES, TARGETS, WEIGHTS, WEIGHTS)),
    "mark.csv": lambda path: write_text(path, "\ufeff" + lines(",", SOURCES, TARGETS, WEIGHTS)),
    "e.tsv": lambda path: write_text(path, "src\tdst\tw\n" + lines("\t", SOURCES, TARGETS, WEIGHTS)),
    "e.txt": lambda path: write_text(path, "# some\n# comments, two\n" + lines(" ", SOURCES, TARGETS, WEIGHTS)),
    "e.csv.gz": lambda path: write_text(path, "% note\nsrc,dst,w\n" + lines(",", SOURCES, TARGETS, WEIGHTS)),
    "no_end.tsv": lambda path: write_text(path, lines("\t", SOURCES, TARGETS, WEIGHTS)[:-1]),
    "e.npz": lambda path: npz(path, src=SOURCES.astype(np.uint32), dst=TARGETS, w=WEIGHTS),
    "index.npz": lambda path: npz(path, edge_index=np.stack([SOURCES, TARGETS]), w=WEIGHTS),
}
UNWEIGHTED = {
    "rows.npy": lambda path: np.save(path, np.stack([SOURCES, TARGETS], 1)),
    "rows_fortran.npy": lambda path: np.save(path, np.asfortranarray(np.stack([SOURCES, TARGETS], 1))),
    "columns.npy": lambda path: np.save(path, np.stack([SOURCES, TARGETS]).astype(">i4")),
    "columns_fortran.npy": lambda path: np.save(path, np.asfortranarray(np.stack([SOURCES, TARGETS]))),
    "rows.npz": lambda path: npz(path, edge_index=np.stack([SOURCES, TARGETS], 1)),
    "floats.npy": lambda path: np.save(path, np.stack([SOURCES, TARGETS]).astype(np.float32)),
}


def read(*paths, num_nodes=None, skip_bad_rows=False, skipped=None, **options):
    """All columns, joined."""
    blocks = []
    row = {}
    for raw in read_edges(paths, **options):
        assert raw.first_row == row.get(raw.path, 1)
        row[raw.path] = raw.first_row + len(raw.sources) + len(raw.bad_rows)
        assert len(raw.sources) <= options.get("edges_per_block", 1 << 20)
        blocks.append(clean(raw, num_nodes=num_nodes, skip_bad_rows=skip_bad_rows, skipped=skipped))
    return joined(blocks)


def joined(blocks):
    return [
        None if any(column is None for column in columns) else np.concatenate(columns).tolist()
        for columns in zip(*blocks, strict=True)
    ]


@pytest.mark.parametrize("edges_per_block", [50, 1 << 20])
@pytest.mark.parametrize("name", [*WRITERS, *UNWEIGHTED])
def test_every_format(tmp_path, monkeypatch, name, edges_per_block):
    monkeypatch.setattr(edge_text, "_READ_BYTES", 700)
    path = tmp_path / name
    (WRITERS | UNWEIGHTED)[name](path)
    expected = [SOURCES.tolist(), TARGETS.tolist()]
    assert read(path, edges_per_block=edges_per_block) == [*expected, None]
    if name in WRITERS:
        assert read(path, edges_per_block=edges_per_block, weight_column="w") == [*expected, WEIGHTS.tolist()]
    is_text = set(path.suffixes) & {".csv", ".tsv", ".txt"}
    assert count_edges([path]) == (None if is_text else len(SOURCES))


def test_several_files_and_folders_in_their_order(tmp_path):
    (tmp_path / "parts").mkdir()
    for number, name in enumerate(["b.parquet", "a.csv"]):
        frame = {"s": [number], "t": [7]}
        parquet(tmp_path / "parts" / name, **frame) if name.endswith("t") else write_text(
            tmp_path / "parts" / name, "s,t\n1,7\n"
        )
    (tmp_path / "parts" / "_SUCCESS").touch()
    np.save(tmp_path / "x.npy", np.array([[5, 6]]))
    options = {"source_column": "s", "target_column": "t"}
    assert read(tmp_path / "x.npy", tmp_path / "parts", **options) == [[5, 1, 0], [6, 7, 7], None]
    assert count_edges([tmp_path / "x.npy", tmp_path / "parts"]) is None
    assert count_edges([tmp_path / "x.npy", tmp_path / "parts" / "b.parquet"]) == 2


@pytest.mark.parametrize("content", ["", "src,dst\n", "src,dst", "\n\n", "# nothing\n"])
def test_text_without_edges(tmp_path, content):
    write_text(tmp_path / "e.csv", content)
    assert read(tmp_path / "e.csv") == []


BAD_TEXT = [
    ("src,dst\n1,2\n-1,2\n", r"row 2 .counting from 1.: value '-1' of source: it should be a whole number from 0 to 9"),
    ("src,dst\n1,10\n", "row 1 .counting from 1.: value '10' of target"),
    ("src,dst\n1,2\n3,4\n5,\n", "row 3 .counting from 1.: value '' of target"),
    (
        "src,dst\n1,2\n3,x7\n",
        r"row 2 .counting from 1.: value 'x7' of target: .* \(ids that are text need to be mapped: --map-ids\)",
    ),
    ("src,dst\n1,2.5\n", "row 1 .counting from 1.: value '2.5' of target"),
    ("src,dst\n0x1,2\n", "row 1 .counting from 1.: value '0x1' of source"),
    ("src,dst\n1,99999999999999999999999\n", "row 1 .counting from 1.: value '9+' of target"),
    ("src,dst\n1,2\n\n3\n4,5\n", "row 2 .counting from 1.: value '3': 1 columns, and the first row has 2"),
    ("src,dst\n1,2\n3,4\n5,6,7\n8,-2\n", "row 3 .counting from 1.: value '5,6,7': 3 columns"),
    ("src,dst\n1,2\n5,6,7\n8,9\n3,-2\n", "row 2 .counting from 1.: value '5,6,7': 3 columns"),
    ("src,dst\n1,2\n3,-2\n5,6,7\n8,9\n", "row 2 .counting from 1.: value '-2' of target"),
    ("src,dst\n1\n2\n", "row 1 .counting from 1.: value '1': 1 columns"),
    ("1,2\nx,3\n", "row 2 .counting from 1.: value 'x' of source"),
]


@pytest.mark.parametrize(("content", "message"), BAD_TEXT)
def test_bad_rows_of_text(tmp_path, content, message):
    path = tmp_path / "e.csv"
    write_text(path, content)
    with pytest.raises(ValueError, match=rf"^{path} {message}"):
        read(path, num_nodes=10)
    skipped = collections.Counter()
    found = read(path, num_nodes=10, skip_bad_rows=True, skipped=skipped)
    good = [row.split(",") for row in content.splitlines()]
    good = [
        tuple(map(int, row))
        for row in good
        if len(row) == 2 and all(field.isdecimal() and int(field) < 10 for field in row)
    ]
    assert list(zip(*found[:2], strict=True)) == good
    rows = sum(bool(row) for row in content.splitlines()) - content.startswith("src")
    assert skipped == {"edges": rows - len(good)}


def test_ragged_rows_keep_the_count_across_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(edge_text, "_READ_BYTES", 64)
    rows = [f"{i}" if i % 7 == 3 or i in (40, 41, 42) else f"{i},{i}" for i in range(200)]
    rows[150] = "150,-1"
    write_text(tmp_path / "e.csv", "src,dst\n" + "\n".join(rows))
    skipped = collections.Counter()
    found = read(tmp_path / "e.csv", skip_bad_rows=True, skipped=skipped, edges_per_block=4)
    assert found[0] == [i for i, row in enumerate(rows) if "," in row and i != 150]
    assert skipped["edges"] == 200 - len(found[0])
    raw = list(read_edges([tmp_path / "e.csv"], edges_per_block=4))
    numbers = [raw_block.row_of(i) for raw_block in raw for i in range(len(raw_block.sources))]
    assert numbers == [i + 1 for i, row in enumerate(rows) if "," in row]
    assert [bad.row for raw_block in raw for bad in raw_block.bad_rows] == [
        i + 1 for i, row in enumerate(rows) if "," not in row
    ]


@pytest.mark.parametrize("text", ["1 , 2", "+1,2", "01,2.0", "1e0,2"])
def test_numbers_as_people_write_them(tmp_path, text):
    write_text(tmp_path / "e.csv", f"src,dst\n3,4\n{text}\n")
    assert read(tmp_path / "e.csv") == [[3, 1], [4, 2], None]


BAD_COLUMNS = {
    "negative": (pa.array([1, -4]), "row 2 .counting from 1.: value -4 of target"),
    "too large": (pa.array([1, 1 << 32]), r"row 2 .counting from 1.: value 4294967296 of target: .* 0 to 4294967295"),
    "unsigned": (
        pa.array([1, 2**64 - 1], pa.uint64()),
        "row 2 .counting from 1.: value 18446744073709551615 of target",
    ),
    "gap": (pa.array([1, None]), "row 2 .counting from 1.: value missing of target"),
    "nan": (pa.array([1.0, np.nan]), "row 2 .counting from 1.: value nan of target"),
    "fraction": (pa.array([1.0, 1.5]), "row 2 .counting from 1.: value 1.5 of target"),
    "text": (pa.array(["1", "b"]), "row 2 .counting from 1.: value 'b' of target"),
    "category": (pa.array(["1", "b"]).dictionary_encode(), "row 2 .counting from 1.: value 'b' of target"),
    "empty": (pa.nulls(2), "row 1 .counting from 1.: value missing of target"),
}


@pytest.mark.parametrize("kind", BAD_COLUMNS)
def test_bad_rows_of_parquet(tmp_path, kind):
    column, message = BAD_COLUMNS[kind]
    path = tmp_path / "e.parquet"
    parquet(path, src=pa.array([1, 1]), dst=column)
    with pytest.raises(ValueError, match=f"^{path} {message}"):
        read(path)
    skipped = collections.Counter()
    found = read(path, skip_bad_rows=True, skipped=skipped)
    kept = 0 if kind == "empty" else 1
    assert found == [[1] * kept, [1] * kept, None]
    assert skipped == {"edges": 2 - kept}


@pytest.mark.parametrize("name", ["e.parquet", "e.csv", "e.npz", "index.npz"])
def test_wrong_columns_are_told_from_those_there_are(tmp_path, name):
    WRITERS[name](tmp_path / name)
    with pytest.raises(ValueError, match=r"no (column|array) 'weight'.*\bw\b"):
        read(tmp_path / name, weight_column="weight")
    if name != "index.npz":
        with pytest.raises(ValueError, match=r"no (column|array) 'from'.*\bdst\b"):
            read(tmp_path / name, source_column="from")


WRONG_FILES = {
    "missing.parquet": (None, FileNotFoundError, "does not exist"),
    "e.xlsx": (b"", ValueError, "no edge list that is known by its name"),
    "e.parquet": (b"not parquet at all", ValueError, "damaged, or no Parquet file"),
    "e.npz": (b"not a zip", ValueError, "damaged, or no NumPy archive"),
    "e.npy": (b"not numpy", ValueError, "not a NumPy file"),
    "latin.csv": ("src,dst\n1,2\n\xe9,3\n".encode("latin-1"), ValueError, "cannot be read as text.*UTF8"),
    "long.csv": (b"1,2\n" + b"3" * 4_000_000 + b",4\n", ValueError, "cannot be read as text"),
    "e.csv.gz": (gzip.compress(b"1,2\n" * 100_000)[:-20], ValueError, "damaged"),
    "plain.csv.gz": (b"1,2\n", ValueError, "damaged"),
    "one.csv": (b"1\n2\n", ValueError, "has 1 columns, and src, dst are wanted"),
    "text.csv": (b"anna,bert\n", ValueError, "first line says anna, bert; a file of text ids needs"),
    "wide.csv": (
        b"src,dst," + b"x" * 200_000 + b"\n1,2,3\n",
        ValueError,
        "its first line: field larger than field limit",
    ),
    "returns.csv": (b"src,dst\r1,2\r3,4\r", ValueError, "its first line: new-line character"),
    "twice.csv": (b"src,src,dst\n1,2,3\n", ValueError, "more than one column 'src'"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_wrong_files(tmp_path, name):
    content, kind, message = WRONG_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=rf"{tmp_path / name}.*{message}"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4), int), r"\[edges, 2\] or \[2, edges\], got \(3, 4\)"),
        (np.zeros(4, int), r"\[edges, 2\] or \[2, edges\], got \(4,\)"),
        (np.zeros((4, 2), bool), "holds bool"),
        (np.zeros((4, 2), complex), "holds complex128"),
        (np.array([[{}, 1]], object), "plain numbers are wanted"),
    ],
)
def test_wrong_arrays(tmp_path, array, message):
    np.save(tmp_path / "e.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "e.npy")


def test_arrays_of_different_lengths(tmp_path):
    npz(tmp_path / "e.npz", src=np.arange(3), dst=np.arange(4))
    with pytest.raises(ValueError, match=r"one length, got \[3, 4\]"):
        read(tmp_path / "e.npz")
    with pytest.raises(ValueError, match=r"weights are an array of their own"):
        np.save(tmp_path / "e.npy", np.zeros((4, 2)))
        read(tmp_path / "e.npy", weight_column="w")


def test_rows_of_text_are_guessed(tmp_path):
    text = "".join(f"{number},{number + 1}\n" for number in range(1000, 9000))
    write_text(tmp_path / "e.csv", text)
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress(text.encode()))
    write_text(tmp_path / "empty.csv", "")
    assert guess_edges([tmp_path / "e.csv"]) == 8000
    assert 1000 < guess_edges([tmp_path / "e.csv.gz"]) < 16000
    assert guess_edges([tmp_path / "empty.csv"]) == 0


def test_arrays_of_any_name_are_counted(tmp_path):
    npz(tmp_path / "e.npz", u=np.arange(3), v=np.arange(3), edge_index=np.zeros((2, 5), int))
    assert count_edges([tmp_path / "e.npz"], source_column="u", target_column="v") == 3
    assert count_edges([tmp_path / "e.npz"], source_column="u", target_column="w") == 5
    source = open_source(edges=[tmp_path / "e.npz"], columns=("u", "v", None))
    assert source.num_edges == 3 and joined(clean(raw, num_nodes=3, skip_bad_rows=False) for raw in source.blocks())
    with pytest.raises(ValueError, match="two columns, got 'u' for both"):
        open_source(edges=[tmp_path / "e.npz"], columns=("u", "u", None))


def test_parquet_columns_that_are_no_ids(tmp_path):
    parquet(tmp_path / "e.parquet", src=pa.array([[1], [2]]), dst=pa.array([1, 2]))
    with pytest.raises(ValueError, match="column 'src' is list<.*numbers or text are wanted"):
        read(tmp_path / "e.parquet")


@pytest.mark.parametrize("name", ["e.parquet", "e.csv", "e.npy", "e.npz"])
def test_peak_memory(tmp_path, name):
    """64 MB of edges, in Parquet one row group, through blocks of 1 MB."""
    path, edges = tmp_path / name, RNG.integers(0, 1 << 30, (2, 4_000_000))
    if name == "e.parquet":
        pq.write_table(pa.table({"src": edges[0], "dst": edges[1]}), path, row_group_size=4_000_000, compression="zstd")
    elif name == "e.csv":
        pa.csv.write_csv(pa.table({"src": edges[0], "dst": edges[1]}), path)
    elif name == "e.npy":
        np.save(path, edges)
    else:
        np.savez(path, edge_index=edges)
    program = textwrap.dedent(
        f"""
        import re
        from pathlib import Path
        import numpy as np
        import pyarrow as pa, pyarrow.csv, pyarrow.parquet, pyarrow.compute
        from ginex_jax.ingest.edge_blocks import clean
        from ginex_jax.ingest.edge_files import read_edges
        pa.array(np.arange(10)).cast(pa.string())
        def peak():  # `getrusage` would count what the parent had
            return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
        before = peak()
        total = 0
        for raw in read_edges([Path({str(path)!r})], edges_per_block=1 << 16):
            total += int(clean(raw, num_nodes=None, skip_bad_rows=False).sources.sum())
        print(total, peak() - before)
        """
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    total, kilobytes = map(int, result.stdout.split())
    assert total == edges[0].sum()
    assert kilobytes < (90 if name == "e.csv" else 40) << 10, kilobytes
