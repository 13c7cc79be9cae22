"""`ginex infer`: predictions of a run's model for the nodes of a dataset."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from bandwise_commands.errors import messages, reporting_errors
from ginex_jax.cli.byte_sizes import parse_bytes
from ginex_jax.cli.progress import progress_reports

if TYPE_CHECKING:
    from ginex_jax.inference.layerwise import NodeOutputs
    from ginex_jax.store.dataset import Dataset
    from ginex_jax.train.evaluation import Score


@reporting_errors
def infer(
    run: Annotated[Path, typer.Argument(help="What `ginex train` wrote.", show_default=False)],
    dataset: Annotated[Path, typer.Argument(help="The same dataset or another one.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="A .npy file, written anew: a class a node; or float outputs, if labels are many.")
    ],
    split: Annotated[
        Literal["train", "valid", "test"] | None, typer.Option(help="Only its nodes, in its order.", show_default=False)
    ] = None,
    memory: Annotated[str, typer.Option(help="Most memory to use, 600 MB of libraries aside.")] = "2GiB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predict with all neighbours of every node, exactly, on graphs larger than memory; with labels, print how good it is."""
    report = _infer(run, dataset, out, split, parse_bytes(memory))
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
        return
    messages.print(f"wrote {out}: {report['nodes']:,} nodes", markup=False)
    if report["score"] is not None:
        messages.print(f"{split or 'all'} {report['metric']}: {report['score']:.4f}", markup=False)


def _infer(run: Path, path: Path, out: Path, split: str | None, memory_bytes: int) -> dict[str, Any]:
    from ginex_jax.checkpoint.run_folder import best_record, load_run
    from ginex_jax.cli.loaders import features_of
    from ginex_jax.inference.layerwise import infer as layerwise
    from ginex_jax.inference.output_files import write_outputs
    from ginex_jax.models.construction import build_model
    from ginex_jax.store.dataset import open_dataset
    from ginex_jax.train.evaluation import Score

    dataset, record = open_dataset(path), best_record(run)[0]
    config, params = load_run(run)
    features, nodes = features_of(dataset), _nodes_of(dataset, split)
    if features.shape[1] != record.identity.num_features:
        raise ValueError(
            f"{run} was trained on {record.identity.num_features} features, and {path} has {features.shape[1]}"
        )
    is_single = record.identity.training.get("task") == "single-label"
    labels = _labels_of(dataset, is_single, config.num_outputs)
    num_rows, score = dataset.num_nodes if nodes is None else len(nodes), Score()
    held_bytes = sum(array.nbytes for array in (dataset.graph.indptr, labels, nodes) if array is not None)
    if memory_bytes <= held_bytes:
        raise ValueError(
            f"{memory_bytes:,} bytes of memory are too few: {held_bytes:,} are for labels, nodes and where the lists are"
        )
    with progress_reports(messages) as progress:
        outputs = layerwise(
            build_model(config),
            params,
            dataset.graph,
            features,
            memory_bytes=memory_bytes - held_bytes,
            nodes=nodes,
            scratch=out.absolute().parent,
            progress=progress,
        )
        scored = outputs if labels is None else _scored(outputs, labels, score)
        write_outputs(out, scored, num_rows=num_rows, num_outputs=config.num_outputs, predictions=is_single)
    return {
        "out": str(out),
        "nodes": num_rows,
        "split": split,
        "metric": "accuracy" if is_single else "micro-F1",
        "score": None if labels is None else score.value,
    }


def _nodes_of(dataset: "Dataset", split: str | None) -> np.ndarray | None:
    if split is None:
        return None
    nodes = getattr(dataset, split)
    if nodes is None:
        raise ValueError(f"{dataset.path} has no split {split}: leave --split out for all nodes")
    return nodes


def _labels_of(dataset: "Dataset", is_single: bool, num_outputs: int) -> np.ndarray | None:
    """None where there are none of the kind that the model was trained on."""
    labels = dataset.labels
    if labels is None or (labels.ndim == 1) != is_single or (labels.ndim == 2 and labels.shape[1] != num_outputs):
        return None
    return labels


def _scored(outputs: "Iterable[NodeOutputs]", labels: np.ndarray, score: "Score") -> "Iterator[NodeOutputs]":
    for piece in outputs:
        score.add(piece.outputs, labels[piece.node_ids])
        yield piece
