"""The command: what users type, and what they are told when it is wrong."""

import contextlib
import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer

from bandwise_commands import interrupts
from bandwise_commands.errors import reporting_errors
from ginex_jax.cli import main
from ginex_jax.store.dataset import open_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    sources, targets = rng.integers(0, 50, (2, 400))
    text = "src,dst\n" + "".join(f"{source},{target}\n" for source, target in zip(sources, targets, strict=True))
    (tmp_path / "edges.csv").write_text(text)
    np.save(tmp_path / "features.npy", rng.random((50, 6), np.float32))
    np.save(tmp_path / "labels.npy", rng.integers(0, 3, 50))
    np.save(tmp_path / "train.npy", np.arange(10))
    np.save(tmp_path / "no_rows.npy", np.empty((0, 6), np.float32))
    (tmp_path / "empty.csv").write_text("src,dst\n")
    return tmp_path


def ginex(*arguments):
    return main([str(argument) for argument in arguments])


def test_ingest_and_info(files, capsys):
    out = files / "out"
    command = ["ingest", out, "--edges", files / "edges.csv", "--features", files / "features.npy"]
    assert ginex(*command, "--labels", files / "labels.npy", "--train", files / "train.npy", "--memory", "64MiB") == 0
    assert "50 nodes, 400 edges" in capsys.readouterr().err
    assert ginex("info", out, "--json", "--verify") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verified"]
    assert (report["num_nodes"], report["num_edges"]) == (50, 400)
    assert report["arrays"]["features"]["shape"] == [50, 6]
    assert ginex("info", out) == 0
    assert "50 x 6" in capsys.readouterr().out
    dataset = open_dataset(out)
    np.testing.assert_array_equal(dataset.features.read_rows(np.arange(50)), np.load(files / "features.npy"))


def test_generate(tmp_path, capsys):
    command = ["generate", "rmat", tmp_path / "out", "--scale", 8, "--edge-factor", 4, "--feature-dim", 5]
    assert ginex(*command, "--classes", 3, "--edge-list", tmp_path / "edges.parquet") == 0
    assert "256 nodes, 1,024 edges" in capsys.readouterr().err
    # The edge list is the same graph.
    again = ["ingest", tmp_path / "again", "--edges", tmp_path / "edges.parquet", "--num-nodes", 256]
    assert ginex(*again) == 0
    first, second = (open_dataset(tmp_path / name).load_graph() for name in ("out", "again"))
    np.testing.assert_array_equal(first.indptr, second.indptr)
    np.testing.assert_array_equal(first.indices, second.indices)


def test_generate_again_after_its_edge_list(tmp_path):
    """As after a kill between the two: the file is kept if it is the same, and never overwritten."""
    command = [
        "generate",
        "rmat",
        tmp_path / "out",
        "--scale",
        6,
        "--edge-factor",
        4,
        "--edge-list",
        tmp_path / "e.parquet",
    ]
    assert ginex(*command, "--seed", 1) == 0
    written = (tmp_path / "e.parquet").read_bytes()
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert ginex(*command, "--seed", 2) == 2
    assert not (tmp_path / "out").exists()
    assert ginex(*command, "--seed", 1) == 0
    assert (tmp_path / "e.parquet").read_bytes() == written


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ginex_jax.store.writer.ArrayWriter.append", full)
    assert ginex("generate", "rmat", tmp_path / "out", "--scale", 6, "--edge-factor", 4) == 2
    assert (
        capsys.readouterr().err
        == "error: the disk is full, and no half-written file was left on it: make room and run it again\n"
    )
    assert not list(tmp_path.iterdir())


class TestMistakes:
    def said(self, capsys, *arguments):
        assert ginex(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    def test_missing_file(self, files, capsys):
        message = self.said(capsys, "ingest", files / "out", "--edges", files / "nothing.csv")
        assert "nothing.csv" in message
        assert not (files / "out").exists()

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ((), "give one of --edges, --ogb, --planetoid, --sparse, got none"),
            (("--edges", "edges.csv", "--ogb", "."), "got --edges and --ogb"),
            (("--edges", "edges.csv", "--source-column", "from"), "src"),
            (("--edges", "edges.csv", "--memory", "lots"), "a size is a number"),
            (("--edges", "edges.csv", "--memory", "1KB"), "at least 32 MiB"),
            (("--edges", "edges.csv", "--add-self-loops", "--drop-self-loops"), "not both"),
            (("--edges", "edges.csv", "--num-nodes", "20"), "edges.csv row"),
            (("--edges", "edges.csv", "--feature-dtype", "int8"), "int8"),
            (("--edges", "edges.csv", "--reorder", "random"), "random"),
            (("--edges", "edges.csv", "--features", "edges.csv"), "edges.csv"),
            (("--edges", "edges.csv", "--nonsense"), "nonsense"),
            (("--edges", "empty.csv"), "is the input empty?"),
            (("--edges", "empty.csv", "--map-ids"), "is the input empty?"),
            (("--edges", "edges.csv", "--features", "no_rows.npy"), "no_rows.npy has no rows"),
            (("--sparse", "features.npy"), "features.npy"),
            (("--planetoid", "."), "ind."),
            (("--ogb", "."), "raw"),
        ],
    )
    def test_arguments(self, files, capsys, monkeypatch, arguments, complaint):
        monkeypatch.chdir(files)
        before = sorted(files.iterdir())
        assert complaint in self.said(capsys, "ingest", "out", *arguments)
        assert sorted(files.iterdir()) == before

    def test_never_overwrites(self, files, capsys):
        (files / "out").mkdir()
        (files / "out" / "mine").write_text("mine")
        assert "already exists" in self.said(capsys, "ingest", files / "out", "--edges", files / "edges.csv")
        command = ["generate", "rmat", files / "out", "--scale", 3, "--edge-factor", 1]
        assert "already exists" in self.said(capsys, *command)

    @pytest.mark.parametrize(("scale", "factor"), [(0, 1), (99, 1), (3, 0)])
    def test_generate(self, tmp_path, capsys, scale, factor):
        self.said(capsys, "generate", "rmat", tmp_path / "out", "--scale", scale, "--edge-factor", factor)

    def test_info(self, tmp_path, capsys):
        assert "is not a dataset" in self.said(capsys, "info", tmp_path)


def start(*arguments):
    command = "import sys; from ginex_jax.cli import run; run()"
    return subprocess.Popen(
        [sys.executable, "-c", command, *map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


GENERATE = ("--scale", 18, "--edge-factor", 16, "--feature-dim", 64, "--classes", 4)


def test_ctrl_c(tmp_path):
    with start("generate", "rmat", tmp_path / "out", *GENERATE) as process:
        while not (tmp_path / ".out.partial").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate()
    assert process.returncode == 130
    assert messages == "interrupted\n"
    assert not list(tmp_path.iterdir())


def test_an_interrupt_that_became_an_error(monkeypatch, capsys):
    @reporting_errors
    def command():
        with contextlib.suppress(KeyboardInterrupt):
            interrupts._interrupt(signal.SIGINT, None)
        raise ImportError("a module was not initialized")

    monkeypatch.setattr(interrupts, "_interrupts", [])
    with pytest.raises(typer.Exit) as stopped:
        command()
    assert stopped.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupt_that_got_lost_is_said_at_the_end(monkeypatch, capsys):
    @reporting_errors
    def command():
        with contextlib.suppress(KeyboardInterrupt):
            interrupts._interrupt(signal.SIGINT, None)

    monkeypatch.setattr(interrupts, "_interrupts", [])
    with pytest.raises(typer.Exit) as stopped:
        command()
    assert stopped.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupt_that_got_lost_stops_at_the_next_report(monkeypatch):
    monkeypatch.setattr(interrupts, "_interrupts", [])
    reported = []
    report = interrupts.stopping_when_interrupted(lambda *progress: reported.append(progress))
    report("phase", 1, 2)
    with pytest.raises(KeyboardInterrupt):
        interrupts._interrupt(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        report("phase", 2, 2)
    assert reported == [("phase", 1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "ingest"])
def test_kill_minus_nine_at_ten_moments(tmp_path, command):
    """Afterwards there is either no dataset or the right one, and the same command completes it."""
    edges, out = tmp_path / "edges.parquet", tmp_path / "out"
    assert ginex("generate", "rmat", tmp_path / "whole", *GENERATE, "--edge-list", edges) == 0

    def arguments(folder):
        if command == "generate":
            return ("generate", "rmat", folder, *GENERATE)
        return ("ingest", folder, "--edges", edges, "--undirected", "--reorder", "degree", "--memory", "64MiB")

    start_time = time.monotonic()
    with start(*arguments(tmp_path / "timed")) as process:
        process.communicate()
    seconds = time.monotonic() - start_time
    whole = (tmp_path / "timed" / "manifest.json").read_bytes()
    num_unfinished = 0
    for delay in np.random.default_rng(0).uniform(0.3, 1.0, 10) * seconds:
        with start(*arguments(out)) as process:
            time.sleep(delay)
            process.kill()
        if not out.exists():
            num_unfinished += 1
            assert ginex("info", out) == 2
            continue
        assert (out / "manifest.json").read_bytes() == whole
        assert ginex("info", out, "--verify") == 0
        shutil.rmtree(out)
    assert num_unfinished > 0
    assert ginex(*arguments(out)) == 0
    assert (out / "manifest.json").read_bytes() == whole
    assert ginex("info", out, "--verify") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edges.parquet", "out", "timed", "whole"]
