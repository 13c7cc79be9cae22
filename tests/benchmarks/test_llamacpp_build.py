"""What is taken out of the source distribution, and what is refused, without building anything."""

import io
import tarfile
from pathlib import Path

import pytest

from benchmarks.llamacpp_build import REQUIREMENTS, PeerError, first_error, patch, pinned, unpack

ROOT = "llama_cpp_python-1.2.3/vendor/llama.cpp/"


def archive(path: Path, files: dict[str, str], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


def test_the_pinned_requirement_has_a_version_and_a_hash() -> None:
    name, version, sha256 = pinned(REQUIREMENTS.read_text(encoding="utf-8"))
    assert name == "llama-cpp-python"
    assert version.count(".") == 2
    assert len(bytes.fromhex(sha256)) == 32


def test_a_requirement_without_a_hash_is_refused() -> None:
    with pytest.raises(PeerError, match="0 were found"):
        pinned("llama-cpp-python==0.3.36\n")


def test_only_what_a_build_needs_is_unpacked(tmp_path: Path) -> None:
    names = {f"{ROOT}CMakeLists.txt": "1", f"{ROOT}ggml/src/ggml.c": "2", f"{ROOT}models/m.gguf": "3", "README.md": "4"}
    source = unpack(archive(tmp_path / "a.tar.gz", names), tmp_path / "source")
    files = {str(path.relative_to(source)): path.read_text() for path in source.rglob("*") if path.is_file()}
    assert files == {"CMakeLists.txt": "1", "ggml/src/ggml.c": "2"}


def test_unpacking_again_leaves_nothing_of_before(tmp_path: Path) -> None:
    source = unpack(
        archive(tmp_path / "a.tar.gz", {f"{ROOT}CMakeLists.txt": "", f"{ROOT}src/old.c": ""}), tmp_path / "s"
    )
    assert (source / "src/old.c").exists()
    unpack(archive(tmp_path / "b.tar.gz", {f"{ROOT}CMakeLists.txt": ""}), tmp_path / "s")
    assert not (source / "src/old.c").exists()


@pytest.mark.parametrize(
    ("files", "links"),
    [({f"{ROOT}src/../../../../outside.c": ""}, {}), ({}, {f"{ROOT}src/link.c": "/etc/passwd"})],
    ids=["path that climbs", "link"],
)
def test_what_is_not_a_plain_file_inside_is_refused(
    tmp_path: Path, files: dict[str, str], links: dict[str, str]
) -> None:
    path = archive(tmp_path / "a.tar.gz", {f"{ROOT}CMakeLists.txt": "", **files}, links)
    with pytest.raises(PeerError, match="not a plain file inside"):
        unpack(path, tmp_path / "folder" / "source")
    assert not (tmp_path / "folder" / "source").exists()
    assert not (tmp_path / "outside.c").exists()


def test_an_archive_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="another version has another layout"):
        unpack(archive(tmp_path / "a.tar.gz", {f"{ROOT}src/llama.cpp": ""}), tmp_path / "source")


def test_a_source_that_the_patch_does_not_fit_stops_the_build(tmp_path: Path) -> None:
    path = tmp_path / "ggml/src/ggml-cpu/amx/mmq.cpp"
    path.parent.mkdir(parents=True)
    path.write_text("int main() {}\n")
    with pytest.raises(PeerError, match=r"mmq\.cpp cannot be patched .*expected once and occurs 0 times"):
        patch(tmp_path)
    assert path.read_text() == "int main() {}\n"


@pytest.mark.parametrize(
    ("output", "excerpt"),
    [
        (
            "-- fine\nCMake Error at CMakeLists.txt:2 (project):\n\n  No C++ compiler\n  was found.\nmore",
            " (CMake Error at CMakeLists.txt:2 (project): No C++ compiler was found.)",
        ),
        ("a.c:3: error: no\n", " (a.c:3: error: no)"),
        ("[ 10%] Building errors.cpp\nkilled\n", ""),
    ],
    ids=["cmake", "compiler", "none"],
)
def test_a_failure_is_told_in_one_line(output: str, excerpt: str) -> None:
    assert first_error(output) == excerpt
