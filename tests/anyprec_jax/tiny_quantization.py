"""Runs of `quantize_model` on the tiny model, for the tests of what they make and of how they end."""

from pathlib import Path
from typing import Literal

from anyprec_jax.checkpoint import manifest
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.model_quantization import Calibration, quantize_model
from tests.anyprec_jax.tiny import TEXT

CONFIG = QuantizeConfig(seed_precision=2, parent_precision=5)


def small_calibration(folder: Path) -> Calibration:
    """Four short windows of a text that is written there."""
    text = folder / "text.txt"
    text.write_text(TEXT * 4, encoding="utf-8")
    return Calibration(text=text, num_sequences=4, sequence_length=24, seed=5)


def quantized_from(source: Path, folder: Path, calibration: Calibration, quality: Literal["fast", "best"]) -> Path:
    """The artefact, in that folder."""
    quantize_model(source, folder / "artefact", CONFIG, calibration=calibration, quality=quality)
    return folder / "artefact"


def checksums(artefact: Path) -> dict[str, str]:
    """Of every array."""
    return {name: entry.sha256 for name, entry in manifest.read(artefact).arrays.items()}
