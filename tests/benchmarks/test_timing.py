"""What a record says of where it came from, against a repository made for it."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import timing


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_what_benchmarks_write_does_not_make_a_tree_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = (tmp_path / "benchmarks/results/one.json", tmp_path / "docs/figures/one.svg")
    source = tmp_path / "package.py"
    for file in (*written, source):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "all")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    monkeypatch.setattr(timing, "RESULTS", written[0].parent)

    def commit() -> str:
        return json.loads(timing.record("two", {}, {}).read_text())["commit"]

    for file in written:
        file.write_text("after")
    assert commit() == head
    source.write_text("after")
    assert commit() == f"{head}-dirty"


def test_a_record_that_cannot_be_written_leaves_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    before = timing.record("one", {}, [1]).read_bytes()
    write_text = Path.write_text

    def write_half(self: Path, data: str, **settings: str) -> int:
        write_text(self, data[: len(data) // 2], **settings)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="No space left"):
        timing.record("one", {}, [2])
    assert (tmp_path / "one.json").read_bytes() == before
