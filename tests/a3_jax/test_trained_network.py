"""Trained networks as files: the same again, another one's refused, and never half a file."""

import json
from pathlib import Path

import numpy as np
import pytest

from a3_jax.workloads import trained_network
from a3_jax.workloads.babi import encode, parse_stories, vocabulary_of
from a3_jax.workloads.memory_training import TrainingConfig
from a3_jax.workloads.stories import generate_stories
from a3_jax.workloads.trained_network import digest, train_or_load

CONFIG = TrainingConfig(dim=4, num_hops=1, linear_epochs=0, epochs=0)


@pytest.fixture(scope="module")
def questions():
    read = parse_stories(generate_stories(1, 20, seed=0), 1)
    vocabulary = vocabulary_of(read)
    return encode(read, vocabulary), len(vocabulary)


@pytest.fixture
def saved(questions, tmp_path):
    file = tmp_path / "network.npz"
    return file, train_or_load(file, *questions, CONFIG, seed=3)


def test_what_was_saved_is_loaded(questions, saved, monkeypatch):
    file, wanted = saved
    monkeypatch.setattr(trained_network, "train", None)
    found = train_or_load(file, *questions, CONFIG, seed=3)
    assert (found.identity, found.seconds, found.network) == (wanted.identity, wanted.seconds, wanted.network)
    for name in ("embeddings", "times"):
        np.testing.assert_array_equal(found.parameters["params"][name], wanted.parameters["params"][name])
    assert [path.name for path in file.parent.iterdir()] == ["network.npz"]


def test_another_one_is_refused(questions, saved):
    file, _ = saved
    training, num_words = questions
    other = training._replace(answers=training.answers[::-1].copy())
    for arguments, seed, what in (
        ((training, num_words, CONFIG), 4, "seed"),
        ((training, num_words, TrainingConfig(dim=4, num_hops=1, epochs=1)), 3, "configuration"),
        ((other, num_words, CONFIG), 3, "set of questions"),
        ((training, num_words + 1, CONFIG), 3, "vocabulary"),
    ):
        with pytest.raises(ValueError, match=f"trained with another {what}"):
            train_or_load(file, *arguments, seed=seed)


def rewritten(file: Path, **changes):
    with np.load(file) as contents:
        arrays = {name: contents[name] for name in contents.files} | changes
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


def header_of(file: Path):
    with np.load(file) as contents:
        return json.loads(str(contents["header"]))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"times": None}, "no network that was saved here"),
        ({"header": None}, "no network that was saved here"),
        ({"header": np.array("{")}, "no network that was saved here"),
        ({"header": np.array("[" * 100_000)}, "no network that was saved here"),
        ({"header": np.array('{"format": 2}')}, "another format"),
        ({"times": np.zeros((2, 50, 5), np.float32)}, r"times should be float32 \[2, 50, 4\]"),
        ({"times": np.zeros((2, 50, 4))}, "got float64"),
        ({"times": np.full((2, 50, 4), np.nan, np.float32)}, "NaN"),
        ({"times": np.array([{}], object)}, "no network that was saved here"),
    ],
)
def test_damaged_files(questions, saved, changes, complaint):
    file, _ = saved
    rewritten(file, **changes)
    with pytest.raises(ValueError, match=complaint) as refusal:
        train_or_load(file, *questions, CONFIG, seed=3)
    assert "network.npz" in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all", b"\x80\x04N."])
def test_no_archive(questions, tmp_path, content):
    file = tmp_path / "network.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="no network that was saved here"):
        train_or_load(file, *questions, CONFIG, seed=3)


def test_cut_off_anywhere(questions, saved):
    file, _ = saved
    whole = file.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="no network that was saved here"):
            train_or_load(file, *questions, CONFIG, seed=3)


def test_too_large(questions, saved, monkeypatch):
    monkeypatch.setattr(trained_network, "_MOST_BYTES", 100)
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        train_or_load(saved[0], *questions, CONFIG, seed=3)


def test_nothing_is_left_if_writing_fails(questions, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError):
        train_or_load(tmp_path / "network.npz", *questions, CONFIG, seed=3)
    assert not list(tmp_path.iterdir())


def test_no_folder_is_told_before_training(questions, tmp_path, monkeypatch):
    monkeypatch.setattr(trained_network, "train", None)
    with pytest.raises(ValueError, match="there is no folder"):
        train_or_load(tmp_path / "nowhere" / "network.npz", *questions, CONFIG, seed=3)


def test_a_digest_depends_on_everything(questions):
    training, _ = questions
    digests = {digest(training)}
    for name, array in training._asdict().items():
        changed = array.copy()
        changed.flat[-1] += 1
        digests.add(digest(training._replace(**{name: changed})))
    assert len(digests) == 6
