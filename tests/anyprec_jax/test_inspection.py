"""`inspect` of every format: the same facts, and no weight is read."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from anyprec_jax import inspection
from anyprec_jax.checkpoint import load, save
from anyprec_jax.checkpoint.formats import export, open_source
from anyprec_jax.inspection import inspect
from anyprec_jax.models.model import with_affine_head
from tests.anyprec_jax import gguf_files
from tests.anyprec_jax.tiny import quantized_tiny_model

SIZES: dict[str, int] = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
LAYER = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 96  # weights of the linears of a layer
ROWS = 64 + 2 * 32 + 64 + 2 * 96 + 64
OTHERS = 3 * 2 * 64 + 64  # norms
EMBEDDING = 260 * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tied model in every format but GGUF."""
    folder = tmp_path_factory.mktemp("inspect")
    save(folder / "artefact", with_affine_head(quantized_tiny_model(**SIZES)))
    export(folder / "artefact", folder / "upstream", "upstream")
    export(folder / "artefact", folder / "huggingface", "huggingface", precision=3, dtype="float16")
    export(folder / "artefact", folder / "orbax", "orbax", precision=3)
    return folder


@pytest.fixture(autouse=True)
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_weights(path: Path) -> Any:
        return dataclasses.replace(open_source(path), read=lambda *_: pytest.fail("inspect reads a weight"))

    monkeypatch.setattr(inspection, "open_source", without_weights)


@pytest.mark.parametrize("name", ["artefact", "upstream", "huggingface", "orbax"])
def test_facts(name: str, folder: Path) -> None:
    report = inspect(folder / name)
    assert report["format"] == name
    assert report["family"] == "llama"
    assert report["layers"] == 3 and report["context"] == 256 and report["tokenizer"]
    assert report["parameters"] == 3 * LAYER + OTHERS + EMBEDDING
    assert report["bytes"]["on_disk"] == sum(f.stat().st_size for f in (folder / name).rglob("*") if f.is_file())
    is_quantized = name in ("artefact", "upstream")
    assert report["fractional_precisions"] is (False if is_quantized else None)
    assert report["precisions"] == ([2, 3, 4] if is_quantized else [])
    assert report["quantized_weights"] == (3 * LAYER if is_quantized else 0)
    assert (report["bits_per_weight"] is None) != is_quantized
    json.dumps(report)


def test_bytes_in_memory_by_hand(folder: Path) -> None:
    """Planes and one codebook of a precision, or everything; float32 for what is not quantized."""
    norms, affine, plain = 4 * OTHERS, EMBEDDING + 8 * 260, 4 * EMBEDDING
    for name, embedding in (("artefact", affine), ("upstream", plain)):
        expected = {str(w): 3 * (LAYER * w // 8 + 2 * ROWS * 2**w) + norms + embedding for w in (2, 3, 4)}
        everything = 3 * (LAYER * 4 // 8 + 2 * ROWS * (4 + 8 + 16)) + norms + embedding
        assert inspect(folder / name)["resident_bytes"] == expected | {"all": everything}
    dense = 4 * (3 * LAYER + OTHERS + EMBEDDING)
    for name in ("huggingface", "orbax"):
        assert inspect(folder / name)["resident_bytes"] == {"all": dense}


@pytest.mark.parametrize("name", ["upstream", "huggingface", "orbax"])
def test_bytes_in_memory_are_those_of_a_load(name: str, folder: Path) -> None:
    loaded = sum(leaf.nbytes for leaf in jax.tree.leaves(load(folder / name).params) if leaf.dtype != np.uint32)
    report = inspect(folder / name)
    planes = 3 * LAYER * 4 // 8 if report["precisions"] else 0  # in memory they have padding
    assert report["resident_bytes"]["all"] == loaded + planes


def test_a_gguf_file(tmp_path: Path) -> None:
    report = inspect(gguf_files.tiny(tmp_path / "model.gguf"))
    assert report["format"] == "gguf" and report["family"] == "llama" and report["precisions"] == []
    weights = load(tmp_path / "model.gguf").params
    assert report["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert report["resident_bytes"] == {"all": 4 * report["parameters"]}


def test_a_model_of_any_size_is_described_at_once(tmp_path: Path) -> None:
    """Llama-2-70B as bfloat16, its 138 GB a hole in the file."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 8192,
        "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (32000, 8192), "lm_head": (32000, 8192), "model.norm": (8192,)}
    for layer in range(80):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj": (8192, 8192) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj": (1024, 8192) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj": (28672, 8192) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj": (8192, 28672)}
        shapes |= {f"{at}.{name}_layernorm": (8192,) for name in ("input", "post_attention")}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + end)
    report = inspect(tmp_path)
    assert report["parameters"] == end // 2 == 68_976_648_192
    assert report["dtypes"] == ["bfloat16"] and not report["tokenizer"]


def delete(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def rewrite(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "artefact without config": ("artefact", delete("config.json"), "config.json"),
    "artefact of another architecture": (
        "artefact", rewrite("config.json", "LlamaForCausalLM", "BertModel"), "BertModel .* supported are .*LlamaForCausalLM",
    ),
    "plain of another architecture": (
        "huggingface", rewrite("config.json", "LlamaForCausalLM", "BertModel"), "BertModel .* supported are .*LlamaForCausalLM",
    ),
    "plain of another shape": (
        "huggingface", rewrite("config.json", '"intermediate_size": 96', '"intermediate_size": 97'), r"has shape \(96, 64\)",
    ),
    "plain without weights": ("huggingface", delete("model.safetensors"), "no weights"),
    "upstream without weights": ("upstream", delete("pytorch_model.bin"), "no weights"),
    "upstream of another shape": (
        "upstream", rewrite("config.json", '"intermediate_size": 96', '"intermediate_size": 128'), "has shape",
    ),
    "an exported file cut short": (
        "upstream", lambda p: os.truncate(p / "pytorch_model.bin", 1000), "pytorch_model.bin is not read",
    ),
    "a record of another size": ("upstream", rewrite("export.json", '"nbytes": ', '"nbytes": 1'), "export.json says 1"),
    "no model": ("artefact", lambda p: [delete("manifest.json")(p), delete("config.json")(p)], "is not a model"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_clear_line(kind: str, folder: Path, tmp_path: Path) -> None:
    name, damage, message = DAMAGE[kind]
    shutil.copytree(folder / name, tmp_path / "in")
    damage(tmp_path / "in")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        inspect(tmp_path / "in")
    assert "\n" not in str(raised.value)


def test_damaged_weights_do_not_keep_it_from_describing(folder: Path, tmp_path: Path) -> None:
    """What is not read cannot be missed."""
    shutil.copytree(folder / "artefact", tmp_path / "in")
    shutil.rmtree(tmp_path / "in" / "checkpoint")
    assert inspect(tmp_path / "in")["parameters"] == inspect(folder / "artefact")["parameters"]
