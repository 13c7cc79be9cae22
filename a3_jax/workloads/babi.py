"""bAbI, stories with questions about them (Weston et al. 2015, version 1.2): read from its text files, and as arrays of word ids."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

NUM_TASKS = 20
MEMORY_SIZE = 50  # sentences of a story that are remembered, the last ones (Sukhbaatar et al. 2015, section 4.1)
TRAINING_SPLITS = ("train", "valid")
TEST_SPLIT = "test"

# What no file of bAbI comes near, so that a wrong one is refused before it fills the memory.
_MOST_BYTES = 2**26
_MOST_WORDS = 64
_MOST_SENTENCES = 1000
_WORD = re.compile(r"[a-z0-9][a-z0-9'-]*")

Sentence = tuple[str, ...]


class Question(NamedTuple):
    """One question.

    Attributes:
      task: 1 to 20.
      story: the sentences before it, the first one first; at least one. Earlier questions are no part of it.
      words: the question itself.
      answer: in lower case; several words, joined by commas as the file has them, are one answer.
    """

    task: int
    story: tuple[Sentence, ...]
    words: Sentence
    answer: str


class Questions(NamedTuple):
    """What a folder has: questions to learn from (`train` and, where there are any, `valid` files), and questions of the `test` files."""

    training: tuple[Question, ...]
    test: tuple[Question, ...]


class EncodedQuestions(NamedTuple):
    """Questions as arrays. Every distinct sentence is there once, and word 0 and sentence 0 are empty.

    Attributes:
      sentences: word ids, the words of a sentence first and then zeros.
      stories: of every question the sentences before it, the **last** one first and then zeros.
      questions: the sentence that is the question.
      answers: word ids; -1 where the vocabulary has none.
      tasks: 1 to 20.
    """

    sentences: Int32[np.ndarray, "sentences words"]
    stories: Int32[np.ndarray, "questions memory"]
    questions: Int32[np.ndarray, " questions"]
    answers: Int32[np.ndarray, " questions"]
    tasks: Int32[np.ndarray, " questions"]

    @property
    def story_sizes(self) -> Int32[np.ndarray, " questions"]:
        """Sentences that are remembered."""
        return (self.stories > 0).sum(1, dtype=np.int32)


def read_folder(folder: Path) -> Questions:
    """Every task of which the folder has `qaN_train.txt` and `qaN_test.txt`, N from 1 to 20; `qaN_valid.txt` is read where it is.

    ValueError, with file and line, for what is no bAbI; OSError if a file cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder: give the one with qa1_train.txt to qa20_test.txt, such as en-valid of bAbI"
        )
    training, test = [], []
    for task in range(1, NUM_TASKS + 1):
        files = {split: folder / f"qa{task}_{split}.txt" for split in (*TRAINING_SPLITS, TEST_SPLIT)}
        found = {split for split, file in files.items() if file.exists()}
        if not found:
            continue
        if missing := {"train", TEST_SPLIT} - found:
            raise ValueError(f"{folder} has files of task {task}, but no {files[min(missing)].name}")
        training.extend(
            question for split in TRAINING_SPLITS if split in found for question in read_file(files[split], task)
        )
        test.extend(read_file(files[TEST_SPLIT], task))
    if not test:
        raise ValueError(
            f"{folder} has no file such as qa1_train.txt: give the folder of bAbI with these, such as en-valid"
        )
    return Questions(tuple(training), tuple(test))


def read_file(file: Path, task: int) -> list[Question]:
    """The questions of one file, at least one. Errors are those of `read_folder`."""
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file} is larger than {_MOST_BYTES:,} bytes, which no file of bAbI is")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}") from None
    return parse_stories(text, task, name=str(file))


def parse_stories(text: str, task: int, *, name: str = "text") -> list[Question]:
    """The questions of a text in bAbI's format: lines of `ID sentence`, and `ID question<tab>answer<tab>supporting IDs`.

    IDs count the lines of a story, from 1. ValueError names the text and the line.
    """
    questions: list[Question] = []
    story: list[Sentence] = []
    previous = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        identity, _, rest = line.strip().partition(" ")
        if not (identity.isascii() and identity.isdecimal()) or int(identity[:9]) not in (1, previous + 1):
            raise ValueError(f"{where}: wanted 1 or {previous + 1}, a space and a sentence, got {line[:60]!r}")
        previous = int(identity[:9])
        if previous == 1:
            story = []
        sentence, *fields = rest.split("\t")
        if not fields:
            story.append(_words(sentence, where))
            if len(story) > _MOST_SENTENCES:
                raise ValueError(f"{where}: the story has more than {_MOST_SENTENCES:,} sentences")
            continue
        answer = fields[0].strip().lower()
        if not answer or not story:
            raise ValueError(
                f"{where}: a question should have an answer after a tab, and a sentence before it, got {line[:60]!r}"
            )
        questions.append(Question(task, tuple(story[-MEMORY_SIZE:]), _words(sentence, where), answer))
    if not questions:
        raise ValueError(f"{name} has no question: a line with a tab and an answer")
    return questions


def _words(sentence: str, where: str) -> Sentence:
    words = tuple(_WORD.findall(sentence.lower()))
    if not 0 < len(words) <= _MOST_WORDS:
        raise ValueError(
            f"{where}: a sentence should have 1 to {_MOST_WORDS} words, got {len(words)} in {sentence[:60]!r}"
        )
    return words


def vocabulary_of(questions: Iterable[Question]) -> tuple[str, ...]:
    """Words and answers in alphabetical order, after the empty word that is number 0."""
    words: set[str] = set()
    for question in questions:
        words.update(question.words, [question.answer], *question.story)
    return ("", *sorted(words))


def encode(questions: Sequence[Question], vocabulary: Sequence[str]) -> EncodedQuestions:
    """Word ids instead of words; words that are not in the vocabulary count as empty. O(words)."""
    ids = {word: number for number, word in enumerate(vocabulary)}
    sentences: dict[Sentence, int] = {(): 0}

    def numbered(sentence: Sentence) -> int:
        return sentences.setdefault(sentence, len(sentences))

    stories = np.zeros((len(questions), MEMORY_SIZE), np.int32)
    asked = np.zeros(len(questions), np.int32)
    for row, question in enumerate(questions):
        remembered = question.story[: -MEMORY_SIZE - 1 : -1]
        stories[row, : len(remembered)] = [numbered(sentence) for sentence in remembered]
        asked[row] = numbered(question.words)
    words = np.zeros((len(sentences), max(map(len, sentences), default=0)), np.int32)
    for sentence, row in sentences.items():
        words[row, : len(sentence)] = [ids.get(word, 0) for word in sentence]
    return EncodedQuestions(
        sentences=words,
        stories=stories,
        questions=asked,
        answers=np.array([ids.get(question.answer, -1) for question in questions], np.int32),
        tasks=np.array([question.task for question in questions], np.int32),
    )
