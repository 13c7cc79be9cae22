"""WordNet's files in the small, written in their own form; sparse products and singular vectors against SciPy's."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from examples import wordnet
from examples.word_vectors import SparseMatrix, bag_of_words, product, transpose, word_vectors
from examples.wordnet_graph import Synset, edges_of, parse, random_split, wordnet_graph

LICENCE = "  1 This software and database is being provided to you, the LICENSEE  \n"
NOUNS = [
    "00001740 03 n 01 entity 0 002 ~ 00001930 n 0000 + 00002000 v 0101 | that which is perceived; living or not  ",
    "00001930 05 n 02 animal 0 beast 0 002 @ 00001740 n 0000 = 00003000 a 0000 | a living organism that moves  ",
    "00002100 05 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 @ 00001930 n 0000 | an organism with ten names  ",
]
VERBS = ["00002000 38 v 01 move 0 001 + 00001740 n 0101 01 + 02 00 | change position; be living  "]
ADJECTIVES = ["00003000 00 s 01 big(p) 0 002 & 00003000 a 0000 ! 00004000 r 0101 | above average in size  "]
ADVERBS = ["00004000 02 r 01 largely 0 000 | to a large size  "]


def write_database(folder: Path) -> Path:
    for part, lines in (("noun", NOUNS), ("verb", VERBS), ("adj", ADJECTIVES), ("adv", ADVERBS)):
        (folder / f"data.{part}").write_text(LICENCE + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def random_sparse(rows: int, columns: int, density: float) -> tuple[SparseMatrix, scipy.sparse.csr_array]:
    theirs = scipy.sparse.random_array((rows, columns), density=density, rng=0, format="csr", dtype=np.float32)
    return SparseMatrix(theirs.indptr.astype(np.int64), theirs.indices.astype(np.int64), theirs.data, columns), theirs


def test_a_line_is_a_synset() -> None:
    first, second, third = parse("noun", [LICENCE, *NOUNS])
    assert first == Synset("noun", 1740, 3, [("noun", 1930), ("verb", 2000)], "that which is perceived; living or not")
    assert second.pointers == [("noun", 1740), ("adj", 3000)]
    assert third.pointers == [("noun", 1930)]  # ten words: the count is hexadecimal


@pytest.mark.parametrize(
    "line",
    ["nonsense", NOUNS[0].replace(" 03 n", " 45 n"), NOUNS[0].replace(" 002 ", " 009 "), NOUNS[0].split(" | ")[0]],
)
def test_a_damaged_line_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="data.noun line 3 is damaged"):
        list(parse("noun", [LICENCE, NOUNS[1], line]))


def test_the_files_are_a_graph(tmp_path: Path) -> None:
    graph = wordnet_graph(write_database(tmp_path), width=3)
    assert graph.labels.tolist() == [3, 5, 5, 38, 0, 2]
    edges = list(zip(graph.sources.tolist(), graph.targets.tolist(), strict=True))
    assert edges == [(0, 1), (0, 3), (1, 2), (1, 4), (4, 5)]  # once each, and none from big to big
    assert graph.features.shape == (6, 3)
    assert len(np.unique(np.concatenate([graph.train, graph.valid, graph.test]))) == 5


def test_a_pointer_to_nowhere_is_reported() -> None:
    with pytest.raises(ValueError, match="9999"):
        edges_of([Synset("noun", 1, 3, [("noun", 9999)], "gloss")])


def test_the_split_is_of_the_wanted_sizes() -> None:
    parts = random_split(117_659, seed=0)
    assert [len(part) for part in parts] == [20_000, 10_000, 20_000]
    assert len(np.unique(np.concatenate(parts))) == 50_000
    np.testing.assert_array_equal(parts[0], random_split(117_659, seed=0)[0])
    assert not np.array_equal(parts[0], random_split(117_659, seed=1)[0])


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("at_once", [1, 40, 1 << 22])
def test_products_are_scipys(density: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.word_vectors._VALUES_AT_ONCE", at_once)
    ours, theirs = random_sparse(70, 50, density)
    dense = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    np.testing.assert_allclose(product(ours, dense), theirs @ dense, rtol=1e-5, atol=1e-5)
    dense = np.random.default_rng(1).standard_normal((70, 4)).astype(np.float32)
    np.testing.assert_allclose(product(transpose(ours), dense), theirs.T @ dense, rtol=1e-5, atol=1e-5)


def test_words_are_weighted_by_rarity() -> None:
    matrix = bag_of_words(["cat dog, dog", "cat", "", "bird Fox cat"], vocabulary=3)
    dense = scipy.sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), (4, 3)).toarray()
    cat, rare = np.log(4 / 3), np.log(4)  # of "bird", "dog" and "fox", as common, "bird" and "dog" are kept
    rows = np.array([[cat, 0, 2 * rare], [cat, 0, 0], [0, 0, 0], [cat, rare, 0]])
    np.testing.assert_allclose(dense, rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), rtol=1e-6)


def test_vectors_span_the_leading_singular_directions() -> None:
    rng = np.random.default_rng(0)
    topics = [[chr(97 + letter) * (2 + number) for number in range(6)] for letter in range(5)]
    texts = [" ".join(rng.choice(topics[number % 5], 6 + number % 5)) for number in range(300)]
    vectors = word_vectors(texts, width=4)
    matrix = bag_of_words(texts, vocabulary=20_000)
    theirs = scipy.sparse.csr_array((matrix.data, matrix.indices, matrix.indptr), (300, matrix.num_columns))
    left, values, _ = scipy.sparse.linalg.svds(theirs.astype(np.float64), k=4)
    singular = np.linalg.norm(vectors, axis=0)
    np.testing.assert_allclose(singular, values[::-1], rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(left.T @ (vectors / singular), axis=0), 1, rtol=1e-3)


def test_regression_finds_what_is_linear() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2000, 5)).astype(np.float32)
    labels = (features @ rng.standard_normal((5, 3))).argmax(axis=1)
    weights = wordnet.fit_softmax(features, labels, 3)
    assert ((features @ weights[:-1] + weights[-1]).argmax(axis=1) == labels).mean() > 0.97


def test_the_program_prints_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wordnet.main([str(write_database(tmp_path)), "--width", "3"]) == 0
    printed = capsys.readouterr().out
    assert "6 synsets, 5 undirected edges" in printed
    assert [line.split(",")[-1][:7] for line in printed.splitlines()[-3:]] == [" 0 hops", " 1 hop:", " 2 hops"]
    (tmp_path / "wrong.tar.gz").write_bytes(b"")
    assert wordnet.main([str(tmp_path / "wrong.tar.gz")]) == 2
    assert wordnet.main([str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
