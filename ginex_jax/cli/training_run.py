"""What `ginex train` puts together: dataset, loader, model, evaluation, logs and checkpoints."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bandwise_commands.interrupts import stopping_when
from ginex_jax.checkpoint.record import RunIdentity
from ginex_jax.checkpoint.run_folder import RunFolder, latest_record
from ginex_jax.cli.loaders import features_of, open_training_loader
from ginex_jax.cli.run_options import RunOptions
from ginex_jax.graph import Graph
from ginex_jax.inference.layerwise import NodeOutputs, infer, least_memory
from ginex_jax.models.construction import build_model
from ginex_jax.models.initialization import parameter_shapes
from ginex_jax.pipeline.opening import OpenedLoader, largest_expected
from ginex_jax.sampling.samplers import BatchSampler
from ginex_jax.sampling.shapes import PILOT_EPOCH
from ginex_jax.sampling.source import shape_for
from ginex_jax.store.dataset import Dataset
from ginex_jax.store.manifest import content_digest
from ginex_jax.train.evaluation import Score
from ginex_jax.train.inputs import NodeArrays, check_labels
from ginex_jax.train.loop import FitResult, Update, fit
from ginex_jax.train.run_log import JsonLines, RunLog, SeveralLogs
from ginex_jax.train.step_memory import step_memory

_SPLITS = "valid", "test"
METRICS = {"single-label": "accuracy", "multi-label": "micro-F1", "links": "MRR", "directed-links": "MRR"}


class TrainingRun:
    """One run of the command. Opening it reads labels, splits and what the loader needs, and checks that all fits together."""

    def __init__(self, dataset: Dataset, path: Path, options: RunOptions) -> None:
        """Raises ValueError where the dataset lacks something, or options are wrong."""
        if dataset.labels is None:
            raise ValueError(f"{dataset.path} has no labels: ingest it again with --labels")
        self._dataset, self._options, self._labels = dataset, options, dataset.labels
        self._task = "single-label" if self._labels.ndim == 1 else "multi-label"
        self._config = options.training(self._task)
        self._model_config = options.model_config(num_classes(self._labels))
        self._model = build_model(self._model_config)
        degrees = np.diff(dataset.graph.indptr) if self._model.needs_degrees else None
        self._nodes = NodeArrays(self._labels, degrees)
        check_labels(self._nodes, self._task, self._model_config.num_outputs)
        self._features = features_of(dataset)
        self._open(path, open_training_loader(dataset, options, latest_record(path), self._reserved_bytes))

    def _open(self, path: Path, opened: OpenedLoader) -> None:
        self._opened: OpenedLoader | None = opened
        loader = self._opened.loader
        self._shared_bytes += opened.split.spare
        self._steps_per_epoch = loader.steps_per_epoch
        self.folder = RunFolder(
            path,
            RunIdentity(
                dataset=content_digest(self._dataset.manifest),
                model=self._model_config,
                num_features=self._features.shape[1],
                sampler=loader.sampler_state,
                training=self._config.decisive,
            ),
        )
        self._check_evaluation(opened.graph)

    def fit(self, report: Callable[[Update], None], asked: Callable[[], bool]) -> FitResult:
        """Trains to the end, or until `asked` says so. Once only: the loader's memory is free afterwards."""
        assert self._opened is not None
        opened, valid, memory_bytes = self._opened, self._targets("valid"), self._shared_bytes
        self._opened = None
        with contextlib.ExitStack() as stack:
            logs: list[RunLog] = [stack.enter_context(JsonLines(self.folder.path / "log.jsonl"))]
            if self._options.tensorboard:
                from ginex_jax.train.tensorboard_log import TensorBoardLog

                logs.append(stack.enter_context(TensorBoardLog(self.folder.path / "tensorboard")))
            return fit(
                self._model,
                opened.loader,
                self._nodes,
                self._config,
                num_features=self._features.shape[1],
                evaluate=None
                if valid is None
                else lambda params: self._score(params, valid, asked, opened.graph, memory_bytes),
                checkpoints=self.folder,
                log=SeveralLogs(*logs),
                report=report,
                stop=asked,
            )

    def final_scores(self, params: Any, asked: Callable[[], bool]) -> dict[str, float | None]:
        """On the validation and test nodes, None where there are none."""
        splits = {name: self._targets(name) for name in _SPLITS}
        graph = self._dataset.graph
        graph.pin(0)
        memory_bytes = max(1, self._options.memory_bytes - self._held_bytes())
        return {
            name: None if targets is None else self._score(params, targets, asked, graph, memory_bytes)
            for name, targets in splits.items()
        }

    def description(self) -> dict[str, Any]:
        """For the report: what was trained on what."""
        return {
            "dataset": str(self._dataset.path),
            "model": self._model_config.kind,
            "task": self._task,
            "metric": METRICS[self._task],
            "epochs": self._config.epochs,
            "steps_per_epoch": self._steps_per_epoch,
        }

    def last_step(self) -> int:
        """That of the last checkpoint."""
        record = latest_record(self.folder.path)
        return 0 if record is None else record.step

    def _targets(self, split: str) -> Any:
        """What `_score` scores; None where there is nothing."""
        nodes = {"valid": self._dataset.valid, "test": self._dataset.test}[split]
        return None if nodes is None or len(nodes) == 0 else nodes

    def _held_bytes(self) -> int:
        """Of what stays in memory all the time."""
        arrays = [array for array in (self._nodes.labels, self._nodes.in_degrees) if array is not None]
        return sum(array.nbytes for array in arrays) + self._dataset.graph.indptr.nbytes

    def _reserved_bytes(self, sampler: BatchSampler) -> int:
        """Memory that the loader leaves to others. A step and an evaluation never run at the same time, and share it."""
        batch, shapes = sampler.sampled(PILOT_EPOCH, 0), sampler.shapes
        usual, most = (
            step_memory(
                self._model,
                self._config,
                self._nodes,
                batch,
                shape,
                num_features=self._features.shape[1],
                feature_dtype=self._features.dtype,
            )
            for shape in (shape_for(batch.shape, shapes), largest_expected(shapes))
        )
        self._shared_bytes = max(most.step, self._least_evaluation())
        on_device = most.inputs + 2 * usual.inputs  # under way, waiting, being transferred
        return self._held_bytes() - self._dataset.graph.indptr.nbytes + self._shared_bytes + on_device

    def _evaluated(self) -> list[np.ndarray | None]:
        """The nodes whose outputs an evaluation wants, for each split; None for all."""
        return [nodes for nodes in map(self._targets, _SPLITS) if nodes is not None]

    def _least_evaluation(self) -> int:
        graph, parameters = self._dataset.graph, self._any_parameters()
        least = [least_memory(self._model, parameters, graph, self._features, nodes) for nodes in self._evaluated()]
        return max(least, default=0)

    def _check_evaluation(self, graph: Graph) -> None:
        """Raises ValueError or OSError for an evaluation that would fail for want of memory or disk: now, not after an epoch."""
        for nodes in self._evaluated():
            try:
                infer(
                    self._model,
                    self._any_parameters(),
                    graph,
                    self._features,
                    memory_bytes=self._shared_bytes,
                    nodes=nodes,
                    scratch=self.folder.path / "scratch",
                )
            except ValueError as error:
                raise ValueError(
                    f"evaluations get {self._shared_bytes:,} of {self._options.memory_bytes:,} bytes of memory, too few: {error}"
                ) from error

    def _any_parameters(self) -> Any:
        """Of the model's shapes and dtypes."""
        shapes = parameter_shapes(self._model_config, self._features.shape[1])
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    def _score(self, params: Any, targets: Any, asked: Callable[[], bool], graph: Graph, memory_bytes: int) -> float:
        score = Score()
        for node_ids, rows in self._outputs(params, targets, asked, graph, memory_bytes):
            score.add(rows, self._labels[node_ids])
        return score.value

    def _outputs(
        self, params: Any, nodes: np.ndarray | None, asked: Callable[[], bool], graph: Graph, memory_bytes: int
    ) -> Iterator[NodeOutputs]:
        """Of these nodes, or of all."""
        scratch = self.folder.path / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        try:
            yield from infer(
                self._model,
                params,
                graph,
                self._features,
                memory_bytes=memory_bytes,
                nodes=nodes,
                scratch=scratch,
                progress=stopping_when(asked),
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def num_classes(labels: np.ndarray) -> int:
    """Outputs that a model of these labels needs."""
    return max(int(labels.max(initial=-1)) + 1, 1) if labels.ndim == 1 else labels.shape[1]
