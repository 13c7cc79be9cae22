"""Runs of made-up models, their figures counted by hand."""

import json
import math

import numpy as np
import pytest

from a3_jax.cost.hardware import Hardware
from a3_jax.workloads.decode import Attend, Text, decode_texts, measure_steps, record_inputs
from a3_jax.workloads.decode_attention import StepSetting, attend_steps
from a3_jax.workloads.decode_inputs import StepInputs
from a3_jax.workloads.decode_report import decode_report, step_settings, text_rows
from a3_jax.workloads.encoder_attention import Setting
from a3_jax.workloads.retrieval_report import named_setting

EXACT = StepSetting(selection=Setting(name="exact"))
HALF = StepSetting(selection=Setting(name="half", iterations=0.5, threshold_percent=20))


def layer_of(rng: np.random.Generator, n: int, scale: float = 1.0) -> StepInputs:
    shapes = (4, 3, 6), (2, n, 6), (2, n, 6)
    return StepInputs(*(scale * rng.normal(size=shape).astype(np.float32) for shape in shapes))


class Model:
    """Two layers, the second of which asks with what the first one said, and logits that are its sums of heads."""

    def __init__(self, seed: int, n: int) -> None:
        rng = np.random.default_rng(seed)
        self.first, self.second = layer_of(rng, n), layer_of(rng, n)

    def steps(self, attend: Attend) -> np.ndarray:
        first = attend(self.first)
        return attend(self.second._replace(query=first)).sum(0) * 3


def test_errors_go_on_and_probabilities_are_compared() -> None:
    models, targets = [Model(seed, 12) for seed in (0, 1)], np.array([[0, 5, 2], [1, 1, 4]])
    texts = (Text(model.steps, target) for model, target in zip(models, targets, strict=True))
    told: list[str] = []
    exact, half = decode_texts(texts, [EXACT, HALF], progress=told.append).runs
    assert told == ["exact", "half"] * 2
    nll, kl = [], []
    for model, target in zip(models, targets, strict=True):
        outputs = []
        for setting in (EXACT, HALF):
            first = attend_steps(model.first, setting).output
            logits = 3 * attend_steps(model.second._replace(query=first), setting).output.sum(0).astype(float)
            outputs.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
        for p, q, token in zip(*outputs, target, strict=True):
            nll.append((-math.log(p[token]), -math.log(q[token])))
            kl.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    np.testing.assert_allclose(np.stack([exact.nll, half.nll], 1), nll, rtol=1e-5)
    np.testing.assert_allclose(half.kl, kl, rtol=1e-4)
    assert half.kl.min() > 1e-4
    np.testing.assert_array_equal(exact.kl, 0)
    assert half.perplexity == pytest.approx(math.exp(np.mean([pair[1] for pair in nll])))


def test_queries_are_in_the_order_of_text_layer_head_step() -> None:
    rng = np.random.default_rng(3)
    texts = [[layer_of(rng, n) for _ in range(2)] for n in (9, 12)]
    decoded = measure_steps(texts, [EXACT, HALF])
    run = decoded.runs[1]
    single = [attend_steps(layer, HALF) for layers in texts for layer in layers]
    for name in ("n", "M", "C", "K"):
        np.testing.assert_array_equal(
            getattr(run.counts, name), np.concatenate([getattr(x, name).ravel() for x in single])
        )
    np.testing.assert_array_equal(run.error, np.concatenate([x.error.ravel() for x in single]))
    np.testing.assert_array_equal(run.layer, np.tile(np.repeat([0, 1], 12), 2))
    assert run.counts.keys == 2 * 2 * 2
    assert len(decoded.concentration.rows) == len(run.layer)
    assert len(run.nll) == len(run.kl) == 0


def test_recorded_inputs_give_what_the_model_gave() -> None:
    model = Model(5, 12)
    text = Text(model.steps, np.array([0, 1, 2]))
    layers = record_inputs(model.steps)
    np.testing.assert_array_equal(layers[1].query, attend_steps(model.first, EXACT).output)
    of_model, of_arrays = decode_texts([text], [EXACT]).runs[0], measure_steps([layers], [EXACT]).runs[0]
    np.testing.assert_array_equal(of_model.counts.K, of_arrays.counts.K)
    np.testing.assert_array_equal(of_model.recall, of_arrays.recall)


def test_the_report_adds_up() -> None:
    settings = step_settings([named_setting(0.5, 20)], sinks=[0, 2])
    assert [setting.name for setting in settings] == [
        "exact",
        "M = 0.5 n, T = 20 %",
        "M = 0.5 n, T = 20 %, first 2 rows exact",
    ]
    decoded = decode_texts([Text(Model(seed, 12).steps, np.zeros(3, int)) for seed in (0, 1)], settings)
    report = decode_report(decoded, Hardware(), head_dim=6, top=5)
    exact, half, _ = report["settings"]
    assert (exact["kl"], exact["mass"], exact["perplexity_over_exact"]) == (0, pytest.approx(1), 1)
    assert exact["mean"]["n"] == exact["mean"]["K"] == 11
    assert exact["cycles_per_query"] == 11 + 9
    assert exact["cycles_per_step"] == pytest.approx(2 * 4 * 20)
    mean = half["mean"]
    assert mean["M"] == pytest.approx((5 + 6 + 6) / 3)  # of 10, 11, 12 rows
    assert half["bytes_per_query"] == pytest.approx(2 * mean["M"] * 6 + (mean["C"] + mean["K"]) * 6 * 2)
    assert half["bytes_over_exact"] == pytest.approx(half["bytes_per_query"] / (2 * 11 * 6 * 2))
    assert np.mean(half["by_layer"]["K"]) == pytest.approx(mean["K"])
    rows = text_rows(report)
    assert len(rows) == 4
    assert len({len(row) for row in rows}) == 1
    json.dumps(report, allow_nan=False)


def test_what_is_refused() -> None:
    text = Text(Model(0, 12).steps, np.zeros(2, int))
    with pytest.raises(ValueError, match="wanted exact attention first"):
        decode_texts([text], [HALF])
    with pytest.raises(ValueError, match="texts: wanted at least one"):
        decode_texts([], [EXACT])
    with pytest.raises(ValueError, match=r"logits: wanted \[2, vocab\], got \[3, 6\]"):
        decode_texts([text], [EXACT])
    with pytest.raises(ValueError, match="at least one layer of each"):
        measure_steps([[]], [EXACT])
