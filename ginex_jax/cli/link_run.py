"""What `ginex train --task links` puts together: as for nodes, but for what is predicted and how it is scored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ginex_jax.checkpoint.run_folder import latest_record
from ginex_jax.cli.loaders import features_of, open_link_loader
from ginex_jax.cli.run_options import RunOptions
from ginex_jax.cli.training_run import TrainingRun
from ginex_jax.features import ArrayFeatures
from ginex_jax.graph import Graph
from ginex_jax.models.construction import build_model
from ginex_jax.sampling.edge_set import edge_set
from ginex_jax.sampling.edge_split import edges_of, split_edges
from ginex_jax.sampling.links import LinkConfig, Links
from ginex_jax.sampling.reduced_graph import graph_without
from ginex_jax.store.dataset import Dataset
from ginex_jax.train.inputs import NodeArrays, check_labels
from ginex_jax.train.link_evaluation import LinkQuality, evaluate_embeddings, evaluation_links

_BYTES_PER_EDGE = 56  # while the edges are divided: the list, a number for each, and the three parts
_NEGATIVES = 50  # a held-out edge is ranked among as many random pairs


class LinkRun(TrainingRun):
    """All edges are in memory, 16 bytes each, and at an evaluation a row of outputs for every node."""

    def __init__(self, dataset: Dataset, path: Path, options: RunOptions) -> None:
        """Raises ValueError where the dataset lacks something, or options are wrong."""
        undirected = options.task == "links"
        _require_memory(dataset.num_edges, options.memory_bytes)
        self._dataset, self._options, self._task = dataset, options, options.task
        self._config, self._model_config = options.training(options.task), options.model_config(options.hidden)
        self._model = build_model(self._model_config)
        link_config = LinkConfig(sampling=options.sampler(), num_negatives=options.negatives, undirected=undirected)
        split = split_edges(
            edges_of(dataset.graph),
            valid_fraction=options.held_out,
            test_fraction=options.held_out,
            seed=options.seed,
            undirected=undirected,
        )
        held_out = np.concatenate([split.valid, split.test])
        self._held_out = edge_set(held_out, dataset.num_nodes, both_directions=undirected)
        self._links = {name: self._held_out_links(edges) for name, edges in split._asdict().items() if name != "train"}
        self._known: tuple[Graph, Graph] | None = None
        self._qualities: list[LinkQuality] = []
        degrees = np.diff(graph_without(dataset.graph, self._held_out).indptr) if self._model.needs_degrees else None
        self._nodes = NodeArrays(None, degrees, nodes_per_link=link_config.nodes_per_link)
        check_labels(self._nodes, self._task, self._model_config.num_outputs)
        self._features, self._edges = features_of(dataset), split.train
        opened = open_link_loader(
            dataset,
            options,
            latest_record(path),
            self._reserved_bytes,
            edges=split.train,
            held_out=self._held_out,
            config=link_config,
        )
        self._open(path, opened)

    def final_scores(self, params: Any, asked: Callable[[], bool]) -> dict[str, float | None]:
        """MRR, and AUC beside it."""
        self._qualities = []
        scores = super().final_scores(params, asked)
        names = [name for name, score in scores.items() if score is not None]
        areas = {f"{name}_auc": quality.auc for name, quality in zip(names, self._qualities, strict=True)}
        return scores | areas

    def _held_out_links(self, edges: np.ndarray) -> Links:
        return evaluation_links(
            edges, num_negatives=_NEGATIVES, num_nodes=self._dataset.num_nodes, seed=self._options.seed
        )

    def _targets(self, split: str) -> Any:
        return self._links[split] if len(self._links[split].sources) else None

    def _evaluated(self) -> list[np.ndarray | None]:
        return [None] if any(self._targets(name) is not None for name in self._links) else []

    def _held_bytes(self) -> int:
        arrays = [self._edges, self._held_out.keys, *(array for links in self._links.values() for array in links)]
        outputs = 4 * self._dataset.num_nodes * self._model_config.num_outputs
        return super()._held_bytes() + sum(array.nbytes for array in arrays) + outputs

    def _score(self, params: Any, targets: Any, asked: Callable[[], bool], graph: Graph, memory_bytes: int) -> float:
        if self._known is None or self._known[0] is not graph:
            self._known = graph, graph_without(graph, self._held_out)
        outputs = np.empty((self._dataset.num_nodes, self._model_config.num_outputs), np.float32)
        for node_ids, rows in self._outputs(params, None, asked, self._known[1], memory_bytes):
            outputs[node_ids] = rows
        self._qualities.append(evaluate_embeddings(ArrayFeatures(outputs), targets, self._task))
        return self._qualities[-1].mrr


def _require_memory(num_edges: int, memory_bytes: int) -> None:
    needed = _BYTES_PER_EDGE * num_edges
    if needed > memory_bytes:
        raise ValueError(
            f"the {num_edges:,} edges need {needed:,} bytes while they are divided into training, validation and test, "
            f"and --memory gives {memory_bytes:,}: give more"
        )
