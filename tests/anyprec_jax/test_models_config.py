"""ModelConfig, rotary frequencies, and what is made of a config.json."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from anyprec_jax.models.config import ModelConfig
from anyprec_jax.models.families import config_from_huggingface, config_to_huggingface, parameter_shapes
from anyprec_jax.models.rope import frequencies, frequencies_by_length
from anyprec_jax.models.rope_scaling import (
    DynamicScaling,
    FrequencyFactors,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
    scaling_from_huggingface,
)
from tests.anyprec_jax import oracles_decoder as oracle

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SCALINGS: dict[str, RopeScaling | None] = {
    "none": None,
    "linear": LinearScaling(factor=3.0),
    "llama3": Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    "yarn": YarnScaling(factor=4.0, original_max_position_embeddings=32, attention_factor=1.25, beta_fast=16.0),
    "factors": FrequencyFactors(factors=(1.0, 1.5, 2.0, 3.0, 8.0)),
    "longrope": LongRopeScaling(
        short_factors=(1.0, 1.1, 1.2, 1.5, 2.0),
        long_factors=(1.0, 1.5, 2.0, 3.0, 8.0),
        original_max_position_embeddings=32,
        attention_factor=1.25,
    ),
    "dynamic": DynamicScaling(factor=2.0, original_max_position_embeddings=64),
}


class TestValidation:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("vocab_size", -1),
            ("hidden_size", 0),
            ("num_layers", True),
            ("intermediate_size", -40),
            ("num_kv_heads", 4),  # does not divide 6
            ("head_dim", 9),
            ("norm_eps", float("nan")),
            ("norm_eps", 0.0),
            ("rope_theta", 1.0),
            ("rope_theta", float("inf")),
            ("bos_token_id", -2),
            ("eos_token_ids", (2, -3)),
            ("rope_scaling", FrequencyFactors(factors=(1.0, 2.0))),  # heads of 10 have 5 pairs
        ],
    )
    def test_bad_value_is_refused_by_name(self, field: str, value: Any) -> None:
        good = config_from_huggingface(oracle.config())
        with pytest.raises(
            ValueError, match=r"token ids|rope factors" if "token" in field or "scaling" in field else field
        ):
            dataclasses.replace(good, **{field: value})

    @pytest.mark.parametrize(
        ("scaling", "changes", "message"),
        [
            (SCALINGS["linear"], {"factor": 0.0}, "factor"),
            (SCALINGS["linear"], {"factor": float("nan")}, "factor"),
            (SCALINGS["llama3"], {"high_freq_factor": 1.0}, "must exceed"),
            (SCALINGS["llama3"], {"original_max_position_embeddings": -5}, "original_max_position_embeddings"),
            (SCALINGS["yarn"], {"beta_fast": -1.0}, "beta_fast"),
            (SCALINGS["yarn"], {"factor": -2.0}, "factor"),
            (SCALINGS["factors"], {"factors": (1.0, -1.0)}, "factors"),
        ],
    )
    def test_bad_scaling_is_refused_by_name(self, scaling: Any, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(scaling, **changes)


@pytest.mark.parametrize("name", ["none", "linear", "llama3", "factors"])
def test_frequencies_follow_the_papers(name: str) -> None:
    as_json = config_to_huggingface(
        dataclasses.replace(config_from_huggingface(oracle.config()), rope_scaling=SCALINGS[name])
    )
    expected = oracle.frequencies(10, 10000.0, as_json["rope_scaling"])
    # float32 power and division: a few units in the last place.
    np.testing.assert_allclose(frequencies(10, 10000.0, SCALINGS[name]), expected, rtol=8 * np.finfo(np.float32).eps)


def test_each_scaling_moves_the_frequencies() -> None:
    lengths = jnp.asarray([90], jnp.int32)  # longer than any of them calls short
    found = {name: frequencies_by_length(lengths, 10, 10000.0, scaling)[0] for name, scaling in SCALINGS.items()}
    distinct = {tuple(np.asarray(values).tolist()) for name, values in found.items() if name != "longrope"}
    assert len(distinct) == len(SCALINGS) - 1
    np.testing.assert_array_equal(found["longrope"], found["factors"])  # it differs by what it multiplies with


def test_short_texts_are_rotated_as_in_training() -> None:
    lengths = jnp.asarray([32, 33], jnp.int32)
    longrope = frequencies_by_length(lengths, 10, 10000.0, SCALINGS["longrope"])
    np.testing.assert_array_equal(
        longrope[0], frequencies(10, 10000.0, FrequencyFactors(factors=(1.0, 1.1, 1.2, 1.5, 2.0)))
    )
    np.testing.assert_array_equal(longrope[1], frequencies(10, 10000.0, SCALINGS["factors"]))
    lengths = jnp.asarray([64, 96], jnp.int32)
    dynamic = frequencies_by_length(lengths, 10, 10000.0, SCALINGS["dynamic"])
    np.testing.assert_array_equal(dynamic[0], frequencies(10, 10000.0, None))
    base = 10000.0 * (2.0 * 96 / 64 - 1.0) ** (10 / 8)
    expected = [base ** (-2 * pair / 10) for pair in range(5)]
    np.testing.assert_allclose(dynamic[1], expected, rtol=16 * np.finfo(np.float32).eps)


class TestHuggingFace:
    def test_reads_every_setting(self) -> None:
        document = oracle.config(attention_bias=True, eos_token_id=[2, 7], pad_token_id=0)
        assert config_from_huggingface(document) == ModelConfig(
            family="llama",
            vocab_size=61,
            hidden_size=24,
            intermediate_size=40,
            num_layers=3,
            num_heads=6,
            num_kv_heads=2,
            head_dim=10,
            max_position_embeddings=64,
            norm_eps=1e-5,
            rope_theta=10000.0,
            rope_scaling=None,
            tie_embeddings=False,
            attention_bias=True,
            mlp_bias=False,
            bos_token_id=1,
            eos_token_ids=(2, 7),
            pad_token_id=0,
        )

    def test_silence_means_the_defaults_of_transformers(self) -> None:
        document = oracle.config()
        for key in (
            "num_key_value_heads",
            "head_dim",
            "rms_norm_eps",
            "rope_theta",
            "tie_word_embeddings",
            "attention_bias",
        ):
            del document[key]
        del (
            document["bos_token_id"],
            document["eos_token_id"],
            document["mlp_bias"],
            document["max_position_embeddings"],
        )
        config = config_from_huggingface(document)
        assert (config.num_kv_heads, config.head_dim, config.norm_eps, config.rope_theta) == (6, 4, 1e-6, 10000.0)
        assert (config.tie_embeddings, config.attention_bias, config.mlp_bias) == (False, False, False)
        assert (config.bos_token_id, config.eos_token_ids, config.max_position_embeddings) == (1, (2,), 2048)

    def test_null_token_means_none(self) -> None:
        config = config_from_huggingface(oracle.config(bos_token_id=None, eos_token_id=None, pad_token_id=-1))
        assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (None, (), None)

    @pytest.mark.parametrize("layout", ["old", "oldest", "new"])
    def test_rope_is_read_in_every_layout(self, layout: str) -> None:
        document = oracle.config()
        del document["rope_theta"]
        if layout == "new":
            document |= {"rope_parameters": LLAMA3 | {"rope_theta": 500000}}
        else:
            renamed = {
                "type" if key == "rope_type" and layout == "oldest" else key: value for key, value in LLAMA3.items()
            }
            document |= {"rope_theta": 500000, "rope_scaling": renamed}
        config = config_from_huggingface(document)
        assert config.rope_theta == 500000.0
        assert config.rope_scaling == SCALINGS["llama3"]

    def test_yarn_derives_its_attention_factor(self) -> None:
        parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
        _, scaling = scaling_from_huggingface({"rope_scaling": parameters})
        assert isinstance(scaling, YarnScaling)
        assert scaling.attention_factor == pytest.approx(1.1386294361119891)  # 0.1 ln 4 + 1

    @pytest.mark.parametrize("name", SCALINGS)
    @pytest.mark.parametrize("newest", [False, True])
    def test_what_is_written_reads_the_same(self, name: str, newest: bool) -> None:
        config = dataclasses.replace(
            config_from_huggingface(oracle.config(attention_bias=True, eos_token_id=[2, 3])),
            rope_scaling=SCALINGS[name],
        )
        document = json.loads(json.dumps(config_to_huggingface(config)))
        for key in ("rope_theta", "rope_scaling") if newest else ("rope_parameters",):
            del document[key]
        assert config_from_huggingface(document) == config

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"model_type": "mamba", "architectures": ["MambaForCausalLM"]},
                "MambaForCausalLM.*supported are LlamaForCausalLM",
            ),
            ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
            ({"model_type": None, "architectures": None}, "not supported"),
            ({"model_type": ["llama"]}, "not supported"),
            ({"architectures": "LlamaForCausalLM"}, "architectures"),
            ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
            ({"hidden_act": "mish"}, "hidden_act 'mish'.*supported are silu"),
            ({"hidden_size": "24"}, "hidden_size"),
            ({"hidden_size": None}, "hidden_size"),
            ({"num_hidden_layers": -3}, "num_layers"),
            ({"num_hidden_layers": "3"}, "num_hidden_layers"),
            ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
            ({"intermediate_size": 40.0}, "intermediate_size"),
            ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads"),
            ({"num_attention_heads": 7, "head_dim": None}, "multiple"),
            ({"vocab_size": 1e12}, "vocab_size"),
            ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
            ({"rope_theta": "big"}, "rope_theta"),
            (
                {"rope_scaling": {"rope_type": "proportional", "factor": 2.0}},
                "'proportional'.*supported are default, linear, llama3, yarn",
            ),
            ({"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, "not supported"),
            ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
            ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor"),
            ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
            ({"rope_scaling": "linear"}, "rope_scaling"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": "no"}}, "truncate"),
            ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 0.5}}, "original_max_position_embeddings"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale"),
            (
                {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
                "1 rope factors, where 10 rotated dimensions have 5 pairs",
            ),
            (
                {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 5, "long_factor": [2.0]}},
                "must be as many",
            ),
            ({"rope_scaling": {"rope_type": "longrope", "short_factor": 1.0}}, "list as short_factor"),
            ({"rope_scaling": {"rope_type": "dynamic"}}, "factor"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
            ({"eos_token_id": "</s>"}, "token ids"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            config_from_huggingface(oracle.config(**changes))
        assert "\n" not in str(error.value)

    def test_not_an_object(self) -> None:
        with pytest.raises(ValueError, match="JSON object"):
            config_from_huggingface([1, 2])


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_parameter_shapes_are_those_of_the_tensors(changes: dict[str, Any]) -> None:
    document = oracle.config(**changes)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in oracle.tensor_shapes(document).items()}
    tree = oracle.stacked(tensors, document["num_hidden_layers"])
    expected = {name: leaf.shape for name, leaf in tree.items() if name != "layers"}
    expected |= {f"layers/{name}": leaf.shape for name, leaf in tree["layers"].items()}
    assert parameter_shapes(config_from_huggingface(document)) == expected
