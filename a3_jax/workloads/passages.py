"""Retrieval made of speeches: passages of some 300 tokens, each with a sentence of its own that was taken out of it."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# What follows a full stop, a question or an exclamation mark, perhaps quoted, and starts with a capital or a quotation mark.
_SENTENCE_END = re.compile(r"""(?<=[.!?])["')]?\s+(?=["'(]?[A-Z])""")
_MOST_BYTES = 2**24  # of a speech; the longest of State of the Union has 200 kB

Ids = list[int]
Encode = Callable[[str], Ids]


class Passage(NamedTuple):
    """Token ids with those of start and end.

    Attributes:
      source: the file's name.
      tokens: of the passage, without the sentence.
      sentence: of the sentence that is held out.
    """

    source: str
    tokens: Ids
    sentence: Ids


def read_passages(
    folder: Path,
    encode: Encode,
    *,
    num_passages: int = 200,
    most_of_a_speech: int = 10,
    tokens: tuple[int, int] = (256, 320),
    sentence_tokens: tuple[int, int] = (14, 64),
    seed: int = 0,
) -> list[Passage]:
    """Passages of consecutive sentences from speeches in random order; of a speech the first ones, which do not overlap.

    Of every passage the sentence next to its middle is held out that is long enough to be about something.

    Args:
      folder: of .txt files, a speech each.
      encode: token ids of a text, with those of start and end; words at the end of one text and the start of another are never one token.
      most_of_a_speech: passages. The more, the more alike they are.
      tokens, sentence_tokens: the least and the most of a passage without its sentence, and of the sentence.

    Raises:
      ValueError: if the folder has too few; FileNotFoundError if it has no .txt file.
    """
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"{folder} has no .txt file: wanted a folder of speeches")
    found: list[Passage] = []
    for place in np.random.default_rng(seed).permutation(len(files)):
        file = files[place]
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{file} is too large for a speech")
        sentences = [encode(text) for text in split_sentences(file.read_text(encoding="utf-8"))]
        parts = list(_windows(sentences, tokens=tokens, sentence_tokens=sentence_tokens))[:most_of_a_speech]
        found += [Passage(file.name, *part) for part in parts]
        if len(found) >= num_passages:
            return found[:num_passages]
    raise ValueError(f"{folder} has {len(found)} passages, wanted {num_passages}: ask for fewer")


def split_sentences(text: str) -> list[str]:
    """By marks at their ends and by empty lines; abbreviations before a name split too."""
    paragraphs = re.split(r"\n\s*\n", text)
    return [part.strip() for paragraph in paragraphs for part in _SENTENCE_END.split(paragraph) if part.strip()]


def _windows(
    sentences: Sequence[Ids], *, tokens: tuple[int, int], sentence_tokens: tuple[int, int]
) -> Iterator[tuple[Ids, Ids]]:
    """Passage and sentence of consecutive sentences, each as short as it may be."""
    start = 0
    for end in range(1, len(sentences) + 1):
        window = sentences[start:end]
        length = 2 + sum(len(ids) - 2 for ids in window)
        inner = [place for place, ids in enumerate(window) if sentence_tokens[0] <= len(ids) <= sentence_tokens[1]]
        if inner:
            middle = min(inner, key=lambda place: abs(2 * place + 1 - len(window)))
            rest = length - (len(window[middle]) - 2)
            if tokens[0] <= rest <= tokens[1]:
                kept = [token for place, ids in enumerate(window) if place != middle for token in ids[1:-1]]
                yield [window[0][0], *kept, window[0][-1]], window[middle]
                start = end
        if length > tokens[1] + sentence_tokens[1]:
            start = end  # a sentence was too long to fit, or none fits to be held out
