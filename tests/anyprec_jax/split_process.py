"""Loads artefacts onto several devices, of this process or of two, and writes what they compute to a file."""

import sys
from pathlib import Path

import jax
import numpy as np
import tensorstore

from anyprec_jax.checkpoint import load
from anyprec_jax.sharding import tensor_parallel_mesh
from tests.anyprec_jax.split_models import CASES, PRECISION, collectives, outcome, perplexities


def bytes_read() -> int:
    """By TensorStore in this process so far."""
    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])


def main(arguments: list[str]) -> None:
    """OUT FOLDER NAMES [NUMBER COUNT COORDINATOR]"""
    out, folder, names = Path(arguments[0]), Path(arguments[1]), arguments[2].split(",")
    is_alone = len(arguments) == 3
    if not is_alone:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(arguments[5], int(arguments[4]), int(arguments[3]))
    results = {}
    for name in names:
        before = bytes_read()
        mesh = tensor_parallel_mesh(CASES[name][1])
        model = load(folder / name, mesh=mesh)
        results[f"{name} bytes"] = np.array(bytes_read() - before)
        results |= {f"{name} {key}": value for key, value in outcome(model).items()}
        if is_alone:
            results[f"{name} collectives"] = np.array(collectives(model))
        if not is_alone or name == "llama":
            results[f"{name} perplexities"] = perplexities(model)
    np.savez(out, precision=np.array(PRECISION), **results)
    if not is_alone:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
