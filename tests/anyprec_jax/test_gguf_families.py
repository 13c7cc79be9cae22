"""GGUF files of every family: converted as llama.cpp does, read here, and by `transformers` where it can."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from anyprec_jax.checkpoint.gguf import load_file
from anyprec_jax.models.decoder import forward
from anyprec_jax.models.families import FAMILIES
from anyprec_jax.models.rope_scaling import LongRopeScaling

torch = pytest.importorskip("torch", reason="models are made by transformers: install the extra 'parity'")
transformers = pytest.importorskip("transformers", reason="it makes the models, and is the second reader")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
from tests.anyprec_jax.parity_models import random_model  # noqa: E402  (needs both)

PARITY = 2e-5
Tensors = dict[str, np.ndarray]


class Case(NamedTuple):
    """A model of `parity_models`, changed where llama.cpp knows only one way, and what its metadata say."""

    model: str
    architecture: str
    changes: Mapping[str, Any]
    metadata: Mapping[str, Any] = {}
    convert: Callable[[Tensors, Any], Tensors] = lambda tensors, config: tensors
    is_read_by_transformers: bool = True


def neighbours(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows with the two members of a rotary pair side by side."""
    return np.stack(
        [
            values[h * w + i + half]
            for w in [len(values) // heads]
            for h in range(heads)
            for i in range(w // 2)
            for half in (0, w // 2)
        ]
    )


def paired(tensors: Tensors, config: Any) -> Tensors:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found = dict(tensors)
    for name, values in tensors.items():
        for part, count in heads.items():
            if f".{part}." in name:
                found[name] = neighbours(values, count)
    return found


def plus_one(tensors: Tensors, config: Any) -> Tensors:
    return {name: values + 1 if "norm" in name else values for name, values in tensors.items()}


def gathered(tensors: Tensors, config: Any) -> Tensors:
    """Experts, and head norms, of one layer in one tensor."""
    found: Tensors = {}
    groups: dict[str, list[np.ndarray]] = {}
    for name, values in tensors.items():
        parts = name.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdigit()]
        if len(numbers) == 2:
            whole = ".".join(parts[: numbers[1]] + parts[numbers[1] + 1 :]).replace(".norms", "")
            groups.setdefault(whole, []).append(values)
        else:
            found[name] = values
    return found | {name: np.stack(values) for name, values in groups.items()}


def transposed(tensors: Tensors, config: Any) -> Tensors:
    is_conv = lambda name: any(part in name for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight"))  # noqa: E731
    return {name: values.T.copy() if is_conv(name) else values for name, values in tensors.items()}


def heads_together(tensors: Tensors, config: Any) -> Tensors:
    """GPT-NeoX: queries of all heads, then keys, then values."""
    found = dict(tensors)
    for name, values in tensors.items():
        if "query_key_value" in name:
            heads = values.reshape(config.num_attention_heads, 3, -1, *values.shape[1:])
            found[name] = np.concatenate([heads[:, part].reshape(-1, *values.shape[1:]) for part in range(3)])
    return found


# What transformers takes for granted, whatever the file says.
_HEADS_OF_128 = {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
_GEMMA = {
    "query_pre_attn_scalar": 256,
    "head_dim": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attention_bias": False,
}
CASES: dict[str, Case] = {
    "llama": Case(
        "llama: everything",
        "llama",
        {
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_size": 60,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        {},
        paired,
    ),
    "smollm3": Case(
        "smollm3",
        "smollm3",
        {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]},
        {},
        paired,
        is_read_by_transformers=False,
    ),
    "mistral": Case(
        "mistral: window", "mistral", {}, {"attention.sliding_window": 7}, paired, is_read_by_transformers=False
    ),
    "qwen2": Case(
        "qwen2", "qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "hidden_size": 60}
    ),
    "qwen3": Case("qwen3", "qwen3", _HEADS_OF_128),
    "gemma2": Case(
        "gemma2: everything",
        "gemma2",
        _GEMMA
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        {"attention.sliding_window": 7, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        plus_one,
    ),
    "gemma3": Case(
        "gemma3",
        "gemma3",
        _GEMMA
        | {
            "num_hidden_layers": 7,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            "final_logit_softcapping": None,
        },
        {"attention.sliding_window": 7, "rope.freq_base": 5000.0},
        plus_one,
    ),
    "phi3": Case("phi3", "phi3", {}, {"rope.dimension_count": 10, "tokenizer.ggml.padding_token_id": 0}),
    "olmo2": Case("olmo2", "olmo2", {}, is_read_by_transformers=False),
    "stablelm": Case(
        "stablelm",
        "stablelm",
        {"hidden_size": 96, "partial_rotary_factor": 0.25, "use_qkv_bias": False},
        {"rope.dimension_count": 4},
    ),
    "stablelm parallel": Case(
        "stablelm: parallel, head norms, tied",
        "stablelm",
        {},
        {"rope.dimension_count": 6},
        gathered,
        is_read_by_transformers=False,
    ),
    "gpt2": Case("gpt2", "gpt2", {"vocab_size": 50257, "n_positions": 1024}, {}, transposed),
    "gpt_neox": Case(
        "gpt_neox",
        "gptneox",
        {},
        {"rope.dimension_count": 6, "use_parallel_residual": True},
        heads_together,
        is_read_by_transformers=False,
    ),
    "mixtral": Case(
        "mixtral",
        "llama",
        {},
        {"expert_count": 5, "expert_used_count": 2},
        lambda tensors, config: gathered(paired(tensors, config), config),
        is_read_by_transformers=False,  # it reads a Llama
    ),
    "qwen3_moe": Case(
        "qwen3_moe",
        "qwen3moe",
        {"moe_intermediate_size": 768, "hidden_size": 60},
        {"expert_count": 5, "expert_used_count": 2, "expert_feed_forward_length": 768},
        gathered,
    ),
    "olmoe": Case(
        "olmoe",
        "olmoe",
        {"attention_bias": False},
        {"expert_count": 5, "expert_used_count": 3, "attention.clamp_kqv": 0.7},
        gathered,
        is_read_by_transformers=False,
    ),
}


def metadata(config: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes for every architecture."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    eps = getattr(config, "rms_norm_eps", None)
    other = getattr(config, "layer_norm_eps", None) or getattr(config, "layer_norm_epsilon", None)
    norm = {"attention.layer_norm_rms_epsilon": eps} if eps else {"attention.layer_norm_epsilon": other}
    rope = getattr(config, "rope_parameters", None) or {}
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", config.num_attention_heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        **norm,
        **({"rope.freq_base": float(rope["rope_theta"])} if "rope_theta" in rope else {}),
        "vocab_size": config.vocab_size,
    }


def write(path: Path, case: Case, model: Any, kind: GGMLQuantizationType = GGMLQuantizationType.F32) -> Path:
    """The model as a GGUF file; tensors are named by llama.cpp's own map."""
    model.save_pretrained(path.parent / "theirs")
    from safetensors.numpy import load_file as load_tensors

    tensors = case.convert(load_tensors(path.parent / "theirs" / "model.safetensors"), model.config)
    architecture = next(
        a
        for a, name in gguf.MODEL_ARCH_NAMES.items()
        if name == ("llama" if case.architecture == "mistral" else case.architecture)
    )
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, case.architecture)
    for key, value in (metadata(model.config) | dict(case.metadata)).items():
        add = (
            writer.add_bool
            if isinstance(value, bool)
            else writer.add_float32
            if isinstance(value, float)
            else writer.add_uint32
        )
        add(key if key.startswith("tokenizer.") else f"{case.architecture}.{key}", value)
    for name, values in tensors.items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        stored = kind if values.ndim >= 2 and values.shape[-1] % 32 == 0 else GGMLQuantizationType.F32
        writer.add_tensor(found, gguf.quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def their_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.numpy()


def error(got: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(got) - expected).max() / np.abs(expected).max())


def test_every_family_with_such_files_is_here() -> None:
    with_files = {name for name, family in FAMILIES.items() if family.gguf is not None}
    assert {name.split()[0] for name in CASES} == with_files


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    original = random_model(case.model, **case.changes)
    path = write(tmp_path / "model.gguf", case, original)
    ours = load_file(path)
    assert ours.config.family == name.split()[0]
    tokens = np.random.default_rng(0).integers(0, 97, (1, 20)).astype(np.int32)
    got = forward(ours.params, jnp.asarray(tokens), ours.config, precision=None)
    assert error(got, their_logits(original, tokens)) <= PARITY
    if case.is_read_by_transformers:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
        )
        assert error(got, their_logits(theirs, tokens)) <= PARITY


def test_longrope_factors(tmp_path: Path) -> None:
    """Phi-3: a tensor of factors for short texts and one for long."""
    case = CASES["phi3"]
    path = tmp_path / "model.gguf"
    short, long = np.linspace(1, 2, 5, dtype=np.float32), np.linspace(1, 8, 5, dtype=np.float32)
    original = gguf.GGUFWriter.write_header_to_file

    def add_and_write(self: gguf.GGUFWriter, *args: Any, **kwargs: Any) -> None:
        self.add_tensor("rope_factors_short.weight", short)
        self.add_tensor("rope_factors_long.weight", long)
        original(self, *args, **kwargs)

    scaling = {"rope.scaling.original_context_length": 12, "rope.scaling.attn_factor": 1.25}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", add_and_write)
        write(path, case._replace(metadata={**case.metadata, **scaling}), random_model("phi3"))
    found = load_file(path).config.rope_scaling
    assert isinstance(found, LongRopeScaling)
    assert (found.original_max_position_embeddings, found.attention_factor) == (12, 1.25)
    np.testing.assert_allclose(found.short_factors, short, rtol=1e-6)
    np.testing.assert_allclose(found.long_factors, long, rtol=1e-6)
