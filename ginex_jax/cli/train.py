"""`ginex train`: from a dataset to the folder of a run."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bandwise_commands.errors import INTERRUPTED, messages, reporting_errors
from bandwise_commands.interrupts import deferred_interrupts
from ginex_jax.cli.progress import training_reports

Model = Literal["sage", "gcn", "gat"]
_OURS = {"config.yaml", ".config.yaml.partial", "log.jsonl", "tensorboard", "checkpoints", "best", "scratch"}


@reporting_errors
def train(
    dataset: Annotated[Path, typer.Argument(help="What `ginex ingest` or `ginex generate` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder of the run: checkpoints and logs.", show_default=False)],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one; options are its own.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="A YAML file with any of the options below.")] = None,
    task: Annotated[
        Literal["nodes", "links", "directed-links"] | None,
        typer.Option(help="What to predict: labels of nodes, or edges. Default: nodes.", show_default=False),
    ] = None,
    negatives: Annotated[int | None, typer.Option(help="Of links: random pairs an edge. Default: 1.")] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Of links: share of the edges for validation, and for test. Default: 0.1.")
    ] = None,
    model: Annotated[Model | None, typer.Option(help="Default: sage.", show_default=False)] = None,
    fanouts: Annotated[
        str | None, typer.Option(help="Neighbours a node for each hop, `all` for all. Default: 10,10,10.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Seeds a step; edges, of links. Default: 1000.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Most memory to use, 600 MB of libraries aside. Default: 2GiB.")
    ] = None,
    policy: Annotated[
        Literal["belady", "lru", "static", "none"] | None,
        typer.Option(help="Which rows the feature cache keeps. Default: belady.", show_default=False),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="At most. Default: 10.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of hidden layers. Default: 256.")] = None,
    aggregator: Annotated[
        Literal["mean", "max"] | None, typer.Option(help="Of sage. Default: mean.", show_default=False)
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Of gat. Default: 1.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Before every layer but the first. Default: 0.5.")] = None,
    input_dropout: Annotated[float | None, typer.Option(help="Before the first layer. Default: 0.")] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Of the layers' arithmetic. Default: float32.", show_default=False),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam. Default: 0.003.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="L2 regularization. Default: 0.")] = None,
    weighted: Annotated[
        bool | None, typer.Option("--weighted", help="Draw neighbours in proportion to edge weights.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. Default: 0.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Epochs between evaluations, 0 for none. Default: 1.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Evaluations without a better one that end it, 0 for no end. Default: 0.")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints. Default: 500.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between lines of log.jsonl. Default: 20.")] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Write RUN/tensorboard too (needs the tensorboard extra).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
) -> None:
    """Train a graph neural network. Killed at any moment, it goes on with --resume and ends with the same parameters, bit for bit."""
    flags = {
        name: value for name, value in locals().items() if name not in ("dataset", "out", "resume", "config", "as_json")
    }
    report = _train(dataset, out, flags, config, resume)
    if as_json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
        return
    if report["pipeline"] is not None:
        messages.print(_pipeline_line(report["pipeline"]), markup=False)
    for split in ("valid", "test"):
        if report[split] is not None:
            messages.print(f"{split} {report['metric']}: {report[split]:.4f}", markup=False)


def _train(path: Path, out: Path, flags: dict[str, Any], config: Path | None, resume: bool) -> dict[str, Any]:
    from ginex_jax.cli.link_run import LinkRun
    from ginex_jax.cli.run_options import merged, write_options
    from ginex_jax.cli.training_run import TrainingRun
    from ginex_jax.store.dataset import open_dataset

    start, dataset = time.monotonic(), open_dataset(path)
    _check_folder(out, resume)
    own_options = out / "config.yaml"
    options = merged(flags, config, own_options if resume and own_options.is_file() else None)
    run = TrainingRun(dataset, out, options) if options.task == "nodes" else LinkRun(dataset, out, options)
    with run.folder.lock():
        run.folder.check()
        write_options(own_options, options)
        with deferred_interrupts() as asked, training_reports(messages) as report:
            try:
                result = run.fit(report, asked)
                is_interrupted = result.interrupted
                scores = {} if is_interrupted else run.final_scores(result.params, asked)
            except KeyboardInterrupt:
                is_interrupted, result, scores = True, None, {}
    if is_interrupted or result is None:
        step = run.last_step()
        messages.print(f"interrupted: `ginex train {path} --out {out} --resume` goes on from step {step}", markup=False)
        raise typer.Exit(INTERRUPTED)
    return run.description() | {
        "out": str(out),
        "steps": result.step,
        "best_step": result.best_step,
        "stopped_early": result.stopped_early,
        **scores,
        "pipeline": None if result.pipeline is None else result.pipeline.to_json(),
        "seconds": round(time.monotonic() - start, 3),
    }


def _pipeline_line(pipeline: dict[str, Any]) -> str:
    """How the features came, and what training waited for."""
    seconds = max(pipeline["seconds"], 1e-9)
    stages = pipeline["stages"]
    busiest = max(stages, key=lambda name: stages[name]["busy"])
    return (
        f"features: {pipeline['rows']:,} rows, {pipeline['hit_rate']:.1%} from memory, "
        f"{pipeline['misses'] / seconds:,.0f} rows/s from disk ({pipeline['read_bytes'] / 1e9:,.2f} GB); "
        f"steps waited {stages['step']['starved'] / seconds:.0%} of the time, and the busiest stage was: {busiest}"
    )


def _check_folder(out: Path, resume: bool) -> None:
    """A run begins in a new folder, or in one where none has come to its first checkpoint."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is not a folder: choose another place")
    entries = {entry.name for entry in out.iterdir()}
    if entries - _OURS:
        raise FileExistsError(f"{out} has other files ({min(entries - _OURS)}): choose another folder")
    checkpoints = out / "checkpoints"
    if not resume and checkpoints.is_dir() and any(entry.name.isdecimal() for entry in checkpoints.iterdir()):
        raise FileExistsError(f"{out} has checkpoints: --resume goes on from the last, or choose another folder")
