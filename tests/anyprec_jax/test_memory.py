"""What `anyprec quantize` keeps in memory: the weights, the moments of their inputs, and little else."""

from pathlib import Path

import pytest

from anyprec_jax.checkpoint import load
from tests.anyprec_jax.memory import allowed_bytes, peak_bytes
from tests.anyprec_jax.tiny import TEXT, save_tiny_model

SIZES = {"hidden_size": 512, "intermediate_size": 1536, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64}


def peak_and_bound(folder: Path, *, num_layers: int) -> tuple[int, float]:
    text = folder / "text.txt"
    text.write_text(TEXT * 8, encoding="utf-8")
    model = save_tiny_model(folder / f"model-{num_layers}", num_layers=num_layers, **SIZES)
    counts = ["--num-sequences", "2", "--sequence-length", "128", "--parent-precision", "4"]  # few bits: less to do
    peak = peak_bytes("quantize", str(model), str(folder / f"out-{num_layers}"), "--calibration", str(text), *counts)
    return peak, allowed_bytes(load(model))


def test_peak_memory_of_quantize(tmp_path: Path) -> None:
    peak, bound = peak_and_bound(tmp_path, num_layers=2)
    assert peak <= bound


@pytest.mark.slow
def test_peak_memory_of_each_further_layer(tmp_path: Path) -> None:
    """Python and JAX alone take half of the gigabyte that the bound allows them: what each layer adds is held to it too."""
    (few, allowed_few), (many, allowed_many) = (peak_and_bound(tmp_path, num_layers=n) for n in (2, 8))
    assert many <= allowed_many
    # Nothing but the weights and the moments may grow with the number of layers: a third copy would be 1.5.
    assert many - few <= allowed_many - allowed_few
