"""Samples are added to a record that was made alike, and to no other."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import anyprec_quality

SETTINGS = {"samples": 3, "tokens": 100, "methods": ["authors"]}


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(anyprec_quality, "RESULTS", tmp_path)
    rows: list[dict[str, Any]] = [{"precision": 3, "kl": 0.5}]
    samples = [{"sample": 0, "quantize_s": 1.5, "in domain": rows}, {"sample": 1, "commit": "b", "in domain": rows}]
    path = tmp_path / "anyprec_quality.json"
    path.write_text(
        json.dumps({"commit": "a", "arguments": {**SETTINGS, "samples": 2}, "results": {"authors": samples}})
    )
    return path


def test_every_sample_keeps_the_commit_that_made_it(record: Path) -> None:
    found = anyprec_quality.recorded(SETTINGS, ["in domain"])
    assert [sample["commit"] for sample in found["authors"]] == ["a", "b"]
    written = json.loads(record.read_text())["results"]["authors"]
    assert [{**sample, "commit": None} for sample in found["authors"]] == [
        {**sample, "commit": None} for sample in written
    ]


@pytest.mark.parametrize(
    ("settings", "texts", "message"),
    [
        ({"tokens": 200}, ["in domain"], "other settings: tokens"),
        ({"methods": ["authors", "best"]}, ["in domain"], "other settings: methods"),
        ({}, ["in domain", "out of domain"], "other texts: in domain"),
        ({}, [], "other texts: in domain"),
    ],
)
@pytest.mark.usefixtures("record")
def test_a_record_that_was_made_otherwise(settings: dict[str, Any], texts: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        anyprec_quality.recorded(SETTINGS | settings, texts)


def test_no_record(record: Path) -> None:
    record.unlink()
    with pytest.raises(SystemExit, match="there is no .*anyprec_quality.json"):
        anyprec_quality.recorded(SETTINGS, ["in domain"])
