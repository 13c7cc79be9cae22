"""GGUF files, written with llama.cpp's own package and its order of rows."""

import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from anyprec_jax.checkpoint.gguf import load_file
from anyprec_jax.models.decoder import forward
from anyprec_jax.models.rope_scaling import FrequencyFactors, LinearScaling, Llama3Scaling, YarnScaling
from tests.anyprec_jax import gguf_files
from tests.anyprec_jax import oracles_decoder as oracle

PARITY = 2e-5
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def assert_same_tree(got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    jax.tree.map(np.testing.assert_array_equal, dict(got), dict(expected))


class TestWeights:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"num_key_value_heads": 6, "head_dim": 4},
            {"tie_word_embeddings": True},
            {"attention_bias": True, "mlp_bias": True},
        ],
    )
    def test_equal_those_of_the_hugging_face_model(self, changes: dict[str, Any], tmp_path: Path) -> None:
        document = oracle.config(**changes)
        weights = oracle.random_weights(document)
        model = load_file(gguf_files.write(tmp_path / "model.gguf", document, weights))
        assert_same_tree(model.params, oracle.stacked(weights, 3))
        config = model.config
        assert (config.tie_embeddings, config.attention_bias) == (
            document["tie_word_embeddings"],
            document["attention_bias"],
        )
        assert (config.norm_eps, config.rope_theta, config.mlp_bias) == (1e-5, 10000.0, document["mlp_bias"])
        assert (config.bos_token_id, config.eos_token_ids, config.max_position_embeddings) == (1, (2,), 64)
        assert model.tokenizer is None

    def test_logits(self, tmp_path: Path) -> None:
        document = oracle.config()
        weights = oracle.random_weights(document)
        model = load_file(gguf_files.write(tmp_path / "model.gguf", document, weights))
        tokens = np.random.default_rng(0).integers(0, 61, (1, 12)).astype(np.int32)
        expected = oracle.logits(weights, document, tokens[0])
        got = np.asarray(forward(model.params, jnp.asarray(tokens), model.config, precision=None))[0]
        assert np.abs(got - expected).max() <= PARITY * np.abs(expected).max()

    def test_head_width_and_key_heads_may_be_left_to_be_inferred(self, tmp_path: Path) -> None:
        document = oracle.config(head_dim=4, num_key_value_heads=6)
        settings = dict.fromkeys(
            (
                "llama.attention.key_length",
                "llama.attention.value_length",
                "llama.attention.head_count_kv",
                "llama.rope.freq_base",
            )
        )
        model = load_file(
            gguf_files.write(tmp_path / "model.gguf", document, oracle.random_weights(document), settings=settings)
        )
        assert (model.config.head_dim, model.config.num_kv_heads, model.config.rope_theta) == (4, 6, 10000.0)

    def test_a_bias_of_several_may_be_missing(self, tmp_path: Path) -> None:
        """llama.cpp has each bias or not, Hugging Face all of them or none."""
        document = oracle.config(attention_bias=True)
        weights = oracle.random_weights(document)
        kept = {name: values for name, values in weights.items() if not name.endswith("o_proj.bias")}
        model = load_file(gguf_files.write(tmp_path / "model.gguf", document, kept))
        expected = {name: values if name in kept else np.zeros_like(values) for name, values in weights.items()}
        assert_same_tree(model.params, oracle.stacked(expected, 3))

    def test_values_given_by_layer(self, tmp_path: Path) -> None:
        settings = {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [40, 40]}
        assert load_file(gguf_files.tiny(tmp_path / "model.gguf", settings=settings)).config.num_kv_heads == 2

    def test_memory_is_the_weights_and_one_tensor(self, tmp_path: Path) -> None:
        sizes = {
            "vocab_size": 512,
            "hidden_size": 288,
            "intermediate_size": 896,
            "num_hidden_layers": 6,
            "head_dim": 48,
        }
        document = oracle.config(**sizes, num_key_value_heads=3)
        weights = oracle.random_weights(document)
        path = gguf_files.write(tmp_path / "model.gguf", document, weights, kind=GGMLQuantizationType.Q8_0)
        total, largest = sum(v.nbytes for v in weights.values()), max(v.nbytes for v in weights.values())
        tracemalloc.start()
        model = load_file(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert model.config.num_layers == 6
        # The tensor as bytes, as floats and in the decoder's scratch, and half a megabyte of Python objects.
        assert peak < total + 4 * largest + 500_000


def decodable() -> list[GGMLQuantizationType]:
    """Every type that the package decodes, found by asking it."""
    kinds = []
    for kind in GGMLQuantizationType:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        try:
            gguf.dequantize(np.zeros((1, size * (256 // block)), np.uint8), kind)
        except (NotImplementedError, ValueError):
            continue
        kinds.append(kind)
    return kinds


class TestTypes:
    @pytest.mark.parametrize("kind", decodable(), ids=lambda kind: kind.name)
    def test_every_decodable_type(self, kind: GGMLQuantizationType, tmp_path: Path) -> None:
        """Random bits as the weights of one matrix."""
        document = oracle.config(num_hidden_layers=2, intermediate_size=256)
        weights = oracle.random_weights(document)
        del weights["model.layers.1.mlp.down_proj.weight"]
        path = tmp_path / "model.gguf"
        block, size = gguf.GGML_QUANT_SIZES[kind]
        bits = np.random.default_rng(0).integers(0, 256, (24, 256 // block * size)).astype(np.uint8)
        writer_kinds = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
        data = bits.view(writer_kinds[kind]) if kind in writer_kinds else bits
        write_with(path, document, weights, "blk.1.ffn_down.weight", data, kind)
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(bits, kind)
        assert expected.shape == (24, 256)
        np.testing.assert_array_equal(load_file(path).params["layers"]["down_proj"][1], expected)

    def test_there_are_many(self) -> None:
        names = {kind.name for kind in decodable()}
        assert {
            "F32",
            "F16",
            "BF16",
            "Q4_0",
            "Q4_1",
            "Q5_0",
            "Q5_1",
            "Q8_0",
            "Q2_K",
            "Q3_K",
            "Q4_K",
            "Q5_K",
            "Q6_K",
        } <= names
        assert {"IQ2_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0"} <= names

    def test_q4_1_by_hand(self, tmp_path: Path) -> None:
        """Blocks of 32: float16 step and minimum, then the codes of columns j and j + 16 in byte j."""
        document = oracle.config(num_hidden_layers=2, intermediate_size=64)
        weights = oracle.random_weights(document)
        del weights["model.layers.0.mlp.down_proj.weight"]
        rng = np.random.default_rng(1)
        rows, expected = [], np.zeros((24, 64), np.float32)
        for row in range(24):
            data = b""
            for start in (0, 32):
                step, minimum, codes = np.float16(rng.random()), np.float16(-rng.random()), rng.integers(0, 16, 32)
                data += (
                    step.tobytes() + minimum.tobytes() + bytes(int(codes[j] | codes[j + 16] << 4) for j in range(16))
                )
                expected[row, start : start + 32] = np.float32(step) * codes.astype(np.float32) + np.float32(minimum)
            rows.append(np.frombuffer(data, np.uint8))
        path = tmp_path / "model.gguf"
        write_with(path, document, weights, "blk.0.ffn_down.weight", np.stack(rows), GGMLQuantizationType.Q4_1)
        np.testing.assert_allclose(load_file(path).params["layers"]["down_proj"][0], expected, rtol=1e-6)


def write_with(
    path: Path, document: Any, weights: Any, name: str, data: np.ndarray, kind: GGMLQuantizationType
) -> None:
    """A file in which one tensor holds these very bytes."""
    original = gguf.GGUFWriter.write_header_to_file

    def add_and_write(self: gguf.GGUFWriter, *args: Any, **kwargs: Any) -> None:
        self.add_tensor(name, data, raw_dtype=kind)
        original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", add_and_write)
        gguf_files.write(path, document, weights)


def llama3_factors(head_dim: int, theta: float) -> np.ndarray:
    plain, scaled = oracle.frequencies(head_dim, theta, None), oracle.frequencies(head_dim, theta, LLAMA3)
    return np.array([p / s for p, s in zip(plain, scaled, strict=True)], np.float32)


class TestRope:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({}, None),
            ({"scaling.type": "none", "scaling.factor": 4.0}, None),
            ({"scaling.type": "linear", "scaling.factor": 4.0}, LinearScaling(factor=4.0)),
            ({"scale_linear": 4.0}, LinearScaling(factor=4.0)),
            (
                {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 32},
                YarnScaling(factor=4.0, original_max_position_embeddings=32, attention_factor=1.1386294361119891),
            ),
        ],
    )
    def test_scaling_by_metadata(self, settings: dict[str, Any], expected: Any, tmp_path: Path) -> None:
        prefixed = {f"llama.rope.{key}": value for key, value in settings.items()}
        assert load_file(gguf_files.tiny(tmp_path / "model.gguf", settings=prefixed)).config.rope_scaling == expected

    def test_llama_3_is_recognised(self, tmp_path: Path) -> None:
        document = oracle.config(head_dim=32, rope_theta=500000.0)
        factors = llama3_factors(32, 500000.0)
        assert 1 < np.sort(factors)[8] < 32  # some pairs are left alone, one is blended, some are interpolated
        weights = oracle.random_weights(document)
        model = load_file(
            gguf_files.write(tmp_path / "model.gguf", document, weights, extra={"rope_freqs.weight": factors})
        )
        assert model.config.rope_scaling == Llama3Scaling(
            factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
        )

    def test_any_factors_are_applied(self, tmp_path: Path) -> None:
        document = oracle.config()
        factors = [1.0, 1.5, 2.0, 3.0, 8.0]
        weights = oracle.random_weights(document)
        path = gguf_files.write(
            tmp_path / "model.gguf", document, weights, extra={"rope_freqs.weight": np.array(factors, np.float32)}
        )
        model = load_file(path)
        assert model.config.rope_scaling == FrequencyFactors(factors=tuple(factors))
        tokens = np.random.default_rng(0).integers(0, 61, (1, 12)).astype(np.int32)
        scaled = document | {"rope_scaling": {"rope_type": "longrope", "long_factor": factors}}
        expected = oracle.logits(weights, scaled, tokens[0])
        got = np.asarray(forward(model.params, jnp.asarray(tokens), model.config, precision=None))[0]
        assert np.abs(got - expected).max() <= PARITY * np.abs(expected).max()
        unscaled = oracle.logits(weights, document, tokens[0])
        assert np.abs(unscaled - expected).max() > 100 * PARITY * np.abs(expected).max()

    def test_factors_of_one_are_none(self, tmp_path: Path) -> None:
        path = gguf_files.tiny(tmp_path / "model.gguf", extra={"rope_freqs.weight": np.ones(5, np.float32)})
        assert load_file(path).config.rope_scaling is None


def test_transformers_reads_the_same_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="transformers is the second reader: install the extra 'parity'")
    transformers = pytest.importorskip("transformers", reason="it is the second reader: install the extra 'parity'")
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
    document = oracle.config(hidden_size=64, head_dim=16, num_attention_heads=4, intermediate_size=96)
    weights = oracle.random_weights(document)
    settings = {"llama.vocab_size": 61}
    path = gguf_files.write(
        tmp_path / "model.gguf", document, weights, settings=settings, kind=GGMLQuantizationType.Q8_0
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    ours = load_file(path)
    tokens = np.random.default_rng(0).integers(0, 61, (1, 30)).astype(np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    got = np.asarray(forward(ours.params, jnp.asarray(tokens), ours.config, precision=None))
    assert np.abs(got - expected).max() <= PARITY * np.abs(expected).max()
