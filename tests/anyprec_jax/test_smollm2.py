"""The real model of the demo, where its data lie in `.cache/data`: what only its size can show.

`make demo` fetches the data. A subprocess quantizes, as a user would, so that it can be killed and its memory measured.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from anyprec_jax.checkpoint import load, manifest
from examples.demo.anyprec import MODEL, SPEECHES, calibration_speeches
from tests.anyprec_jax.memory import allowed_bytes, peak_bytes

DATA = Path(__file__).parents[2] / ".cache" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / MODEL).is_file(), reason="the demo's data are not in .cache/data: run `make demo`"),
]
# Sums of Fisher information are saved after every sequence, so that kills find runs half-way through them.
PROGRAM = """
import sys
from anyprec_jax import cli, model_quantization
model_quantization._SECONDS_BETWEEN_SAVES = 0.0
sys.exit(cli.main())
"""
NUM_SEQUENCES = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    speeches = calibration_speeches(DATA / SPEECHES)[:8]
    file = tmp_path_factory.mktemp("text") / "speeches.txt"
    file.write_text("\n\n".join(speech.read_text(encoding="utf-8") for speech in speeches), encoding="utf-8")
    return file


def command(program: str, out: Path, text: Path) -> list[str]:
    calibration = ["--calibration", str(text), "--num-sequences", str(NUM_SEQUENCES), "--sequence-length", "128"]
    return [sys.executable, "-c", program, "quantize", str(DATA / MODEL), str(out), *calibration]


def staged(out: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in out.parent.glob(f".{out.name}.quantizing/{pattern}"))


def moments(rng: random.Random) -> dict[str, Callable[[Path], bool]]:
    """When to kill: while it loads, between and within calibration sequences, between and within layers, and while it saves."""

    def sequences(done: int) -> Callable[[Path], bool]:
        return lambda out: bool(names := staged(out, "sensitivity-?????")) and int(names[-1][-5:]) >= done

    def layers(done: int) -> Callable[[Path], bool]:
        return lambda out: len(staged(out, "layer-*.npz")) >= done

    # In ascending order: a run that continues is already past what the one before it reached.
    fisher, layer = sorted(rng.sample(range(1, NUM_SEQUENCES), 4)), sorted(rng.sample(range(1, 30), 3))
    return (
        {"loading": lambda out: True}
        | {f"sequence {done}": sequences(done) for done in fisher}
        | {f"layer {done}": layers(done) for done in layer}
        | {"saving": layers(30), "saving again": lambda out: any(out.parent.glob(f".{out.name}.*.partial"))}
    )


def kill_at(process: subprocess.Popen, reached: Callable[[Path], bool], out: Path, delay: float) -> None:
    while not reached(out):
        assert process.poll() is None, "it ended before the moment came"
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_kill_minus_nine_ten_times(text: Path, tmp_path: Path) -> None:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command(PROGRAM, tmp_path / "clean", text), check=True, **quiet)
    rng, out = random.Random(), tmp_path / "killed"
    killed = []
    for name, reached in moments(rng).items():
        process = subprocess.Popen(command(PROGRAM, out, text), **quiet)
        kill_at(process, reached, out, delay=rng.uniform(0, 0.5))
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
        killed.append((name, len(staged(out, "layer-*.npz")), staged(out, "sensitivity-?????")))
    subprocess.run(command(PROGRAM, out, text), check=True, **quiet)

    first, second = (json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "clean", out))
    assert first == second
    assert {entry.dtype for entry in manifest.read(out).arrays.values()} >= {"uint32", "float16"}
    for ours, theirs in zip(
        *(jax.tree.leaves(load(folder).params) for folder in (tmp_path / "clean", out)), strict=True
    ):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "killed"]


def test_peak_memory(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["quantize", DATA / MODEL, out, "--calibration", text, "--num-sequences", 2, "--sequence-length", 512]
    peak = peak_bytes(*map(str, arguments))
    assert peak <= allowed_bytes(load(DATA / MODEL))
