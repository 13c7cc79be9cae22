"""Trains on a part of a small graph as one of several devices or processes, and writes losses and parameters to a file."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ginex_jax.models.config import ModelConfig
from ginex_jax.models.construction import build_model
from ginex_jax.pipeline.divided_loader import DividedLoader
from ginex_jax.pipeline.loading import Loader
from ginex_jax.pipeline.memory_loader import MemoryLoader
from ginex_jax.sampling.config import SamplerConfig
from ginex_jax.sampling.samplers import WHOLE, LinkSampler, NodeSampler, Share
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.evaluation import batch_evaluator
from ginex_jax.train.inputs import NodeArrays
from ginex_jax.train.loop import fit
from ginex_jax.train.parallel import DataParallel
from tests.ginex_jax.small_links import NUM_NODES, WIDTH, communities, features, held_out, link_config, split

LABELS = np.arange(NUM_NODES) % 8
MODEL = build_model(ModelConfig(kind="sage", hidden=8, num_layers=2, num_outputs=8, dropout=0.0))


class Lines:
    """A log that keeps losses and scores."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, float]] = []

    def restart(self, step: int) -> None:
        pass

    def write(self, record: dict[str, Any]) -> None:
        self.lines.append((record.get("loss", 0.0), record["score"]))

    def close(self) -> None:
        pass


def loader_of(task: str, share: Share) -> Loader:
    """81 nodes in batches of 20, so that the last one leaves a share without a seed; or links, with all neighbours in one hop."""
    if task == "links":
        sampler = LinkSampler(
            communities(), split().train[:300], link_config(64, (None, 4)), held_out=held_out(), share=share
        )
    else:
        config = SamplerConfig(fanouts=(5, 5), batch_size=20, seed=1)
        sampler = NodeSampler(communities(), np.arange(0, 324, 4), config, share=share)
    return MemoryLoader.of(sampler, features())


def trained(task: str, devices: DataParallel | None) -> dict[str, np.ndarray]:
    nodes = NodeArrays(None, nodes_per_link=4) if task == "links" else NodeArrays(LABELS)
    config, log = TrainConfig(task=task, learning_rate=0.01, epochs=2, log_every=1, eval_every=2), Lines()
    if devices is None:
        loader = loader_of(task, WHOLE)
    else:
        loader = DividedLoader([loader_of(task, Share(i, devices.num_shares)) for i in devices.local_shares])
    result = fit(
        MODEL,
        loader,
        nodes,
        config,
        num_features=WIDTH,
        evaluate=batch_evaluator(MODEL, loader_of(task, WHOLE), nodes, task),
        log=log,
        devices=devices,
        stop=lambda: False,
    )
    leaves = {f"{task} {i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(result.params))}
    return {f"{task} log": np.array(log.lines), f"{task} best": np.array(result.best_score), **leaves}


def main(arguments: list[str]) -> None:
    """FILE [NUMBER COUNT COORDINATOR]"""
    if len(arguments) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(arguments[3], int(arguments[2]), int(arguments[1]))
    devices = DataParallel()
    results = {**trained("single-label", devices), **trained("links", devices)}
    np.savez(Path(arguments[0]), shares=np.array([devices.num_shares, len(devices.local_shares)]), **results)
    if len(arguments) > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
