"""The peers' table on a model of a few thousand weights: what each method is meant to be best at, its bits, and what is kept of a run."""

from pathlib import Path

import jax
import numpy as np
import pytest

from anyprec_jax.evaluate import evaluate
from anyprec_jax.models import LINEARS
from anyprec_jax.ops import dequantize
from benchmarks import anyprec_peers
from benchmarks.anyprec_peers import Measured, Progress, Version, by_gptq, by_rounding, nested, one_by_one, score
from benchmarks.peers_figure import curve
from benchmarks.quality_methods import fast
from benchmarks.quality_models import Subject
from benchmarks.quality_moments import READS_WITH, input_moments, measured_by_loss
from tests.anyprec_jax.tiny import tiny_model

WINDOWS = np.random.default_rng(0).integers(0, 260, (4, 16)).astype(np.int32)
PRECISIONS = range(3, 9)
# Columns of the linears of tiny_model, and how many weights of a layer have that many.
WEIGHTS = {48: 48 * (48 + 16 + 16 + 48) + 2 * 72 * 48, 72: 48 * 72}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    model = tiny_model()
    subject = Subject(Path("nowhere.gguf"), model)
    moments = input_moments(model, WINDOWS)
    return Measured(subject, measured_by_loss(model, WINDOWS), moments, tmp_path_factory.mktemp("scratch"))


def plain(version: Version, name: str) -> np.ndarray:
    """A stack of matrices as the version has them, float64."""
    stack = version.model.params["layers"][name]
    if version.precision is not None:
        stack = jax.vmap(lambda matrix: dequantize(matrix, precision=version.precision))(stack)
    return np.asarray(stack, np.float64)


def test_a_clustering_alone_is_at_least_as_good_as_a_nested_one(measured: Measured) -> None:
    """Under the weights that both are given; at the seed they are the same."""
    for own, shared in zip(one_by_one(measured), nested(fast)(measured), strict=True):
        assert own.setting == shared.setting
        for name in LINEARS:
            weights = np.asarray(measured.subject.model.params["layers"][name], np.float64)
            fisher = measured.by_loss["fisher"][name].astype(np.float64)
            error, other = (np.sum(fisher * (plain(version, name) - weights) ** 2) for version in (own, shared))
            # Codebooks are rounded to float16: 2**-11 of a weight, squared.
            slack = np.sum(fisher * (2**-11 * weights) ** 2)
            assert error <= other + slack
            if own.setting == "3":
                assert error == pytest.approx(other, rel=1e-12)


def test_bits_of_codes(measured: Measured) -> None:
    """Planes in words of 32 columns, and one float16 codebook; of nested codes all of them are resident."""
    total = sum(WEIGHTS.values())

    def bits(precisions: int, entries: int) -> float:
        return sum(count / k * (precisions * 32 * -(-k // 32) + 16 * entries) for k, count in WEIGHTS.items()) / total

    for own, shared, w in zip(one_by_one(measured), nested(fast)(measured), PRECISIONS, strict=True):
        assert own.bits_read == own.bits_resident == shared.bits_read == pytest.approx(bits(w, 2**w), rel=1e-12)
        assert shared.bits_resident == pytest.approx(bits(8, sum(2**p for p in PRECISIONS)), rel=1e-12)


def test_gptq_has_smaller_errors_of_outputs_than_rounding(measured: Measured) -> None:
    """Summed over the linears, under the moments that it was given; at the bits of codes and two float16 numbers a row."""
    weights = {name: np.asarray(measured.subject.model.params["layers"][name], np.float64) for name in LINEARS}
    for ours, nearest, w in zip(by_gptq(measured), by_rounding(measured), PRECISIONS, strict=True):
        errors = []
        for version in (ours, nearest):
            assert version.setting == str(w)
            expected = w + sum(count * 32 / k for k, count in WEIGHTS.items()) / sum(WEIGHTS.values())
            assert version.bits_read == version.bits_resident == pytest.approx(expected, rel=1e-12)
            error = 0.0
            for name in LINEARS:
                difference = plain(version, name) - weights[name]
                moment = measured.inputs[READS_WITH[name]].astype(np.float64)
                error += np.einsum("lnk,lkm,lnm->", difference, moment, difference)
            errors.append(error)
        assert errors[0] < 0.7 * errors[1]


def test_scores_are_those_of_the_evaluator(measured: Measured) -> None:
    model, tokens = measured.subject.model, np.random.default_rng(1).integers(0, 260, 40).astype(np.int32)
    versions = list(nested(fast)(measured))[:2]
    rows = score("fast", versions, model, {"in domain": tokens}, 20)
    expected = evaluate(versions[0].model, tokens, precisions=[3, 4], reference=model, sequence_length=20)
    assert [(row["method"], row["setting"], row["types"]) for row in rows] == [("fast", "3", None), ("fast", "4", None)]
    for row, result in zip(rows, expected[1:], strict=True):
        found = row["texts"]["in domain"]
        assert (found["kl"], found["perplexity"], found["top1"]) == (result.kl, result.perplexity, result.top1)
        assert found["reference_perplexity"] == expected[0].perplexity
        assert row["bits_read"] == result.bits_per_weight


def test_a_run_goes_on_where_it_stopped_if_it_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    Progress(file, ["commit", {"tokens": 9}]).keep("fast", [{"setting": "3"}])
    assert Progress(file, ["commit", {"tokens": 9}]).rows == {"fast": [{"setting": "3"}]}
    assert Progress(file, ["another", {"tokens": 9}]).rows == {}
    assert Progress(file, ["commit", {"tokens": 8}]).rows == {}


def test_a_curve_goes_by_bits_and_leaves_out_what_has_no_logarithm_or_reads_more_than_float16() -> None:
    rows = [
        {"method": method, "bits_read": bits, "texts": {"a": {"kl": kl}}}
        for method, bits, kl in (("x", 5.0, 0.1), ("x", 4.0, 0.3), ("y", 4.5, 0.2), ("x", 9.0, 0.0), ("x", 17.0, 0.01))
    ]
    assert curve(rows, "x", "a") == [(4.0, 0.3), (5.0, 0.1)]
    assert curve(rows, "x", "b") == []


def test_every_method_has_a_line_in_the_figure() -> None:
    from benchmarks import peers_figure

    assert set(peers_figure._STYLES) == set(anyprec_peers.METHODS)
