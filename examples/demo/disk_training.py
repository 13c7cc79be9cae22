"""A graph network trained from disk: the cache holds a part of the features, and reads exactly the rows that were planned."""

import dataclasses
import time
from typing import NamedTuple

import numpy as np

from examples.demo.cache_plan import Trace
from examples.demo.report import TableBlock
from ginex_jax import (
    Dataset,
    ModelConfig,
    NodeArrays,
    NodeSampler,
    OpenedLoader,
    SamplerConfig,
    TrainConfig,
    accuracy,
    build_model,
    fit,
    infer,
    open_loader,
)
from ginex_jax.belady.simulation import simulate

_INFERENCE_BYTES = 128 << 20  # less than a layer's hidden features, which go to disk as well


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, and in how much memory.

    Attributes:
      memory_bytes: of the loader: neighbour lists, feature cache, batches on their way and 96 MiB of buffers. The model's own comes on top.
    """

    sampler: SamplerConfig
    model: ModelConfig
    training: TrainConfig
    memory_bytes: int


class Trained(NamedTuple):
    """What came of it. Rows are feature rows, over all steps."""

    steps: int
    cache_rows: int
    window: int  # mini-batches that the plan saw ahead
    rows: int  # needed
    planned_reads: int
    reads: int
    read_bytes: int
    valid_accuracy: float
    test_accuracy: float
    seconds: float


def open_for(dataset: Dataset, recipe: Recipe) -> OpenedLoader:
    """The loader of the training nodes, in the memory that the recipe gives it."""
    nodes = dataset.train
    assert nodes is not None
    return open_loader(
        dataset,
        lambda graph, shapes: NodeSampler(graph, nodes, recipe.sampler, shapes=shapes),
        memory_bytes=recipe.memory_bytes,
        steps=recipe.training.epochs * -(-len(nodes) // recipe.sampler.batch_size),
    )


def train(dataset: Dataset, opened: OpenedLoader, recipe: Recipe, trace: Trace) -> Trained:
    """Trains to the end, and compares what was read with what a plan of the trace says.

    Raises:
      ValueError: it was not the same.
    """
    features, labels, valid, test = dataset.features, dataset.labels, dataset.valid, dataset.test
    assert features is not None and labels is not None and valid is not None and test is not None
    started, model, split = time.monotonic(), build_model(recipe.model), opened.split

    def score(params: object, nodes: np.ndarray) -> float:
        """The share of the nodes whose class is found, layer by layer over the whole graph."""
        outputs = infer(
            model,
            params,
            opened.graph,
            features,
            memory_bytes=_INFERENCE_BYTES,
            nodes=nodes,
            scratch=dataset.path.parent,
        )
        return accuracy(outputs, labels)

    result = fit(
        model,
        opened.loader,
        NodeArrays(labels),
        recipe.training,
        num_features=features.shape[1],
        evaluate=lambda params: score(params, valid),
    )
    planned = simulate(
        trace, capacity=split.capacity, policy="belady", num_nodes=dataset.num_nodes, window=split.window
    )
    read = opened.loader.features.stats
    if read.rows != planned.sum():
        raise ValueError(f"{planned.sum():,} reads were planned, and {read.rows:,} were made")
    assert result.best_score is not None
    return Trained(
        steps=result.step,
        cache_rows=split.capacity,
        window=split.window,
        rows=sum(len(ids) for ids in trace),
        planned_reads=int(planned.sum()),
        reads=read.rows,
        read_bytes=read.bytes,
        valid_accuracy=result.best_score,
        test_accuracy=score(result.params, test),
        seconds=time.monotonic() - started,
    )


def training_table(trained: Trained, recipe: Recipe, dataset: Dataset, baseline: float) -> TableBlock:
    """What was read, and how good the model is beside the linear one on the same split."""
    rows = [
        ["memory of the loader", f"{recipe.memory_bytes / 2**20:.0f} MiB"],
        ["feature rows in its cache", f"{trained.cache_rows:,} ({trained.cache_rows / dataset.num_nodes:.1%})"],
        ["mini-batches that the plan sees ahead", f"{trained.window}"],
        ["feature rows needed", f"{trained.rows:,}"],
        ["reads planned", f"{trained.planned_reads:,}"],
        ["reads made", f"{trained.reads:,}"],
        ["hit rate", f"{1 - trained.reads / trained.rows:.1%}"],
        ["read from disk", f"{trained.read_bytes / 1e6:,.0f} MB"],
        ["training and evaluation", f"{trained.seconds:.0f} s"],
        ["validation accuracy", f"{trained.valid_accuracy:.3f}"],
        ["test accuracy", f"{trained.test_accuracy:.3f}"],
        ["that of softmax regression over 2 hops", f"{baseline:.3f}"],
    ]
    model = recipe.model
    return TableBlock(
        header=("GraphSAGE from disk", ""),
        rows=rows,
        look_at=(
            f"Training: {model.num_layers} layers, {model.hidden} hidden features, {recipe.training.epochs} epochs, {trained.steps} steps. "
            "Reads made are counted by the store, and those planned by a plan made apart from it; the demo fails where they differ."
        ),
    )
