"""Phases of a benchmark: in processes of their own, once."""

import json
import sys

import pytest

from benchmarks.phases import Phases, bytes_on_disk

MODULE = """
from pathlib import Path
from benchmarks.phases import run_here

def count(file, by):
    numbers = Path(file)
    number = int(numbers.read_text()) if numbers.exists() else 0
    numbers.write_text(str(number + by))
    return {"number": number + by}

def fail():
    raise ValueError("no")

def filled(megabytes):
    data = b"1" * (megabytes << 20)
    return {"bytes": len(data), "seconds": 7.0}

assert run_here({"count": count, "fail": fail, "filled": filled})
"""


@pytest.fixture
def phases(tmp_path, monkeypatch):
    (tmp_path / "three_phases.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    return Phases("three_phases", tmp_path / "phases", watch=tmp_path)


def test_a_phase_that_is_done_is_not_repeated(phases, tmp_path):
    file = tmp_path / "number"
    first = phases.run("one", "count", file=file, by=1)
    assert phases.run("one", "count", file=file, by=1) == first
    assert first["number"] == 1
    assert phases.run("two", "count", file=file, by=1)["number"] == 2
    assert phases.run("one", "count", file=file, by=5)["number"] == 7  # other arguments
    assert phases.is_done("one")
    phases.forget("one")
    assert phases.run("one", "count", file=file, by=5)["number"] == 12


def test_failures_are_told_and_not_kept(phases):
    with pytest.raises(SystemExit, match="run it again"):
        phases.run("wrong", "fail")
    assert not phases.is_done("wrong")


def test_memory_is_the_phase_s_own(phases):
    ballast = b"1" * (200 << 20)
    small = phases.run("small", "filled", megabytes=1)
    large = phases.run("large", "filled", megabytes=60)
    assert len(ballast) == 200 << 20
    assert 55 < large["peak_mb"] - small["peak_mb"] < 65
    assert large["seconds"] == 7.0
    assert large["folder_peak_bytes"] > 0


def test_bytes_on_disk(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text(json.dumps([0] * 10000), encoding="utf-8")
    assert bytes_on_disk(tmp_path) >= 30000
