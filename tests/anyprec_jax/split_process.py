"""Loads artefacts onto several devices, of this process or of two, and writes what they compute to a file; two also quantize a model."""

import sys
from pathlib import Path

import jax
import numpy as np
import tensorstore

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.checkpoint import load
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.model_quantization import Calibration, quantize_model
from anyprec_jax.models.model import Model
from anyprec_jax.ops import cpu
from anyprec_jax.sharding import tensor_parallel_mesh
from tests.anyprec_jax.split_models import CASES, QUANTIZED, outcome, perplexities, written


def bytes_read() -> int:
    """By TensorStore in this process so far."""
    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])


def planes_bytes(model: Model) -> list[int]:
    """Of the planes that each device of this process holds."""
    totals: dict[int, int] = {}
    for leaf in (leaf for leaf in model.params["layers"].values() if isinstance(leaf, AnyPrecArray)):
        for part in leaf.bitplanes.addressable_shards:
            totals[part.device.id] = totals.get(part.device.id, 0) + part.data.nbytes
    return list(totals.values())


def quantized_both_ways(folder: Path) -> None:
    """With the processes there are: weights alike, and by two windows, of which two processes measure one each."""
    text = folder / "text.txt"
    for name, calibration in QUANTIZED.items():
        settings = None if calibration is None else Calibration(text=text, **calibration)
        config = QuantizeConfig(seed_precision=2, parent_precision=3)
        quantize_model(folder / "plain", folder / name, config, calibration=settings, quality="fast")


def main(arguments: list[str]) -> None:
    """OUT FOLDER NAMES exact|native [NUMBER COUNT COORDINATOR]"""
    out, folder, names = Path(arguments[0]), Path(arguments[1]), arguments[2].split(",")
    if arguments[3] == "exact":
        cpu.LIBRARY = Path("none")
    is_alone = len(arguments) == 4
    if not is_alone:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(arguments[6], int(arguments[5]), int(arguments[4]))
    results = {}
    for name in names:
        before = bytes_read()
        mesh = tensor_parallel_mesh(CASES[name][1])
        model = load(folder / name, mesh=mesh)
        results[f"{name} bytes"] = np.array(bytes_read() - before)
        results[f"{name} planes"] = np.array(planes_bytes(model))
        if is_alone:
            results |= {f"{name} {key}": np.asarray(value) for key, value in outcome(model)._asdict().items()}
        else:
            results[f"{name} written"] = np.array(written(model))
            results[f"{name} perplexities"] = perplexities(model)
    if not is_alone:
        quantized_both_ways(folder)
    np.savez(out, **results)
    if not is_alone:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
