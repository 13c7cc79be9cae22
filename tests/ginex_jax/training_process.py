"""`python training_process.py RUN`: a process that trains on the planted partition, to be killed."""

import sys
from pathlib import Path

from ginex_jax.models.construction import build_model
from ginex_jax.train.evaluation import batch_evaluator
from ginex_jax.train.loop import fit
from ginex_jax.train.run_log import JsonLines
from tests.ginex_jax.small_runs import (
    MODEL,
    VALID,
    WIDTH,
    planted_loader,
    planted_nodes,
    planted_run,
    training,
)

CONFIG = training(epochs=12, checkpoint_every=3)


def train(path: Path) -> None:
    loader, nodes, model = planted_loader(), planted_nodes(), build_model(MODEL)
    run = planted_run(path, loader, CONFIG)
    evaluate = batch_evaluator(model, planted_loader(VALID), nodes, CONFIG.task)
    with run.lock(), JsonLines(path / "log.jsonl") as log:
        fit(
            model, loader, nodes, CONFIG, num_features=WIDTH, evaluate=evaluate, checkpoints=run, log=log,
            report=lambda update: _say(update.step),
        )  # fmt: skip


def _say(step: int) -> None:
    sys.stdout.write(f"{step}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    train(Path(sys.argv[1]))
