import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyprec_jax.array import AnyPrecArray
from anyprec_jax.checkpoint import save
from anyprec_jax.evaluate import Result, evaluate, evaluate_models, kl_divergence, perplexity, read_bits_per_weight
from anyprec_jax.models.decoder import LINEARS, forward
from anyprec_jax.models.model import Model
from anyprec_jax.ops import dequantize
from tests.anyprec_jax.tiny import tiny_model

LENGTH = 16
TOKENS = np.random.default_rng(0).integers(0, 260, 3 * LENGTH + 5).astype(np.int32)


@functools.cache
def reference() -> Model:
    return tiny_model()


@functools.cache
def quantized() -> Model:
    """The reference with its weights rounded to the codebook of a random row-wise grid, readable at 2 and 3 bits."""
    layers = dict(reference().params["layers"])
    for name in LINEARS:
        layers[name] = rounded(np.asarray(layers[name]))
    return dataclasses.replace(reference(), params=reference().params | {"layers": layers})


def rounded(weights: np.ndarray) -> AnyPrecArray:
    """Nested uniform quantization: 8 levels a row, and the means of neighbouring ones for 4."""
    low, high = weights.min(-1, keepdims=True), weights.max(-1, keepdims=True)
    levels = (low + (high - low) * (np.arange(8) + 0.5) / 8).astype(np.float16)
    codes = np.clip((weights - low) / (high - low) * 8, 0, 7).astype(np.uint32)
    *lead, n, k = weights.shape
    bits = np.zeros((*lead, 3, n, -(-k // 32) * 32), np.uint32)
    for plane in range(3):
        bits[..., plane, :, :k] = (codes >> (2 - plane)) & 1
    words = (bits.reshape(*bits.shape[:-1], -1, 32) << np.arange(32, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    halved = ((levels[..., ::2] + levels[..., 1::2]) / 2).astype(np.float16)
    return AnyPrecArray(jnp.asarray(words), {2: jnp.asarray(halved), 3: jnp.asarray(levels)}, 2, 3, k)


@functools.cache
def dequantized(precision: int) -> Model:
    """The quantized model as `precision` bits have it, in plain arrays."""
    read = jax.vmap(lambda matrix: dequantize(matrix, precision=precision))
    layers = {name: read(w) if name in LINEARS else w for name, w in quantized().params["layers"].items()}
    return dataclasses.replace(reference(), params=reference().params | {"layers": layers})


def log_probabilities(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Float64, from float32 logits, of the token after each: one text, no padding."""
    logits = forward(model.params, jnp.asarray(tokens)[None], model.config, precision=None)
    assert isinstance(logits, jax.Array)
    wide = np.asarray(logits)[0].astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def slow_evaluation(model: Model, tokens: np.ndarray, length: int) -> tuple[float, float, float]:
    """Perplexity, KL and top-1, token by token, of a model in plain arrays."""
    nll, kl, same = [], [], []
    for start in range(0, len(tokens) - 1, length):
        chunk = tokens[start : start + length]
        ours, theirs = log_probabilities(model, chunk), log_probabilities(reference(), chunk)
        for position in range(len(chunk) - 1):
            nll.append(-ours[position, chunk[position + 1]])
            p, q = theirs[position], ours[position]
            kl.append(sum(np.exp(p) * (p - q)))
            same.append(max(range(len(p)), key=p.__getitem__) == max(range(len(q)), key=q.__getitem__))
    return math.exp(np.mean(nll)), float(np.mean(kl)), sum(same) / len(same)


# Logits are sums of 48 float32 products of size about 1; a log-probability inherits their error.
TOLERANCE = 48 * 2**-24


class TestEvaluate:
    @pytest.mark.parametrize("spare", [0, 1, 2])
    def test_the_numbers_are_those_of_slow_numpy(self, spare: int) -> None:
        """With no remainder, one too short to score, and the shortest that counts."""
        tokens = TOKENS[: 2 * LENGTH + spare]
        results = evaluate(quantized(), tokens, precisions=[2, 3], reference=reference(), sequence_length=LENGTH)
        for result, precision in zip(results[1:], (2, 3), strict=True):
            expected_perplexity, expected_kl, expected_top1 = slow_evaluation(dequantized(precision), tokens, LENGTH)
            assert result.precision == precision
            assert result.perplexity == pytest.approx(expected_perplexity, rel=TOLERANCE)
            assert result.kl == pytest.approx(expected_kl, rel=1e-4)  # of a difference of logits of size 0.1
            assert result.top1 == pytest.approx(expected_top1, rel=1e-12)
            assert 0.0 < expected_top1 < 1.0
        expected, *_ = slow_evaluation(reference(), tokens, LENGTH)
        assert results[0] == Result("reference", pytest.approx(expected, rel=TOLERANCE), 0.0, 32.0, top1=1.0)

    def test_more_bits_are_closer_to_the_reference(self) -> None:
        rows = evaluate(quantized(), TOKENS, reference=reference(), sequence_length=LENGTH)
        assert [row.precision for row in rows] == ["reference", 2, 3]
        coarse, fine = rows[1:]
        assert coarse.kl > 2 * fine.kl > 0  # pyright: ignore[reportOptionalOperand]

    def test_several_models_at_once(self) -> None:
        """Each as by itself, in the order given."""
        readings = [(quantized(), 3), (dequantized(2), None), (quantized(), 2)]
        together = evaluate_models(readings, TOKENS, reference=reference(), sequence_length=LENGTH)
        alone = evaluate(quantized(), TOKENS, precisions=[3, 2], reference=reference(), sequence_length=LENGTH)
        assert [together[0], together[1], together[3]] == alone
        assert together[2].perplexity == alone[2].perplexity

    def test_nothing_to_read(self) -> None:
        with pytest.raises(ValueError, match="at least one precision"):
            evaluate(quantized(), TOKENS, precisions=[], reference=reference(), sequence_length=LENGTH)

    def test_a_model_against_itself(self) -> None:
        rows = evaluate(reference(), TOKENS, reference=reference(), sequence_length=LENGTH)
        assert [row.precision for row in rows] == ["reference", None]
        assert rows[0].perplexity == rows[1].perplexity
        assert rows[0].kl == rows[1].kl == 0.0
        assert rows[0].top1 == rows[1].top1 == 1.0

    def test_without_a_reference(self) -> None:
        (row,) = evaluate(reference(), TOKENS, sequence_length=LENGTH)
        assert (row.precision, row.kl, row.top1) == (None, None, None)

    def test_one_chunk_longer_than_the_text(self) -> None:
        """Needs no padding, and gives what a chunk of just that length gives."""
        short = TOKENS[:7]
        expected = perplexity(reference(), short, precision=None, sequence_length=7)
        assert perplexity(reference(), short, precision=None, sequence_length=200) == expected

    def test_lists_of_tokens(self) -> None:
        expected = perplexity(reference(), TOKENS, precision=None, sequence_length=LENGTH)
        assert perplexity(reference(), TOKENS.tolist(), precision=None, sequence_length=LENGTH) == expected

    def test_the_last_chunk_compiles_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        perplexity(reference(), TOKENS[: 2 * LENGTH], precision=None, sequence_length=LENGTH)
        with jax.log_compiles(), caplog.at_level("DEBUG"):
            perplexity(reference(), TOKENS, precision=None, sequence_length=LENGTH)
        assert "Compiling jit(_score)" not in caplog.text
        assert "Compiling jit(_layer_output)" not in caplog.text

    def test_progress(self) -> None:
        seen: list[tuple[int, int]] = []
        evaluate(
            reference(),
            TOKENS,
            reference=reference(),
            sequence_length=LENGTH,
            progress=lambda done, total: seen.append((done, total)),
        )
        assert seen == [(done, 32) for done in range(1, 33)]  # 4 chunks in 3 layers and the head of 2 models

    def test_numpy_leaves(self) -> None:
        model = dataclasses.replace(reference(), params=jax.tree.map(np.asarray, reference().params))
        rows = [evaluate(m, TOKENS, sequence_length=LENGTH) for m in (model, reference())]
        assert rows[0] == rows[1]

    def test_half_precision_weights_are_scored_in_float32(self) -> None:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), reference().params)
        model = dataclasses.replace(reference(), params=params)
        (row,) = evaluate(model, TOKENS, sequence_length=LENGTH)
        exact = perplexity(reference(), TOKENS, precision=None, sequence_length=LENGTH)
        assert row.perplexity == pytest.approx(exact, rel=0.05)  # bfloat16 weights have 3 digits
        assert row.bits_per_weight == 16


class TestTransformers:
    def test_the_perplexity_is_that_of_transformers(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch", reason="the parity extra is not installed")
        transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
        save(tmp_path / "model", reference())
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        total, scored = 0.0, 0
        for start in range(0, len(TOKENS), LENGTH):
            chunk = torch.tensor(TOKENS[start : start + LENGTH].astype(np.int64))[None]
            with torch.no_grad():
                total += float(theirs(chunk, labels=chunk).loss) * (chunk.shape[1] - 1)
            scored += chunk.shape[1] - 1
        ours = perplexity(reference(), TOKENS, precision=None, sequence_length=LENGTH)
        assert ours == pytest.approx(math.exp(total / scored), rel=TOLERANCE)


def slow_kl(expected: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.sum(np.exp(expected) * (expected - predicted)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide = wide - wide.max()
    return wide - np.log(np.exp(wide).sum())


class TestKL:
    @given(seed=st.integers(0, 1000), size=st.sampled_from([1e-4, 1e-2, 0.1, 1.0, 10.0]))
    def test_float32_keeps_the_digits_of_tiny_divergences(self, seed: int, size: float) -> None:
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=1000, scale=3).astype(np.float32)
        other = (logits + rng.normal(size=1000, scale=size)).astype(np.float32)
        expected = slow_kl(log_softmax(logits), log_softmax(other))
        ours = kl_divergence(jax.nn.log_softmax(jnp.asarray(logits)), jax.nn.log_softmax(jnp.asarray(other)))
        # Log-probabilities of size 16 are rounded to 16 * 2**-24 = 1e-6; KL goes with the square of their differences.
        assert float(ours) == pytest.approx(expected, rel=max(1e-5, 2 * 2e-6 / size))

    def test_the_plain_sum_would_not(self) -> None:
        """The case for the second-order formula: a divergence of 5e-9, below the rounding error of a single term."""
        rng = np.random.default_rng(0)
        logits = rng.normal(size=1000, scale=3).astype(np.float32)
        other = (logits + rng.normal(size=1000, scale=1e-4)).astype(np.float32)
        expected = slow_kl(log_softmax(logits), log_softmax(other))
        p, q = (jax.nn.log_softmax(jnp.asarray(x)) for x in (logits, other))
        assert 1e-9 < expected < 1e-8
        assert float(kl_divergence(p, q)) == pytest.approx(expected, rel=0.05)
        assert abs(float(jnp.sum(jnp.exp(p) * (p - q))) - expected) > 0.5 * expected

    @pytest.mark.parametrize("gap", [20.0, 100.0, 1000.0])
    def test_distributions_that_have_nothing_in_common(self, gap: float) -> None:
        logits, other = np.zeros(10), np.zeros(10)
        logits[0], other[1] = gap, gap
        p, q = log_softmax(logits), log_softmax(other)
        ours = kl_divergence(jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32))
        assert float(ours) == pytest.approx(slow_kl(p, q), rel=1e-6)

    def test_it_is_zero_only_between_equals(self) -> None:
        p = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(0).normal(size=(3, 100)), jnp.float32))
        assert kl_divergence(p, p).tolist() == [0, 0, 0]


class TestBitsPerWeight:
    def test_of_quantized_linears(self) -> None:
        """Planes of ceil(k / 32) words a row and one codebook of 2**w halves, over n k weights a layer."""
        shapes = [reference().params["layers"][name].shape for name in LINEARS]
        weights = sum(math.prod(shape) for shape in shapes)
        for w in (2, 3):
            bits = sum(layers * n * (w * 32 * math.ceil(k / 32) + 16 * 2**w) for layers, n, k in shapes)
            assert read_bits_per_weight(quantized().params, precision=w) == bits / weights

    def test_of_plain_linears(self) -> None:
        assert read_bits_per_weight(reference().params, precision=None) == 32


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"tokens": TOKENS[:1]}, r"scoring needs one text of at least 2 tokens, but came tokens of shape \(1,\)"),
            ({"tokens": []}, r"tokens of shape \(0,\)"),
            ({"tokens": [1, 260]}, r"token ids should be integers in \[0, 260\), but the text has 1 to 260"),
            ({"tokens": [-1, 5]}, "token ids should be integers in"),
            ({"tokens": [1, 2**40]}, "token ids should be integers in"),
            ({"sequence_length": 1}, "sequence_length should be between 2 and the context of 256, but is 1"),
            ({"sequence_length": 257}, "sequence_length should be between 2 and the context of 256, but is 257"),
            ({"precisions": [3, 8]}, "the model can be read at 2, 3 bits, but the precision given is 8"),
            ({"precisions": [None]}, "the model is quantized: give a precision"),
        ],
    )
    def test_arguments(self, changes: dict[str, Any], complaint: str) -> None:
        arguments = {"tokens": TOKENS, "sequence_length": LENGTH} | changes
        with pytest.raises(ValueError, match=complaint):
            evaluate(quantized(), **arguments)

    def test_models_with_different_vocabularies(self) -> None:
        other = tiny_model(vocab_size=300)
        with pytest.raises(ValueError, match="reference has a vocabulary of 300 tokens and the model one of 260"):
            evaluate(quantized(), TOKENS, reference=other, sequence_length=LENGTH)

    def test_a_reference_that_is_quantized(self) -> None:
        with pytest.raises(ValueError, match="the reference is quantized"):
            evaluate(quantized(), TOKENS, reference=quantized(), sequence_length=LENGTH)
