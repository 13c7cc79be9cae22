"""A small excerpt, written in the form of `apt-cache dumpavail`, and what it says."""

from pathlib import Path

import numpy as np
import pytest

from examples import debian

DUMP = """\
Package: game
Version: 1.0-1
Depends: libgame (>= 1.0), engine:any | other-engine [amd64], game-data (= 1.0), virtual
Pre-Depends: libc (>= 2.34)
Description: Strategy game of ancient warfare
Tag: role::program,
 use::gameplaying, libnot
Section: games

Package: libgame
Depends: libc(>= 2), libgame, libc (<< 3),
 engine
Description: library of a game
 Section: not-a-field
Section: libs

Package: libc
Description: C library
Section: libs


Package: engine
Description: game engine
Section: games

Package: game
Version: 0.9-1
Depends: engine
Section: oldgames

Package: game-data
Suggests: game
"""


def test_the_excerpt_is_a_graph() -> None:
    graph = debian.debian_graph(DUMP.splitlines(keepends=True), width=64)
    assert graph.names == ["game", "libgame", "libc", "engine", "game-data"]
    assert graph.sections == ["games", "libs"]
    assert graph.labels.tolist() == [0, 1, 1, 0, -1]
    edges = [(graph.names[s], graph.names[t]) for s, t in zip(graph.sources, graph.targets, strict=True)]
    assert edges == [
        ("game", "libgame"), ("game", "libc"), ("game", "engine"), ("game", "game-data"), ("libgame", "libc"), ("libgame", "engine"),
    ]  # fmt: skip
    assert graph.num_unknown == 2  # other-engine, virtual
    assert graph.features.shape == (5, 64) and graph.features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(graph.features, axis=1), [1, 1, 1, 1, 0], atol=1e-6)


def test_words_and_not_their_order_make_the_features() -> None:
    first, second, other = (debian.hashed_words(text, width=64) for text in ("a C library", "Library: c, a", "a game"))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_the_program_prints_sizes_and_hubs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = tmp_path / "available"
    dump.write_text(DUMP, encoding="utf-8")
    assert debian.main([str(dump)]) == 0
    printed = capsys.readouterr().out
    assert "5 packages, 6 dependencies, 2 sections" in printed
    assert "libc: 2 packages depend on it" in printed


@pytest.mark.parametrize("content", [None, "nothing of the kind\n"])
def test_what_is_no_dump_is_one_line(content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = tmp_path / "available"
    if content is not None:
        dump.write_text(content, encoding="utf-8")
    assert debian.main([str(dump)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
