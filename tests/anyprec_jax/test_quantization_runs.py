"""How a run of `quantize_model` ends: killed and continued, refused, out of disk; nothing half-written, nothing lost."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest

from anyprec_jax import model_quantization
from anyprec_jax.checkpoint import load, manifest, save
from anyprec_jax.model_quantization import Calibration, quantize_model
from anyprec_jax.models.fusion import LINEARS
from anyprec_jax.models.model import Model
from tests.anyprec_jax.tiny import save_tiny_model, tiny_model
from tests.anyprec_jax.tiny_quantization import CONFIG, checksums, quantized_from, small_calibration


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return small_calibration(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def finished(source: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized_from(source, tmp_path_factory.mktemp("finished"), calibration, "fast")


@pytest.fixture(scope="module")
def best(source: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized_from(source, tmp_path_factory.mktemp("best"), calibration, "best")


class Killed(BaseException):
    """Stands for SIGKILL; unlike the signal it unwinds the stack, so the subprocess test below is needed as well."""


@pytest.mark.parametrize("quality", ["fast", "best"])
def test_interrupted_at_every_step_it_continues_to_the_same_arrays(
    quality: Literal["fast", "best"],
    source: Path,
    calibration: Calibration,
    finished: Path,
    best: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every change that lasts is a rename: run until the next one, stop just before it, and start again, until it is done."""
    monkeypatch.setattr(model_quantization, "_SECONDS_BETWEEN_SAVES", 0.0)
    rename, quantized_layers, renames = Path.rename, [], []

    def rename_once_then_die(self: Path, target: Path) -> Path:
        if renames:
            raise Killed
        renames.append(target)
        return rename(self, target)

    quantized = model_quantization._quantized

    def count(weights, *arguments):
        quantized_layers.append(weights.shape)
        return quantized(weights, *arguments)

    monkeypatch.setattr(model_quantization, "_quantized", count)
    out = tmp_path / "artefact"
    for _attempt in range(40):
        renames.clear()
        monkeypatch.setattr(Path, "rename", rename_once_then_die)
        try:
            quantize_model(source, out, CONFIG, calibration=calibration, quality=quality)
            break
        except Killed:
            monkeypatch.setattr(Path, "rename", rename)
            assert not out.exists()
    else:
        pytest.fail("it never finished")

    uninterrupted = {"fast": finished, "best": best}[quality]
    assert checksums(out) == checksums(uninterrupted)
    assert manifest.read(out).provenance == manifest.read(uninterrupted).provenance
    assert [p.name for p in tmp_path.iterdir()] == ["artefact"]
    # One matrix more than needed for each attempt that died before its layer was renamed: finished layers are not redone.
    assert len(quantized_layers) <= 2 * 3 * len(LINEARS)


def _command(source: Path, out: Path, calibration: Calibration) -> list[str]:
    counts = ["--num-sequences", "4", "--sequence-length", "24", "--seed", "5", "--quality", "fast"]
    precisions = ["--seed-precision", "2", "--parent-precision", "5"]
    program = "from anyprec_jax.cli import main; main()"
    return [
        sys.executable, "-c", program, "quantize", str(source), str(out), "--calibration", str(calibration.text), *counts, *precisions
    ]  # fmt: skip


# As `finished` is made in this process: other optimizations are other bits.
_AS_HERE = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def _kill_then_finish(source: Path, out: Path, calibration: Calibration, kills: int, clean_seconds: float) -> None:
    rng = random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen(
            _command(source, out, calibration), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_AS_HERE
        )
        time.sleep(rng.uniform(0.3, 1.0) * clean_seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    command = _command(source, out, calibration)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_AS_HERE)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_kill_minus_nine_ten_times(source: Path, calibration: Calibration, finished: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    subprocess.run(_command(source, tmp_path / "clean", calibration), check=True, capture_output=True, env=_AS_HERE)
    clean_seconds = time.monotonic() - started

    _kill_then_finish(source, tmp_path / "killed", calibration, kills=10, clean_seconds=clean_seconds)

    assert checksums(tmp_path / "killed") == checksums(tmp_path / "clean") == checksums(finished)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "killed"]


def test_the_same_command_again_changes_nothing(source: Path, calibration: Calibration, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    quantize_model(source, finished, CONFIG, calibration=calibration, quality="fast")
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_other_settings_do_not_overwrite(source: Path, finished: Path) -> None:
    before = checksums(finished)
    with pytest.raises(FileExistsError, match="other settings"):
        quantize_model(source, finished, CONFIG, calibration=None)
    assert checksums(finished) == before


def test_an_unfinished_run_with_other_settings_is_not_continued(
    source: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_args: object) -> None:
        raise Killed

    monkeypatch.setattr(model_quantization, "_quantize_layers", die)
    with pytest.raises(Killed):
        quantize_model(source, tmp_path / "out", CONFIG, calibration=calibration, quality="fast")
    with pytest.raises(FileExistsError, match="unfinished run that differs in calibration"):
        quantize_model(source, tmp_path / "out", CONFIG, calibration=None)


def test_a_second_process_is_kept_out(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is per open file, so a second opening in this process stands for a second process."""
    errors = []

    def meanwhile(*args: object) -> None:
        monkeypatch.undo()
        try:
            quantize_model(source, tmp_path / "out", CONFIG, calibration=None)
        except FileExistsError as error:
            errors.append(str(error))
        model_quantization._quantize_layers(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(model_quantization, "_quantize_layers", meanwhile)
    quantize_model(source, tmp_path / "out", CONFIG, calibration=None)
    assert len(errors) == 1 and "another process" in errors[0]
    assert load(tmp_path / "out").config.num_layers == 3


def test_something_else_in_the_way(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="already exists"):
        quantize_model(source, tmp_path / "out", CONFIG, calibration=None)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "thesis.tex"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    model = tiny_model()
    broken = model.params["layers"]["up_proj"].at[1, 7, 11].set(value)
    params = model.params | {"layers": model.params["layers"] | {"up_proj": broken}}
    save(tmp_path / "broken", Model(config=model.config, params=params, tokenizer=model.tokenizer))
    with pytest.raises(ValueError, match=r"up_proj of layer 1 .* row 7, column 11"):
        quantize_model(tmp_path / "broken", tmp_path / "out", CONFIG, calibration=None)
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("name", ["embedding", "final_norm", "layers/input_norm"])
def test_a_nan_outside_the_linears_is_named(name: str, tmp_path: Path) -> None:
    """It would be copied into an artefact that passes every check and answers nothing."""
    model = tiny_model()
    top, _, inner = name.partition("/")
    leaf = model.params[top][inner] if inner else model.params[top]
    broken = leaf.at[(1,) * leaf.ndim].set(np.nan)
    params = model.params | {top: model.params[top] | {inner: broken} if inner else broken}
    save(tmp_path / "broken", Model(config=model.config, params=params, tokenizer=model.tokenizer))
    with pytest.raises(ValueError, match=rf"{inner or top} is nan at \[1"):
        quantize_model(tmp_path / "broken", tmp_path / "out", CONFIG, calibration=None)
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_a_weight_beyond_float16_is_named_before_anything_is_measured(calibration: Calibration, tmp_path: Path) -> None:
    model = tiny_model()
    broken = model.params["layers"]["up_proj"].at[1, 7, 11].set(-65520.0)
    params = model.params | {"layers": model.params["layers"] | {"up_proj": broken}}
    save(tmp_path / "broken", Model(config=model.config, params=params, tokenizer=model.tokenizer))
    seen: list[str] = []
    with pytest.raises(ValueError, match=r"up_proj of layer 1 is -65520\.0 at row 7, column 11: codebooks are float16"):
        quantize_model(
            tmp_path / "broken",
            tmp_path / "out",
            CONFIG,
            calibration=calibration,
            progress=lambda *step: seen.append(step[0]),
        )
    assert not seen
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_an_error_that_would_come_again_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise ValueError("row 3 cannot be clustered")

    monkeypatch.setattr(model_quantization, "quantize", fail)
    with pytest.raises(ValueError, match="q_proj of layer 0: row 3 cannot be clustered"):
        quantize_model(source, tmp_path / "out", CONFIG, calibration=None)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"needs about .* MB, and 0\.0 MB are free"):
        quantize_model(source, tmp_path / "out", CONFIG, calibration=None)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up(
    source: Path, calibration: Calibration, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="the disk is full: make room and repeat the command"):
            quantize_model(source, tmp_path / "out", CONFIG, calibration=calibration, quality="fast")
    assert not (tmp_path / "out").exists()
    quantize_model(source, tmp_path / "out", CONFIG, calibration=calibration, quality="fast")
    assert checksums(tmp_path / "out") == checksums(finished)


def test_no_tokenizer_and_too_little_text(source: Path, calibration: Calibration, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    save(silent, Model(config=tiny_model().config, params=tiny_model().params, tokenizer=None))
    with pytest.raises(ValueError, match="needs a tokenizer"):
        quantize_model(silent, tmp_path / "out", CONFIG, calibration=calibration)
    quantize_model(silent, tmp_path / "out", CONFIG, calibration=None)  # uniform weights need none
    assert load(tmp_path / "out").tokenizer is None

    short = Calibration(text=calibration.text, num_sequences=1000, sequence_length=24)
    with pytest.raises(ValueError, match="1000 sequences of 24 need 24,000"):
        quantize_model(source, tmp_path / "other", CONFIG, calibration=short)

    long = Calibration(text=calibration.text, num_sequences=1, sequence_length=257)  # of the 344 tokens there are
    with pytest.raises(ValueError, match="sequences of 257 tokens exceed the model's context of 256"):
        quantize_model(source, tmp_path / "other", CONFIG, calibration=long)


def test_an_artefact_cannot_be_quantized_again(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantized already"):
        quantize_model(finished, tmp_path / "out", CONFIG, calibration=None)
