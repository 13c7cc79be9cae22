from pathlib import Path

import pytest

from anyprec_jax.checkpoint.atomic import published


def test_the_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with published(target) as folder:
        (folder / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), published(tmp_path / "target") as folder:
        (folder / "file").write_text("content")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_replaced_and_a_full_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with published(tmp_path / "empty") as folder:
        (folder / "file").touch()
    assert (tmp_path / "empty" / "file").exists()

    with pytest.raises(FileExistsError, match="already exists"), published(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty" / "file").exists()


def test_a_file_or_a_dangling_link_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError, match=f"{name} already exists"), published(tmp_path / name):
            pass
    assert (tmp_path / "file").read_text() == "precious"
