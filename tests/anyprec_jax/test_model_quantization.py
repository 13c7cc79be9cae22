import dataclasses
import errno
import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import model_quantization, quantization
from anyprec_jax.affine import dequantize_affine, quantize_affine
from anyprec_jax.array import AnyPrecArray
from anyprec_jax.calibration import calibration_windows
from anyprec_jax.checkpoint import load, manifest, precision_for, save
from anyprec_jax.config import QuantizeConfig
from anyprec_jax.joint_codes import JointSettings
from anyprec_jax.layer_divergence import divergence_of_layers
from anyprec_jax.layout import natural
from anyprec_jax.model_quantization import Calibration, quantize_model
from anyprec_jax.models.fusion import LINEARS, unfused
from anyprec_jax.models.model import Model
from anyprec_jax.ops import dequantize
from anyprec_jax.quantization import quantize, quantize_jointly
from anyprec_jax.sensitivity import sequence_accumulator, zeros
from tests.anyprec_jax.tiny import TEXT, save_tiny_model, tiny_model

CONFIG = QuantizeConfig(seed_precision=2, parent_precision=5)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(TEXT * 4, encoding="utf-8")
    return Calibration(text=text, num_sequences=4, sequence_length=24, seed=5)


@pytest.fixture(scope="module")
def finished(source: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "artefact"
    quantize_model(source, out, CONFIG, calibration=calibration, quality="fast")
    return out


@pytest.fixture(scope="module")
def best(source: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("best") / "artefact"
    quantize_model(source, out, CONFIG, calibration=calibration)
    return out


def checksums(out: Path) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in manifest.read(out).arrays.items()}


def test_each_matrix_is_what_quantizing_it_alone_gives(source: Path, calibration: Calibration, finished: Path) -> None:
    model, quantized = load(source), load(finished)
    assert model.tokenizer is not None and isinstance(calibration.text, Path)
    tokens = np.asarray(model.tokenizer.encode(calibration.text.read_text(), special_tokens=False), np.int32)
    scores = zeros(model.params)
    accumulate = sequence_accumulator(model.params, model.config)
    for window in calibration_windows(tokens, num_sequences=4, sequence_length=24, seed=5):
        accumulate(jnp.asarray(window), scores)

    linears = unfused(quantized.params["layers"])
    for name in LINEARS:
        stack = linears[name]
        for layer in range(model.config.num_layers):
            alone = quantize(np.asarray(model.params["layers"][name][layer]), scores[name][layer], CONFIG)
            np.testing.assert_array_equal(stack.bitplanes[layer], alone.bitplanes)
            for w in CONFIG.precisions:
                np.testing.assert_array_equal(stack.codebooks[w][layer], alone.codebooks[w])
    head = quantize_affine(model.params["embedding"])
    for leaf in ("codes", "scale", "offset"):
        np.testing.assert_array_equal(getattr(quantized.params["embedding"], leaf), getattr(head, leaf))


def test_the_best_quality_is_the_joint_optimum_under_the_moments(
    source: Path, calibration: Calibration, best: Path
) -> None:
    model, quantized = load(source), unfused(load(best).params["layers"])
    assert model.tokenizer is not None and isinstance(calibration.text, Path)
    tokens = np.asarray(model.tokenizer.encode(calibration.text.read_text(), special_tokens=False), np.int32)
    moments = zeros(model.params, "moment")
    accumulate = sequence_accumulator(model.params, model.config, ("moment",))
    for window in calibration_windows(tokens, num_sequences=4, sequence_length=24, seed=5):
        accumulate(jnp.asarray(window), moments)
    for name, layer in [("q_proj", 0), ("down_proj", 2)]:
        alone = quantize_jointly(np.asarray(model.params["layers"][name][layer]), moments[name][layer], CONFIG)
        np.testing.assert_array_equal(quantized[name].bitplanes[layer], alone.bitplanes)
        for w in CONFIG.precisions:
            np.testing.assert_array_equal(quantized[name].codebooks[w][layer], alone.codebooks[w])


def test_what_precisions_cost_is_in_proportion_to_the_moments_and_in_all_what_was_measured(
    source: Path, calibration: Calibration, best: Path
) -> None:
    model, quantized, errors = load(source), unfused(load(best).params["layers"]), load(best).errors
    assert model.tokenizer is not None and isinstance(calibration.text, Path)
    tokens = np.asarray(model.tokenizer.encode(calibration.text.read_text(), special_tokens=False), np.int32)
    windows = calibration_windows(tokens, num_sequences=4, sequence_length=24, seed=5)
    moments = zeros(model.params, "moment")
    accumulate = sequence_accumulator(model.params, model.config, ("moment",))
    for window in windows:
        accumulate(jnp.asarray(window), moments)
    matrices = {name: jax.tree.map(lambda leaf: leaf[1], natural(quantized[name])) for name in LINEARS}

    def trace(name: str, precision: int) -> float:
        read = dequantize(matrices[name], precision=precision)
        error = np.asarray(model.params["layers"][name][1] - read, np.float64)
        return float(np.trace(error @ moments[name][1].astype(np.float64) @ error.T))

    assert errors is not None and errors.precisions == tuple(CONFIG.precisions)
    stored = errors.linears["k_proj"][1, 0] / errors.linears["down_proj"][1, 2]
    assert stored == pytest.approx(trace("k_proj", 2) / trace("down_proj", 4), rel=1e-4)
    measured = divergence_of_layers(model.params, model.config, windows[[0, -1]])(1, matrices)
    assert sum(table[1, 0] for table in errors.linears.values()) == pytest.approx(measured, rel=1e-4)


def test_what_a_precision_costs_is_known_where_there_was_a_calibration(
    source: Path, finished: Path, tmp_path: Path
) -> None:
    """With the Fisher information, too; a weight that nobody measured has no scale that others share."""
    errors = manifest.read(finished).errors
    assert errors is not None and set(errors.linears) == set(LINEARS)
    assert all((np.diff(table) < 0).all() and (table > 0).all() for table in errors.linears.values())
    quantize_model(source, tmp_path / "uniform", CONFIG, calibration=None)
    assert manifest.read(tmp_path / "uniform").errors is None


def test_costs_that_cannot_be_measured_leave_no_table(
    source: Path, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one layer is enough: the artefact is whole, and says that it cannot share bits out."""
    measured = {0: 0.5, 1: float("nan"), 2: 0.5}
    monkeypatch.setattr(model_quantization, "divergence_of_layers", lambda *_: lambda layer, _: measured[layer])
    quantize_model(source, tmp_path / "out", CONFIG, calibration=calibration, quality="fast")
    assert load(tmp_path / "out").errors is None
    with pytest.raises(ValueError, match="quantize it again with a calibration"):
        precision_for(tmp_path / "out", 3.5)


def test_more_bits_are_closer(source: Path, finished: Path) -> None:
    weights, quantized = load(source).params["layers"], unfused(load(finished).params["layers"])
    for name in LINEARS:
        layer = AnyPrecArray(
            quantized[name].bitplanes[0],
            {w: book[0] for w, book in quantized[name].codebooks.items()},
            seed_precision=2,
            parent_precision=5,
            k=quantized[name].k,
        )
        errors = [float(jnp.mean((dequantize(layer, precision=w) - weights[name][0]) ** 2)) for w in CONFIG.precisions]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 8


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


def test_the_manifest_tells_how_it_was_made(finished: Path, best: Path) -> None:
    provenance = json.loads((finished / "manifest.json").read_text())["provenance"]
    settings = {"seed_precision": 2, "parent_precision": 5, "head_precision": 8}
    assert provenance["quantization"] == settings | {"quality": "fast"}
    assert provenance["calibration"]["texts"] == ["text.txt"]
    assert provenance["calibration"]["num_sequences"] == 4
    assert provenance["calibration"]["seed"] == 5
    assert provenance["source"]["name"] == "tiny"

    joint = json.loads((best / "manifest.json").read_text())["provenance"]["quantization"].pop("joint")
    assert joint["importance"] == {"2": 8.0, "3": 4.0, "4": 16.0, "5": 64.0}
    assert set(joint) == {"importance", "damping", "rounds", "sweeps"}


def test_the_matrix_quantizers_are_the_public_ones() -> None:
    assert model_quantization.quantize is quantization.quantize
    assert model_quantization.quantize_jointly is quantization.quantize_jointly


class TestQuality:
    def test_without_calibration_there_is_only_fast(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="best quality needs a calibration text"):
            quantize_model(source, tmp_path / "out", CONFIG, calibration=None, quality="best")
        quantize_model(source, tmp_path / "out", CONFIG, calibration=None)
        assert manifest.read(tmp_path / "out").provenance["quantization"]["quality"] == "fast"

    def test_settings_are_part_of_what_a_run_makes(self, source: Path, best: Path, calibration: Calibration) -> None:
        with pytest.raises(FileExistsError, match="other settings"):
            quantize_model(source, best, CONFIG, calibration=calibration, joint=JointSettings(importance={2: 5.0}))

    def test_fast_has_no_settings_and_others_do_not_exist(
        self, source: Path, calibration: Calibration, tmp_path: Path
    ) -> None:
        settings: dict[str, Any] = {"calibration": calibration}
        with pytest.raises(ValueError, match="the fast quality has none"):
            quantize_model(source, tmp_path / "out", CONFIG, quality="fast", joint=JointSettings(), **settings)
        with pytest.raises(ValueError, match="importance is given for 7 bits"):
            quantize_model(source, tmp_path / "out", CONFIG, joint=JointSettings(importance={7: 1.0}), **settings)
        with pytest.raises(ValueError, match="quality must be one of fast, best, got 'good'"):
            inspect.unwrap(model_quantization._checked_quality)("good", None, calibration)
        assert list(tmp_path.iterdir()) == []

    def test_several_texts(self, source: Path, calibration: Calibration, tmp_path: Path) -> None:
        other = tmp_path / "other.txt"
        other.write_text(TEXT.upper() * 4, encoding="utf-8")
        assert isinstance(calibration.text, Path)
        both = dataclasses.replace(calibration, text=(calibration.text, other))
        quantize_model(source, tmp_path / "out", CONFIG, calibration=both, quality="fast")
        assert manifest.read(tmp_path / "out").provenance["calibration"]["texts"] == ["text.txt", "other.txt"]
        with pytest.raises(FileExistsError, match="other settings"):
            quantize_model(source, tmp_path / "out", CONFIG, calibration=calibration, quality="fast")


class TestHeadPrecision:
    def test_none_leaves_the_embedding_as_it_is(self, source: Path, tmp_path: Path) -> None:
        quantize_model(source, tmp_path / "out", CONFIG, calibration=None, head_precision=None)
        np.testing.assert_array_equal(load(tmp_path / "out").params["embedding"], load(source).params["embedding"])

    def test_is_part_of_what_a_run_makes(self, source: Path, tmp_path: Path) -> None:
        quantize_model(source, tmp_path / "out", CONFIG, calibration=None)
        with pytest.raises(FileExistsError, match="other settings"):
            quantize_model(source, tmp_path / "out", CONFIG, calibration=None, head_precision=None)

    def test_an_untied_head_is_affine_too(self, tmp_path: Path) -> None:
        source = save_tiny_model(tmp_path / "untied", tie_embeddings=False)
        quantize_model(source, tmp_path / "out", CONFIG, calibration=None)
        weights, params = load(source).params, load(tmp_path / "out").params
        for name in ("embedding", "head"):
            scale = np.asarray(params[name].scale)[:, None]
            assert np.all(np.abs(np.asarray(dequantize_affine(params[name])) - weights[name]) <= 0.5001 * scale)
        assert not np.array_equal(params["embedding"].codes, params["head"].codes)

    @pytest.mark.parametrize("precision", [4, 16, 0])
    def test_others_are_refused(self, source: Path, tmp_path: Path, precision: int) -> None:
        with pytest.raises(ValueError, match=f"head_precision must be 8 or None, got {precision}"):
            quantize_model(source, tmp_path / "out", CONFIG, calibration=None, head_precision=precision)
        assert list(tmp_path.iterdir()) == []

    def test_a_nan_in_the_embedding_is_named(self, tmp_path: Path) -> None:
        model = tiny_model()
        embedding = np.array(model.params["embedding"])
        embedding[7, 5] = np.nan
        save(tmp_path / "nan", Model(model.config, model.params | {"embedding": jnp.asarray(embedding)}))
        with pytest.raises(ValueError, match=r"embedding is nan at \[7, 5\]"):
            quantize_model(tmp_path / "nan", tmp_path / "out", CONFIG, calibration=None)
