"""What `quantize_model` makes, and what it says of it."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax import model_quantization, quantization
from anyprec_jax.affine import dequantize_affine, quantize_affine
from anyprec_jax.array import AnyPrecArray
from anyprec_jax.calibration import calibration_windows
from anyprec_jax.checkpoint import load, manifest, precision_for, save
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
from tests.anyprec_jax.tiny_quantization import CONFIG, quantized_from, small_calibration


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
