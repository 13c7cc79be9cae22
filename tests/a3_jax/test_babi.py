"""bAbI's files: what is read, what is refused, and the arrays they become."""

import os
from pathlib import Path

import numpy as np
import pytest

from a3_jax.workloads import babi
from a3_jax.workloads.babi import MEMORY_SIZE, encode, parse_stories, read_folder, vocabulary_of
from a3_jax.workloads.stories import generate_stories

# The public data set, where somebody has put it.
BABI = Path(os.environ.get("BABI", Path(__file__).parents[2] / ".cache" / "babi" / "en-valid"))

# From the read-me of bAbI, and a question with two answers in the manner of its task 8.
EXAMPLE = """\
1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary?        \tbathroom\t1
4 Daniel went back to the hallway.
5 What is Sandra carrying?\tmilk,Football\t1 4
1 Sandra travelled to the office.
2 Where is Sandra? \toffice\t1
"""


def words(text):
    return tuple(text.split())


def test_a_story_is_the_sentences_before_the_question():
    first, second, third = parse_stories(EXAMPLE, 1)
    mary, john = words("mary moved to the bathroom"), words("john went to the hallway")
    assert first == (1, (mary, john), words("where is mary"), "bathroom")
    assert second.story == (mary, john, words("daniel went back to the hallway"))
    assert second.answer == "milk,football"
    assert third.story == (words("sandra travelled to the office"),)


def test_the_last_fifty_sentences_are_remembered():
    lines = [f"{number} Word{number} here." for number in range(1, 61)] + ["61 Where? \tthere\t1"]
    (question,) = parse_stories("\r\n".join(lines), 1)
    assert [sentence[0] for sentence in question.story] == [f"word{number}" for number in range(11, 61)]


def test_vocabulary():
    found = vocabulary_of(parse_stories(EXAMPLE, 1))
    assert found[0] == "" and list(found[1:]) == sorted(set(found[1:]))
    assert "milk,football" in found and "milk" not in found


def test_arrays_say_the_same_as_the_words():
    questions = parse_stories(generate_stories(8, 40, seed=3), 8) + parse_stories(EXAMPLE, 1)
    vocabulary = vocabulary_of(questions)
    found = encode(questions, vocabulary)
    assert found.stories.shape == (len(questions), MEMORY_SIZE)
    assert len(np.unique(found.sentences, axis=0)) == len(found.sentences)

    def spelled(sentence):
        return tuple(vocabulary[word] for word in found.sentences[sentence] if word)

    for row, question in enumerate(questions):
        size = found.story_sizes[row]
        assert tuple(spelled(sentence) for sentence in found.stories[row, :size][::-1]) == question.story
        assert not found.stories[row, size:].any()
        assert spelled(found.questions[row]) == question.words
        assert (vocabulary[found.answers[row]], found.tasks[row]) == (question.answer, question.task)


def test_unknown_words_are_empty_and_unknown_answers_are_never_right():
    first, second, _ = parse_stories(EXAMPLE, 1)
    found = encode([second], vocabulary_of([first]))
    assert found.answers.tolist() == [-1]
    assert (found.sentences[found.stories[0, 0]] == 0).sum() > 0  # daniel, back


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no question"),
        ("1 A sentence alone.", "no question"),
        ("2 Too far.", "line 1: wanted 1 or 1"),
        ("1 A b.\n3 C d.", "line 2: wanted 1 or 2"),
        ("1 A b.\n\n-2 C d.", "line 3: wanted 1 or 2"),
        ("1 A b.\n² C d.", "line 2"),
        ("1 A b.\n" + "9" * 5000 + " C d.", "line 2"),
        ("1 Where? \there\t1", "a sentence before it"),
        ("1 A b.\n2 Where? \t \t1", "an answer after a tab"),
        ("1 A b.\n2 ... \there\t1", "0 in '... '"),
        ("1 ?!", "1 to 64 words"),
        ("1 " + "w " * 65, "1 to 64 words, got 65"),
        ("\x00\x01\x02", "line 1"),
        ("1", "1 to 64 words"),
        ("\n".join(f"{number} A b." for number in range(1, 1003)), "more than 1,000 sentences"),
    ],
)
def test_refused_in_one_line(text, complaint):
    with pytest.raises(ValueError, match=complaint.replace("?", r"\?").replace(".", r"\.")) as refusal:
        parse_stories(text, 1, name="qa1_train.txt")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 250
    assert str(refusal.value).startswith("qa1_train.txt")


class TestFolder:
    def test_train_and_valid_are_trained_on(self, tmp_path):
        for split, seed in (("train", 0), ("valid", 1), ("test", 2)):
            (tmp_path / f"qa6_{split}.txt").write_text(generate_stories(6, 10 * (seed + 1), seed=seed))
        found = read_folder(tmp_path)
        assert (len(found.training), len(found.test)) == (30, 30)
        assert {question.task for question in found.training} == {6}

    @pytest.mark.parametrize("missing", ["train", "test"])
    def test_half_a_task(self, tmp_path, missing):
        other = "test" if missing == "train" else "train"
        (tmp_path / f"qa6_{other}.txt").write_text(EXAMPLE)
        with pytest.raises(ValueError, match=f"no qa6_{missing}.txt"):
            read_folder(tmp_path)

    def test_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="no folder"):
            read_folder(tmp_path / "nowhere")
        with pytest.raises(ValueError, match="no file such as"):
            read_folder(tmp_path)

    def test_no_text(self, tmp_path):
        (tmp_path / "qa1_train.txt").write_bytes(b"1 Mary\xff\xfe")
        (tmp_path / "qa1_test.txt").write_text(EXAMPLE)
        with pytest.raises(ValueError, match="no text in UTF-8"):
            read_folder(tmp_path)

    def test_too_large(self, tmp_path, monkeypatch):
        monkeypatch.setattr(babi, "_MOST_BYTES", 10)
        (tmp_path / "qa1_train.txt").write_text(EXAMPLE)
        (tmp_path / "qa1_test.txt").write_text(EXAMPLE)
        with pytest.raises(ValueError, match="larger than 10 bytes"):
            read_folder(tmp_path)

    def test_a_folder_in_the_place_of_a_file(self, tmp_path):
        (tmp_path / "qa1_train.txt").mkdir()
        (tmp_path / "qa1_test.txt").write_text(EXAMPLE)
        with pytest.raises(OSError):
            read_folder(tmp_path)


@pytest.mark.skipif(
    not BABI.is_dir(), reason="bAbI is not there: put its en-valid into .cache/babi, or name it in BABI"
)
def test_the_data_set():
    found = read_folder(BABI)
    for questions in (found.training, found.test):
        assert np.bincount([question.task for question in questions])[1:].tolist() == [1000] * 20
    vocabulary = set(vocabulary_of(found.training))
    test_words = {word for sentence in {s for q in found.test for s in (q.words, *q.story)} for word in sentence}
    assert test_words <= vocabulary
    assert sum(question.answer not in vocabulary for question in found.test) == 1
    # "average n = 20": the longest stories of the tasks, 50 at most.
    longest = [
        max(len(question.story) for question in found.training if question.task == task) for task in range(1, 21)
    ]
    assert np.mean(longest) == pytest.approx(19.15)
