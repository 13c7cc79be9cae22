"""Models on several devices, of this process or of two, beside one device; what they compute is written to a file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def simulated(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """In exact arithmetic, of every case what several devices make of it, and what one does."""
    cpu.LIBRARY = Path("none")
    results: dict[str, Any] = {}
    for name in names:
        split = load(folder / name, mesh=tensor_parallel_mesh(CASES[name][1]))
        results[f"{name} planes"] = planes_bytes(split)
        whole = load(folder / name)
        # Few tokens go through the experts that they choose, one after the other; more through all.
        for case, width in ((name, 4), *([(f"{name} by token", 1)] if name == "experts" else [])):
            for who, model in (("devices", split), ("one", whole)):
                results |= {f"{case} {who} {key}": value for key, value in outcome(model, width)._asdict().items()}
    return results


def shared(folder: Path) -> dict[str, Any]:
    """With the native product, what processes make of a case, and what the first makes of it alone; all quantize a model together."""
    before = bytes_read()
    split = load(folder / "wide", mesh=tensor_parallel_mesh())
    results: dict[str, Any] = {"bytes": bytes_read() - before}
    results |= {"devices tokens": written(split), "devices perplexities": perplexities(split)}
    quantized_both_ways(folder)
    if jax.process_index() == 0:
        model = load(folder / "wide")
        results |= {"one tokens": written(model), "one perplexities": perplexities(model)}
    return results


def main(arguments: list[str]) -> None:
    """OUT FOLDER, and the NAMES of cases for many devices, or NUMBER COUNT COORDINATOR of a process among several"""
    out, folder, *rest = arguments
    if len(rest) == 1:
        np.savez(out, **simulated(Path(folder), rest[0].split(",")))
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(rest[2], int(rest[1]), int(rest[0]))
    np.savez(out, **shared(Path(folder)))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
