"""What `anyprec quantize` keeps in memory: the weights, the moments of their inputs, and little else."""

from pathlib import Path

from anyprec_jax.checkpoint import load
from tests.anyprec_jax.memory import allowed_bytes, peak_bytes
from tests.anyprec_jax.tiny import TEXT, save_tiny_model

SIZES = {"hidden_size": 512, "intermediate_size": 1536, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64}


def test_peak_memory_of_quantize(tmp_path: Path) -> None:
    """The bound itself; and, since Python and JAX alone take half of its gigabyte, what each further layer costs."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 8, encoding="utf-8")
    peaks, allowed = [], []
    for num_layers in (2, 8):
        model = save_tiny_model(tmp_path / f"model-{num_layers}", num_layers=num_layers, **SIZES)
        counts = ["--num-sequences", "2", "--sequence-length", "128", "--parent-precision", "4"]  # few bits: less to do
        peaks.append(
            peak_bytes("quantize", str(model), str(tmp_path / f"out-{num_layers}"), "--calibration", str(text), *counts)
        )
        allowed.append(allowed_bytes(load(model)))
        assert peaks[-1] <= allowed[-1]
    # Nothing but the weights and the moments may grow with the number of layers: a third copy would be 1.5.
    assert peaks[1] - peaks[0] <= allowed[1] - allowed[0]
