"""Folders that appear whole or not at all."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ginex_jax.store.publishing import published, require_free, require_room

ROOT = Path(__file__).parents[2]


def test_appears_when_the_block_ends(tmp_path):
    with published(tmp_path / "new" / "out") as folder:
        (folder / "file").write_text("text")
        assert not (tmp_path / "new" / "out").exists()
    assert (tmp_path / "new" / "out" / "file").read_text() == "text"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("path", [".", "folder/..", "/"])
def test_wants_a_name(path):
    with pytest.raises(ValueError, match="no name for a new folder"):
        require_free(Path(path))


def test_leaves_nothing_when_the_block_raises(tmp_path):
    with pytest.raises(KeyboardInterrupt), published(tmp_path / "out") as folder:
        (folder / "file").write_text("text")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_leaves_nothing_when_interrupted_before_the_lock(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ginex_jax.store.publishing.fcntl.flock", interrupted)
    with pytest.raises(KeyboardInterrupt), published(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_starts_afresh_after_a_kill(tmp_path):
    left = tmp_path / ".out.partial" / "deep"
    left.mkdir(parents=True)
    (left / "stale").write_text("stale")
    (left.parent / "link").symlink_to(tmp_path)
    with published(tmp_path / "out") as folder:
        (folder / "file").write_text("text")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "out").mkdir()
    with published(tmp_path / "out") as folder:
        (folder / "file").write_text("text")
    assert (tmp_path / "out" / "file").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_never_overwrites(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="already exists"), published(out):
        pass
    with pytest.raises(FileExistsError, match="already exists"):
        require_free(out)


def test_two_processes_do_not_build_the_same(tmp_path):
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from ginex_jax.store.publishing import published
        with published(Path({str(tmp_path / "out")!r})):
            print("building", flush=True)
            input()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "building\n"
        with pytest.raises(FileExistsError, match="another process is writing"), published(tmp_path / "out"):
            pass
        other.communicate("\n")
    assert other.returncode == 0
    assert (tmp_path / "out").is_dir()


def test_room(tmp_path):
    require_room(tmp_path / "not" / "there", 1)
    with pytest.raises(OSError, match="are free: make room"):
        require_room(tmp_path / "not" / "there", 1 << 60)
